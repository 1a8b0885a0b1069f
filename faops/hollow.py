"""The tensors of a problem without anything in them: shapes, strides and dtypes on torch's meta device.

A kernel is specialised by nothing else, alignment apart, and fresh memory is aligned; so a call can be compiled for
before there is one, and on a machine that has no such device.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from faops.errors import ArgumentError
from faops.inputs import AttentionInputs, BackwardInputs, DecodeInputs
from faops.layout import empty_lse, empty_out
from faops.problem import AttentionProblem

Inputs = AttentionInputs | BackwardInputs | DecodeInputs

SOFTCAP, DROPOUT = 30.0, 0.1  # any value that turns the feature on


def hollow_inputs(problem: AttentionProblem) -> Inputs:
    """Inputs whose ``problem()`` is ``problem``, contiguous, with no storage.

    Varlen lengths spread evenly from half the maximum up to it; a decode cache is full. Raises ArgumentError for a
    problem that no inputs can express.
    """
    if problem.op == "decode":
        return _decode(problem)
    if problem.op == "backward":
        return _backward(problem)
    return _forward(problem)


def _empty(problem: AttentionProblem, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
    return torch.empty(shape, dtype=dtype or problem.torch_dtype, device="meta")


def _ints(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.int32, device="meta")


def _pair_tensor(problem: AttentionProblem, pattern: str, dtype: torch.dtype) -> Tensor | None:
    """A bias or mask with that broadcast pattern."""
    if not pattern:
        return None
    sizes = (problem.batch, problem.heads_q, problem.seqlen_q, problem.seqlen_k)
    return _empty(problem, *(size if letter != "." else 1 for letter, size in zip(pattern, sizes)), dtype=dtype)


def _per_head(problem: AttentionProblem, used: bool, dtype: torch.dtype) -> Tensor | None:
    return _empty(problem, problem.heads_q, dtype=dtype) if used else None


def packed_lengths(longest: int, batch: int) -> Tensor:
    """Lengths of the sequences of a packed batch: int64 (B,), from ``longest`` down to half of it."""
    return torch.linspace(longest, longest / 2, batch).round().long()


def _total(problem: AttentionProblem, longest: int) -> int:
    """Rows or keys of all sequences of a packed batch."""
    return int(packed_lengths(longest, problem.batch).sum())


def _forward(problem: AttentionProblem) -> AttentionInputs:
    shape_q: tuple[int, ...] = (problem.batch, problem.seqlen_q)
    shape_k: tuple[int, ...] = (problem.batch, problem.seqlen_k)
    ends = None
    if problem.layout == "varlen":
        shape_q, shape_k = (_total(problem, problem.seqlen_q),), (_total(problem, problem.seqlen_k),)
        ends = _ints(problem.batch + 1)
    elif problem.layout != "dense":
        raise ArgumentError("problem", str(problem), f"dense or varlen: layout {problem.layout} exists for decode only")
    return AttentionInputs(
        q=_empty(problem, *shape_q, problem.heads_q, problem.head_dim),
        k=_empty(problem, *shape_k, problem.heads_kv, problem.head_dim),
        v=_empty(problem, *shape_k, problem.heads_kv, problem.head_dim_v),
        alibi_slopes=_per_head(problem, problem.alibi, torch.float32),
        bias=_pair_tensor(problem, problem.bias, problem.torch_dtype),
        mask=_pair_tensor(problem, problem.mask, torch.bool),
        sinks=_per_head(problem, problem.sinks, problem.torch_dtype),
        cu_seqlens_q=ends,
        cu_seqlens_k=ends,
        rng=_empty(problem, 2, dtype=torch.int64) if problem.dropout else None,
        max_seqlen_q=problem.seqlen_q,
        max_seqlen_k=problem.seqlen_k,
        window_left=problem.band.left,
        window_right=problem.band.right,
        scale=problem.head_dim**-0.5,
        softcap=SOFTCAP if problem.softcap else 0.0,
        dropout_p=DROPOUT if problem.dropout else 0.0,
        deterministic=problem.deterministic,
        need_lse=problem.need_lse,
        backend="",
    )


def _backward(problem: AttentionProblem) -> BackwardInputs:
    forward = _forward(replace(problem, need_lse=True))
    out, lse = empty_out(forward.q, problem.head_dim_v), empty_lse(forward.q)
    return BackwardInputs(
        dout=torch.empty_like(out),
        dlse=torch.empty_like(lse) if problem.lse_grad else None,
        forward=forward,
        out=out,
        lse=lse,
        bias_grad=problem.bias_grad,
        sinks_grad=problem.sinks,
    )


def _decode(problem: AttentionProblem) -> DecodeInputs:
    batch, capacity = problem.batch, problem.seqlen_k
    leading: tuple[int, ...] = (batch, capacity)
    block_table = None
    if problem.layout == "paged":
        pages = capacity // problem.page_size
        if pages * problem.page_size != capacity:
            raise ArgumentError("problem", str(problem), "a key length that is a multiple of the page size")
        block_table, leading = _ints(batch, pages), (batch * pages, problem.page_size)
    new_k = new_v = cos = sin = None
    if problem.append:
        new_k = _empty(problem, batch, problem.seqlen_q, problem.heads_kv, problem.head_dim)
        new_v = _empty(problem, batch, problem.seqlen_q, problem.heads_kv, problem.head_dim_v)
    if problem.rotary:
        cos, sin = (_empty(problem, capacity, problem.head_dim // 2) for _ in range(2))
    return DecodeInputs(
        q=_empty(problem, batch, problem.seqlen_q, problem.heads_q, problem.head_dim),
        k_cache=_empty(problem, *leading, problem.heads_kv, problem.head_dim),
        v_cache=_empty(problem, *leading, problem.heads_kv, problem.head_dim_v),
        k=new_k,
        v=new_v,
        cache_seqlens=_ints(batch),
        cache_batch_idx=_ints(batch) if problem.batch_index else None,
        cache_leftpad=_ints(batch) if problem.leftpad else None,
        block_table=block_table,
        rotary_cos=cos,
        rotary_sin=sin,
        alibi_slopes=_per_head(problem, problem.alibi, torch.float32),
        bias=_pair_tensor(problem, problem.bias, problem.torch_dtype),
        mask=_pair_tensor(problem, problem.mask, torch.bool),
        sinks=_per_head(problem, problem.sinks, problem.torch_dtype),
        window_left=problem.band.left,
        window_right=problem.band.right,
        scale=problem.head_dim**-0.5,
        softcap=SOFTCAP if problem.softcap else 0.0,
        rotary_interleaved=problem.rotary == "interleaved",
        num_splits=0,
        need_lse=problem.need_lse,
        backend="",
    )
