"""From the tensors of a KV-cache call to a specialised attention kernel and the values of its parameter struct."""

from __future__ import annotations

import torch
from torch import Tensor

from faops.backends.cuda_raw.decode_parts import rotary_constants, rotary_tables
from faops.backends.cuda_raw.decode_tiles import DecodeFamily, shared_bytes
from faops.backends.cuda_raw.params import DECODE
from faops.backends.cuda_raw.source import Constant, make_source
from faops.backends.cuda_raw.specialize import (
    BIAS_ELEMENT,
    BIAS_FLOAT,
    BIAS_NONE,
    Specialised,
    reads_pairs,
    vector_bytes,
)
from faops.backends.cuda_raw.tiles import WARP, padded
from faops.inputs import DecodeInputs
from faops.operands import DecodeOperands, cache_strides, lse_strides, matrix_strides, row_strides
from faops.problem import UNLIMITED, Band
from faops.registry import Config
from faops.splits import row_tiles

ENTRY = "attention_decode"
COLUMN = 4  # elements of the result that a thread writes at a time
Tensors = tuple[Tensor | None, ...]


def operands_of(inputs: DecodeInputs) -> DecodeOperands:
    """The tensors of a call in the dtypes these kernels read."""
    operands = DecodeOperands.of(inputs)
    bias, sinks = operands.bias, operands.sinks
    if bias is not None and bias.dtype not in (inputs.q.dtype, torch.float32):
        bias = bias.float()
    cos, sin = rotary_tables(operands.rotary_cos, operands.rotary_sin)
    return operands._replace(
        bias=bias, sinks=None if sinks is None else sinks.float(), rotary_cos=cos, rotary_sin=sin
    )  # fmt: skip


def tensors_of(operands: DecodeOperands, out: Tensor, lse: Tensor | None, partial: Tensor | None) -> Tensors:
    """What the kernel is launched with, in the order of its struct."""
    return (
        operands.q, operands.k_cache, operands.v_cache, out, lse, partial, operands.cache_seqlens,
        operands.cache_batch_idx, operands.cache_leftpad, operands.block_table, operands.rotary_cos,
        operands.rotary_sin, operands.alibi_slopes, operands.bias, operands.mask, operands.sinks,
    )  # fmt: skip


def specialise(
    family: DecodeFamily, inputs: DecodeInputs, operands: DecodeOperands, out: Tensor, lse: Tensor | None,
    config: Config, splits: int,
) -> Specialised:  # fmt: skip
    """The kernel of ``family`` and ``config`` for this call, whose keys are cut into ``splits`` parts."""
    q, v_cache = operands.q, operands.v_cache
    batch, seqlen_q, heads, head_dim = q.shape
    heads_kv, head_dim_v = v_cache.shape[2:]
    tiles = row_tiles(seqlen_q * (heads // heads_kv), config.integer("tile_m"))
    source = make_source(
        family.name, constants(family, inputs, operands, out, lse, config, splits), DECODE.header(),
        config.integer("warps") * WARP, ENTRY,
    )  # fmt: skip
    template = DECODE.pack({**numbers(inputs, operands, out, lse), "row_tiles": tiles, "splits": splits})
    grid = tiles * splits * heads_kv * batch
    return Specialised(source, grid, shared_bytes(config, head_dim, head_dim_v), bytes(template), DECODE)


def constants(
    family: DecodeFamily, inputs: DecodeInputs, operands: DecodeOperands, out: Tensor, lse: Tensor | None,
    config: Config, splits: int,
) -> dict[str, Constant]:  # fmt: skip
    """What the kernel is compiled for."""
    q, k_cache, v_cache, bias = operands.q, operands.k_cache, operands.v_cache, operands.bias
    head_dim, head_dim_v = q.shape[-1], v_cache.shape[-1]
    band = _band(inputs)
    return {
        "TILE_M": config.integer("tile_m"),
        "TILE_N": config.integer("tile_n"),
        "WARPS": config.integer("warps"),
        "KEY_WARPS": config.integer("key_warps"),
        "STAGES": config.integer("stages"),
        "Q_IN_REGISTERS": bool(config["q_in_registers"]),
        "WIDTH": padded(head_dim),
        "WIDTH_V": padded(head_dim_v),
        "FULL_WIDTH": head_dim == padded(head_dim),
        "FULL_WIDTH_V": head_dim_v == padded(head_dim_v),
        "BFLOAT16": q.dtype == torch.bfloat16,
        "MMA_DEPTH": family.mma_depth,
        "COPY_BYTES": min(vector_bytes(q), vector_bytes(k_cache), vector_bytes(v_cache)),
        "OUT_VECTORS": head_dim_v % COLUMN == 0 and vector_bytes(out) >= 2 * COLUMN,
        "PARTIAL_VECTORS": head_dim_v % COLUMN == 0,
        "SPLIT": splits > 1,
        "PAGE_SIZE": 0 if operands.block_table is None else k_cache.shape[1],
        "LEFTPAD": operands.cache_leftpad is not None,
        # The rows of a call that sees every key all stand at the cache's end.
        "ADVANCING": not inputs.band.full,
        "WINDOW_LEFT": band.left != UNLIMITED,
        "WINDOW_RIGHT": band.right != UNLIMITED,
        "SOFTCAP": inputs.softcap > 0,
        "ALIBI": operands.alibi_slopes is not None,
        "BIAS": BIAS_NONE if bias is None else BIAS_FLOAT if bias.dtype == torch.float32 else BIAS_ELEMENT,
        "BIAS_PAIRS": bias is not None and reads_pairs(bias),
        "MASK": operands.mask is not None,
        "SINKS": operands.sinks is not None and splits <= 1,
        "DROPOUT": False,
        "LSE": lse is not None,
        "SCALE_POSITIVE": inputs.scale > 0,
        **rotary_constants(operands.rotary_cos, operands.rotary_sin, inputs.rotary_interleaved),
    }


def numbers(
    inputs: DecodeInputs, operands: DecodeOperands, out: Tensor, lse: Tensor | None
) -> dict[str, int | float]:  # fmt: skip
    """Sizes, strides and scalars by name."""
    q, k_cache, slopes = operands.q, operands.k_cache, operands.alibi_slopes
    batch, seqlen_q, heads, head_dim = q.shape
    band = _band(inputs)
    return {
        "heads_kv": k_cache.shape[2],
        "group": heads // k_cache.shape[2],
        "seqlen_q": seqlen_q,
        "new_keys": 0 if operands.k is None else operands.k.shape[1],
        "capacity": inputs.capacity,
        "pages": k_cache.shape[0],
        "head_dim": head_dim,
        "head_dim_v": operands.v_cache.shape[3],
        "rotary_positions": 0 if operands.rotary_cos is None else operands.rotary_cos.shape[0],
        "partial_rows": batch * seqlen_q * heads,
        "window_left": band.left,
        "window_right": band.right,
        "scale": inputs.scale,
        "softcap": inputs.softcap,
        "alibi_batch": slopes.stride(0) if slopes is not None and slopes.dim() == 2 else 0,
        **row_strides("q", q, varlen=False),
        **cache_strides(operands),
        **row_strides("out", out, varlen=False),
        **lse_strides("lse", lse, varlen=False),
        **matrix_strides("bias", operands.bias),
        **matrix_strides("mask", operands.mask),
    }


def _band(inputs: DecodeInputs) -> Band:
    """The band without sides that hide nothing, so that what is left fits an int."""
    return inputs.band.simplify(inputs.q.shape[1], inputs.capacity)
