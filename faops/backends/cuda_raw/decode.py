"""The raw CUDA kernels for a KV cache as the registry sees them: append, attention split over the keys, and combine."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from faops.backends.cuda_raw import decode_parts, decode_space, footprint, host
from faops.backends.cuda_raw.base import RawKernel
from faops.backends.cuda_raw.decode_specialize import Tensors, operands_of, specialise, tensors_of
from faops.backends.cuda_raw.decode_tiles import DecodeFamily, choose_splits, family_of
from faops.backends.cuda_raw.specialize import Specialised
from faops.backends.cuda_raw.tiles import MATRIX_ROWS
from faops.defaults import ShippedDefault
from faops.device import DeviceProfile, detect
from faops.footprint import Footprint, Resources
from faops.inputs import DecodeInputs
from faops.layout import empty_lse, empty_out
from faops.operands import DecodeOperands, describe
from faops.problem import AttentionProblem
from faops.registry import Config
from faops.splits import MAX_SPLITS

MEMO_LIMIT = 4096  # calls of different shapes
MAX_KEYS = 2**31 - 2**12  # places of keys, also behind the last tile, are ints
Step = tuple[Specialised, Tensors]


class RawDecode(RawKernel):
    """What the KV-cache kernels share; each family says which devices, dtypes and configs are its own."""

    op = "decode"
    layouts = ("dense", "paged")
    family: DecodeFamily

    def _reasons(self, problem: AttentionProblem, device: DeviceProfile) -> Iterator[str]:
        yield from super()._reasons(problem, device)
        if min(problem.head_dim, problem.head_dim_v) < 1:
            yield "a head dim of 0 leaves nothing to read"
        if problem.seqlen_k > MAX_KEYS:
            yield f"a sequence has room for {problem.seqlen_k} keys, more than {MAX_KEYS}"

    def most_blocks(self, problem: AttentionProblem) -> int:
        # A tile may hold rows of one head alone, and every split has blocks of its own.
        return problem.batch * problem.heads_q * -(-problem.seqlen_q // MATRIX_ROWS) * MAX_SPLITS

    def shipped(self, problem: AttentionProblem, device: DeviceProfile) -> ShippedDefault:
        return decode_space.shipped(self.id, problem, host.target_device(device) or device)

    def default_config(self, problem: AttentionProblem, device: DeviceProfile) -> Config:
        return decode_space.default(self.id, problem, host.target_device(device) or device)

    def space(self, problem: AttentionProblem, device: DeviceProfile) -> list[Config]:
        return decode_space.space(self.family, problem, device, self.default_config(problem, device))

    def launch(self, inputs: DecodeInputs, config: Config) -> tuple[Tensor, Tensor | None]:
        operands = operands_of(inputs)
        key = (self.family, config, *_call_key(inputs, operands))
        plan = _plans.get(key)
        if plan is None:
            if len(_plans) >= MEMO_LIMIT:
                _plans.clear()
            plan = _plans[key] = _make_plan(self.family, inputs, operands, config, detect(inputs.q.device))
        out, lse, steps = _steps(inputs, operands, plan)
        for kernel, tensors in steps:
            host.enqueue(kernel, tensors)
        return out, lse

    def count(self, problem: AttentionProblem, device: DeviceProfile, config: Config) -> Footprint:
        return footprint.decode(self.family, problem, device, config)

    def compile_for(self, problem: AttentionProblem, device: DeviceProfile, config: Config) -> Resources | None:
        from faops.backends.cuda_raw import ahead

        return ahead.compile_decode(problem, device, config)


class Plan(NamedTuple):
    """What is worked out once for all calls that are alike: the kernels, None where there is nothing for one to do."""

    append: Specialised | None
    attend: Specialised | None
    combine: Specialised | None
    partial: int  # elements of the splits' results, 0 where one split sees all keys


_plans: dict[tuple[object, ...], Plan] = {}


def launches(
    inputs: DecodeInputs, config: Config, device: DeviceProfile
) -> tuple[Tensor, Tensor | None, list[Step]]:  # fmt: skip
    """(out, lse, launches) of a call on ``device``; nothing runs, so the results are empty."""
    operands = operands_of(inputs)
    family = family_of(host.target_device(device) or device)
    return _steps(inputs, operands, _make_plan(family, inputs, operands, config, device))


def _make_plan(
    family: DecodeFamily, inputs: DecodeInputs, operands: DecodeOperands, config: Config, device: DeviceProfile
) -> Plan:
    out, lse = _results(inputs)
    rows = out.shape[0] * out.shape[1] * out.shape[2]
    new = operands.k is not None and operands.v is not None and operands.k.numel() + operands.v.numel() > 0
    append = decode_parts.append(inputs, operands) if new else None
    if rows == 0:
        return Plan(append, None, None, 0)
    splits = min(inputs.num_splits or config.integer("splits"), MAX_SPLITS)
    if splits == 0:
        splits = choose_splits(inputs.problem(), config, host.target_device(device) or device)
    attend = specialise(family, inputs, operands, out, lse, config, splits)
    if splits <= 1:
        return Plan(append, attend, None, 0)
    return Plan(append, attend, decode_parts.combine(operands, out, lse, splits), rows * splits * (out.shape[3] + 1))


def _call_key(inputs: DecodeInputs, operands: DecodeOperands) -> tuple[object, ...]:
    """Everything that the launches of a call depend on. Results are left out: they follow the operands."""
    return (
        describe(operands), inputs.q.device, inputs.window_left, inputs.window_right, inputs.scale, inputs.softcap,
        inputs.rotary_interleaved, inputs.num_splits, inputs.need_lse, inputs.q.is_cpu and host.emulated_card(),
    )  # fmt: skip


def _results(inputs: DecodeInputs) -> tuple[Tensor, Tensor | None]:
    return empty_out(inputs.q, inputs.v_cache.shape[3]), empty_lse(inputs.q) if inputs.need_lse else None


def _steps(inputs: DecodeInputs, operands: DecodeOperands, plan: Plan) -> tuple[Tensor, Tensor | None, list[Step]]:
    """(out, lse, launches): the results are empty until the launches have run in their order."""
    out, lse = _results(inputs)
    steps: list[Step] = []
    if plan.append is not None:
        new: Tensors = (
            operands.k, operands.v, operands.k_cache, operands.v_cache, operands.cache_seqlens,
            operands.cache_batch_idx, operands.block_table, operands.rotary_cos, operands.rotary_sin,
        )  # fmt: skip
        steps.append((plan.append, new))
    partial = torch.empty(plan.partial, dtype=torch.float32, device=out.device) if plan.partial else None
    if plan.attend is not None:
        steps.append((plan.attend, tensors_of(operands, out, lse, partial)))
    if plan.combine is not None:
        steps.append((plan.combine, (partial, out, lse, operands.sinks)))
    return out, lse, steps
