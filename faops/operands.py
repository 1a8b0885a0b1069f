"""The tensors and numbers that a kernel of our own is launched with, made from its inputs; alike for all backends.

A kernel gets each tensor's strides beside its pointer, so that nothing is copied or expanded to suit it.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from faops.inputs import AttentionInputs, DecodeInputs
from faops.philox import threshold
from faops.problem import Band

ALIGNMENT = 16  # bytes of the widest access a thread makes


class Operands(NamedTuple):
    """The tensors of a call in the dtypes the kernels read, in the order of their parameters."""

    q: Tensor
    k: Tensor
    v: Tensor
    out: Tensor
    lse: Tensor | None
    alibi_slopes: Tensor | None
    bias: Tensor | None
    mask: Tensor | None
    sinks: Tensor | None
    cu_seqlens_q: Tensor | None
    cu_seqlens_k: Tensor | None
    rng: Tensor | None

    @staticmethod
    def of(inputs: AttentionInputs, out: Tensor, lse: Tensor | None) -> Operands:
        bias, sinks, slopes = inputs.bias, inputs.sinks, inputs.alibi_slopes
        if bias is not None and bias.dtype not in (inputs.q.dtype, torch.float32):
            bias = bias.float()  # a bias is broadcast, hence small; what it is broadcast over stays unexpanded
        if sinks is not None and sinks.dtype != torch.float32:
            sinks = sinks.float()
        rng = inputs.rng if inputs.dropout_p > 0 else None
        return Operands(
            inputs.q, inputs.k, inputs.v, out, lse, contiguous(slopes), bias, inputs.mask, contiguous(sinks),
            contiguous(inputs.cu_seqlens_q), contiguous(inputs.cu_seqlens_k), rng,
        )  # fmt: skip


class DecodeOperands(NamedTuple):
    """The tensors of a KV-cache call as the kernels read them. None is written but the caches."""

    q: Tensor
    k_cache: Tensor
    v_cache: Tensor
    k: Tensor | None
    v: Tensor | None
    cache_seqlens: Tensor | None
    cache_batch_idx: Tensor | None
    cache_leftpad: Tensor | None
    block_table: Tensor | None
    rotary_cos: Tensor | None
    rotary_sin: Tensor | None
    alibi_slopes: Tensor | None
    bias: Tensor | None
    mask: Tensor | None
    sinks: Tensor | None

    @staticmethod
    def of(inputs: DecodeInputs) -> DecodeOperands:
        table, cos, sin = inputs.block_table, inputs.rotary_cos, inputs.rotary_sin
        if table is not None and table.stride(1) != 1:
            table = table.contiguous()
        if cos is not None and cos.shape[1] == 0:
            cos = sin = None
        return DecodeOperands(
            inputs.q, inputs.k_cache, inputs.v_cache, inputs.k, inputs.v, contiguous(inputs.cache_seqlens),
            contiguous(inputs.cache_batch_idx), contiguous(inputs.cache_leftpad), table, contiguous(cos),
            contiguous(sin), contiguous(inputs.alibi_slopes), inputs.bias,
            None if inputs.mask is None else inputs.mask.view(torch.uint8), contiguous(inputs.sinks),
        )  # fmt: skip


def contiguous(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


def band_of(inputs: AttentionInputs) -> Band:
    """The band without sides that hide nothing, so that what is left fits an int."""
    return inputs.band.simplify(inputs.max_seqlen_q, inputs.max_seqlen_k)


def numbers(inputs: AttentionInputs, operands: Operands) -> dict[str, int | float]:
    """Sizes, strides in elements (0 where an operand is absent or broadcast) and scalars of a call, by name."""
    q, k, v = operands.q, operands.k, operands.v
    varlen = operands.cu_seqlens_q is not None
    band = band_of(inputs)
    found: dict[str, int | float] = {
        "batch": inputs.batch,
        "heads": q.shape[-2],
        "group": max(1, q.shape[-2] // max(1, k.shape[-2])),
        "seqlen_q": inputs.max_seqlen_q,
        "seqlen_k": inputs.max_seqlen_k,
        "total_q": q.shape[0] if varlen else 0,
        "window_left": band.left,
        "window_right": band.right,
        "scale": inputs.scale,
        "softcap": inputs.softcap,
        "keep_scale": 1 / (1 - inputs.dropout_p) if inputs.dropout_p < 1 else 0.0,
        "drop_below": min(threshold(inputs.dropout_p), 2**32 - 1),
    }
    for name, tensor in (("q", q), ("k", k), ("v", v), ("out", operands.out)):
        found |= row_strides(name, tensor, varlen)
    found |= lse_strides("lse", operands.lse, varlen)
    slopes = operands.alibi_slopes
    found["alibi_batch"] = slopes.stride(0) if slopes is not None and slopes.dim() == 2 else 0
    found |= matrix_strides("bias", operands.bias)
    found |= matrix_strides("mask", operands.mask)
    return found


def row_strides(name: str, tensor: Tensor, varlen: bool) -> dict[str, int]:
    """Strides of a (B, M, H, D) or packed (total, H, D) tensor."""
    row, head = tensor.stride(-3), tensor.stride(-2)
    return {f"{name}_batch": 0 if varlen else tensor.stride(0), f"{name}_row": row, f"{name}_head": head}


def lse_strides(name: str, lse: Tensor | None, varlen: bool) -> dict[str, int]:
    """Strides of a (B, H, M) or packed (H, total) tensor whose rows are contiguous."""
    if lse is None:
        return {f"{name}_batch": 0, f"{name}_head": 0}
    return {f"{name}_batch": 0 if varlen else lse.stride(0), f"{name}_head": lse.stride(-2)}


def matrix_strides(name: str, matrix: Tensor | None) -> dict[str, int]:
    """Strides of a bias or mask over (B, H, M, N)."""
    axes = ("batch", "head", "row", "key")
    if matrix is None:
        return {f"{name}_{axis}": 0 for axis in axes}
    strides = (0 if size == 1 else stride for size, stride in zip(matrix.shape, matrix.stride()))
    return {f"{name}_{axis}": stride for axis, stride in zip(axes, strides)}


def describe(tensors: Iterable[Tensor | None]) -> tuple[Hashable, ...]:
    """What a specialised launch depends on in its tensors: all but where they lie."""
    return tuple(
        None if tensor is None else (tensor.shape, tensor.stride(), tensor.dtype, tensor.data_ptr() % ALIGNMENT)
        for tensor in tensors
    )


def call_key(inputs: AttentionInputs, tensors: Iterable[Tensor | None]) -> tuple[Hashable, ...]:
    """Everything that the launch of a forward or backward call with ``tensors`` depends on, its config apart."""
    return (
        describe(tensors), inputs.max_seqlen_q, inputs.max_seqlen_k, inputs.window_left, inputs.window_right,
        inputs.scale, inputs.softcap, inputs.dropout_p,
    )  # fmt: skip


def cache_strides(operands: DecodeOperands) -> dict[str, int]:
    """Strides of the caches and the block table; a dense cache's batch entries are its pages."""
    found: dict[str, int] = {}
    for name, cache in (("k_cache", operands.k_cache), ("v_cache", operands.v_cache)):
        found |= {f"{name}_page": cache.stride(0), f"{name}_row": cache.stride(1), f"{name}_head": cache.stride(2)}
    found["table_batch"] = 0 if operands.block_table is None else operands.block_table.stride(0)
    return found
