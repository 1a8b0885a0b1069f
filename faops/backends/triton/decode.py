"""The KV-cache kernels as the registry sees them: append, attention split over the keys, and combine."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from faops.backends.triton import decode_space, decode_tiles, launch, specialize
from faops.backends.triton.base import MAX_PROGRAMS, TritonKernel
from faops.backends.triton.launch import Launch, Tensors
from faops.defaults import ShippedDefault
from faops.device import DeviceProfile, detect
from faops.inputs import DecodeInputs
from faops.layout import empty_lse, empty_out
from faops.operands import DecodeOperands, cache_strides, describe, lse_strides, matrix_strides, row_strides
from faops.problem import UNLIMITED, AttentionProblem
from faops.registry import Config
from faops.splits import MAX_SPLITS, row_tiles

MEMO_LIMIT = 4096  # calls of different shapes
APPEND_ROWS = 16  # new keys of a program; there are few
COMBINE_SPLITS = 8  # results that a program of combine reads at a time


class TritonDecode(TritonKernel):
    """Decode and chunked prefill over a dense or paged cache: kernels/{append,decode,combine}.py."""

    name = "decode"
    op = "decode"

    def _reasons(self, problem: AttentionProblem, device: DeviceProfile) -> Iterator[str]:
        yield from super()._reasons(problem, device)
        # A tile may hold rows of one head alone, and every split has programs of its own.
        programs = problem.batch * problem.heads_q * -(-problem.seqlen_q // 16) * MAX_SPLITS
        if programs > MAX_PROGRAMS:
            yield f"the grid might have more than {MAX_PROGRAMS} programs"

    def space(self, problem: AttentionProblem, device: DeviceProfile) -> list[Config]:
        return decode_space.decode_space(problem, device)

    def default_config(self, problem: AttentionProblem, device: DeviceProfile) -> Config:
        return decode_space.decode_default(problem, device)

    def shipped(self, problem: AttentionProblem, device: DeviceProfile) -> ShippedDefault:
        return decode_space.decode_shipped(problem, device)

    def run(self, inputs: DecodeInputs, config: Config) -> tuple[Tensor, Tensor | None]:
        operands = DecodeOperands.of(inputs)
        key = (config, *_call_key(inputs, operands))
        plan = _plans.get(key)
        if plan is None:
            if len(_plans) >= MEMO_LIMIT:
                _plans.clear()
            plan = _plans[key] = _make_plan(inputs, config, detect(inputs.q.device))
        out, lse, steps = _steps(inputs, operands, config, plan)
        for kernel, tensors, build in steps:
            launch.launch((kernel, plan.number), tensors, build)
        return out, lse


def launches(inputs: DecodeInputs, config: Config, device: DeviceProfile) -> list[tuple[Launch, Tensors]]:
    """Every launch of a call on ``device`` with its tensors; nothing runs."""
    operands = DecodeOperands.of(inputs)
    _, _, steps = _steps(inputs, operands, config, _make_plan(inputs, config, device))
    return [(build(), tensors) for _, tensors, build in steps]


class _Plan(NamedTuple):
    """What is worked out once for all calls that are alike."""

    number: int  # names them, so that a long key is hashed once a call and not once a launch
    appends: bool
    attends: bool
    splits: int
    partial: int  # elements of the splits' results, 0 where one split sees all keys


_plans: dict[tuple[object, ...], _Plan] = {}
_numbers = itertools.count()
_Step = tuple[str, Tensors, Callable[[], Launch]]


def _make_plan(inputs: DecodeInputs, config: Config, device: DeviceProfile) -> _Plan:
    batch, seqlen_q, heads, _ = inputs.q.shape
    rows = batch * seqlen_q * heads
    appends = inputs.k is not None and inputs.v is not None and inputs.k.numel() + inputs.v.numel() > 0
    splits = min(inputs.num_splits or config.integer("splits"), MAX_SPLITS)
    if splits == 0 and rows > 0:
        splits = decode_tiles.choose_splits(inputs.problem(), config, device)
    partial = rows * splits * (inputs.v_cache.shape[3] + 1) if splits > 1 else 0
    return _Plan(next(_numbers), appends, rows > 0, splits, partial)


def _call_key(inputs: DecodeInputs, operands: DecodeOperands) -> tuple[object, ...]:
    """Everything that the launches of a call depend on. Results are left out: they follow the operands."""
    return (
        describe(operands), inputs.q.device, specialize.precision(inputs.q.dtype), inputs.window_left,
        inputs.window_right, inputs.scale, inputs.softcap, inputs.rotary_interleaved, inputs.num_splits,
        inputs.need_lse,
    )  # fmt: skip


def _steps(
    inputs: DecodeInputs, operands: DecodeOperands, config: Config, plan: _Plan
) -> tuple[Tensor, Tensor | None, list[_Step]]:
    """(out, lse, launches): the results are empty until the launches have run in their order."""
    q, v_cache = operands.q, operands.v_cache
    out, lse = empty_out(q, v_cache.shape[3]), empty_lse(q) if inputs.need_lse else None
    steps: list[_Step] = []
    if plan.appends:
        new: Tensors = (
            operands.k, operands.v, operands.k_cache, v_cache, operands.cache_seqlens, operands.cache_batch_idx,
            operands.block_table, operands.rotary_cos, operands.rotary_sin,
        )  # fmt: skip
        steps.append(("append.append", new, lambda: _describe_append(inputs, operands)))
    if not plan.attends:
        return out, lse, steps
    partial = torch.empty(plan.partial, dtype=torch.float32, device=q.device) if plan.partial else None
    tensors: Tensors = (
        q, operands.k_cache, v_cache, out, lse, partial, operands.cache_seqlens, operands.cache_batch_idx,
        operands.cache_leftpad, operands.block_table, operands.rotary_cos, operands.rotary_sin,
        operands.alibi_slopes, operands.bias, operands.mask, operands.sinks,
    )  # fmt: skip
    steps.append(
        ("decode.attention_decode", tensors, lambda: _describe_decode(inputs, operands, out, lse, config, plan.splits))
    )
    if partial is not None:
        combined: Tensors = (partial, out, lse, operands.sinks)
        steps.append(("combine.combine", combined, lambda: _describe_combine(operands, out, lse, plan.splits)))
    return out, lse, steps


def _describe_append(inputs: DecodeInputs, operands: DecodeOperands) -> Launch:
    assert operands.k is not None and operands.v is not None
    batch, new, heads, _ = operands.k.shape
    tiles = row_tiles(new * heads, APPEND_ROWS)
    return Launch(
        kernel="append.append",
        grid=(tiles * batch, 1, 1),
        numbers={
            "new": new, "heads": heads, "row_tiles": tiles, **_limits(inputs, operands),
            **row_strides("k", operands.k, varlen=False), **row_strides("v", operands.v, varlen=False),
            **cache_strides(operands),
        },
        constants={**_constants(inputs, operands), "BLOCK_M": APPEND_ROWS},
        # A fused multiply-add would round a rotated key otherwise than faops.rotary does.
        options={"num_warps": 4, "num_stages": 1, "enable_fp_fusion": False},
    )  # fmt: skip


def _describe_decode(
    inputs: DecodeInputs, operands: DecodeOperands, out: Tensor, lse: Tensor | None, config: Config, splits: int
) -> Launch:
    q = operands.q
    batch, seqlen_q, heads, _ = q.shape
    heads_kv = operands.k_cache.shape[2]
    group = heads // heads_kv
    tiles = row_tiles(seqlen_q * group, config.integer("block_m"))
    band = inputs.band.simplify(seqlen_q, inputs.capacity)
    slopes = operands.alibi_slopes
    return Launch(
        kernel="decode.attention_decode",
        grid=(tiles * splits * heads_kv * batch, 1, 1),
        numbers={
            "heads_kv": heads_kv, "row_tiles": tiles, "splits": splits, "seqlen_q": seqlen_q,
            "new": 0 if operands.k is None else operands.k.shape[1], **_limits(inputs, operands),
            **row_strides("q", q, varlen=False), **cache_strides(operands), **row_strides("out", out, varlen=False),
            **lse_strides("lse", lse, varlen=False),
            "alibi_batch": slopes.stride(0) if slopes is not None and slopes.dim() == 2 else 0,
            **matrix_strides("bias", operands.bias), **matrix_strides("mask", operands.mask),
            "window_left": band.left, "window_right": band.right, "scale": inputs.scale, "softcap": inputs.softcap,
        },
        constants={
            **_constants(inputs, operands),
            "GROUP": group,
            "BLOCK_M": config.integer("block_m"),
            "BLOCK_N": config.integer("block_n"),
            # The rows of a call that sees every key all stand at the cache's end.
            "ADVANCING": int(not inputs.band.full),
            "WINDOW_LEFT": band.left != UNLIMITED,
            "WINDOW_RIGHT": band.right != UNLIMITED,
            "SOFTCAP": inputs.softcap > 0,
            "FOLD_SCALE": specialize.folds_scale(inputs.softcap, inputs.scale, slopes, operands.bias),
            "PRECISION": specialize.precision(q.dtype),
            "WIDE": _is_wide(operands),
        },
        options=specialize.options(config),
    )  # fmt: skip


def _describe_combine(operands: DecodeOperands, out: Tensor, lse: Tensor | None, splits: int) -> Launch:
    batch, seqlen_q, heads, _ = operands.q.shape
    heads_kv, dim_v = operands.v_cache.shape[2:]
    group = heads // heads_kv
    return Launch(
        kernel="combine.combine",
        grid=(batch * heads * seqlen_q, 1, 1),
        numbers={
            "rows": seqlen_q * group, "heads_kv": heads_kv, "splits": splits,
            **row_strides("out", out, varlen=False), **lse_strides("lse", lse, varlen=False),
        },
        constants={
            "GROUP": group, "HEAD_DIM_V": dim_v, "WIDTH_V": specialize.width(dim_v), "BLOCK_S": COMBINE_SPLITS,
        },
        options={"num_warps": 1, "num_stages": 2},
    )  # fmt: skip


def _constants(inputs: DecodeInputs, operands: DecodeOperands) -> dict[str, specialize.Constant]:
    """The constants of append and attention."""
    dim, dim_v = operands.k_cache.shape[3], operands.v_cache.shape[3]
    return {
        "HEAD_DIM": dim,
        "HEAD_DIM_V": dim_v,
        "WIDTH": specialize.width(dim),
        "WIDTH_V": specialize.width(dim_v),
        "PAGE_SIZE": 0 if operands.block_table is None else operands.k_cache.shape[1],
        "ROTARY_DIM": 0 if operands.rotary_cos is None else 2 * operands.rotary_cos.shape[1],
        "INTERLEAVED": inputs.rotary_interleaved,
    }


def _limits(inputs: DecodeInputs, operands: DecodeOperands) -> dict[str, int]:
    """What lengths, pages and positions are held to, since nobody reads them before the kernels do."""
    pages, cos = operands.k_cache.shape[0], operands.rotary_cos
    capacity = inputs.capacity if pages else 0
    return {"capacity": capacity, "pages": pages, "positions": 0 if cos is None else cos.shape[0]}


def _is_wide(operands: DecodeOperands) -> bool:
    """Whether an offset inside one block of keys may exceed 32 bits."""
    strides = [operands.k_cache.stride(1), operands.v_cache.stride(1)]
    strides += [matrix.stride(3) for matrix in (operands.bias, operands.mask) if matrix is not None]
    return max(strides) > (2**31 - 1) // specialize.LARGEST_TILE
