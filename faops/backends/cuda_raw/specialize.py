"""From a call's tensors to a specialised kernel and the values of its parameter struct."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from faops.backends.cuda_raw.params import FORWARD, Struct
from faops.backends.cuda_raw.source import Constant, Source, make_source
from faops.backends.cuda_raw.tiles import ELEMENT, WARP, Family, padded, shared_bytes
from faops.inputs import AttentionInputs
from faops.operands import Operands, band_of, numbers
from faops.problem import UNLIMITED
from faops.registry import Config

VECTOR_BYTES = (16, 8, 4, 2)  # what device memory may be read in
BIAS_NONE, BIAS_ELEMENT, BIAS_FLOAT = 0, 1, 2


@dataclass(frozen=True)
class Specialised:
    """One kernel for one kind of call."""

    source: Source
    grid: int
    shared_bytes: int
    template: bytes  # the parameter struct with every pointer null
    struct: Struct

    def packed(self, tensors: Iterable[Tensor | None]) -> bytearray:
        """The parameter struct of one call; ``tensors`` in the order of the struct's pointers."""
        buffer = bytearray(self.template)
        self.struct.point(buffer, [0 if tensor is None else tensor.data_ptr() for tensor in tensors])
        return buffer


def specialise(family: Family, inputs: AttentionInputs, operands: Operands, config: Config) -> Specialised:
    """The kernel of ``family`` and ``config`` for this call."""
    q, v = operands.q, operands.v
    rows = inputs.max_seqlen_q
    row_tiles = max(1, -(-rows // config.integer("tile_m")))
    varlen = operands.cu_seqlens_q is not None
    grid = row_tiles * q.shape[-2] * inputs.batch + (q.shape[-2] if varlen else 0)
    threads = config.integer("warps") * WARP
    source = make_source(family.name, constants(family, inputs, operands, config), FORWARD.header(), threads)
    shape = {"row_tiles": row_tiles, "head_dim": q.shape[-1], "head_dim_v": v.shape[-1]}
    template = FORWARD.pack({**numbers(inputs, operands), **shape})
    shared = shared_bytes(family, config, q.shape[-1], v.shape[-1])
    return Specialised(source, grid, shared, bytes(template), FORWARD)


def constants(family: Family, inputs: AttentionInputs, operands: Operands, config: Config) -> dict[str, Constant]:
    """What the kernel is compiled for."""
    q, k, v, out, bias = operands.q, operands.k, operands.v, operands.out, operands.bias
    head_dim, head_dim_v = q.shape[-1], v.shape[-1]
    bias_kind = BIAS_NONE if bias is None else BIAS_FLOAT if bias.dtype == torch.float32 else BIAS_ELEMENT
    return {
        "TILE_M": config.integer("tile_m"),
        "TILE_N": config.integer("tile_n"),
        "WARPS": config.integer("warps"),
        "KEY_WARPS": 1,
        "STAGES": config.integer("stages"),
        "Q_IN_REGISTERS": bool(config["q_in_registers"]),
        "WIDTH": padded(head_dim),
        "WIDTH_V": padded(head_dim_v),
        "FULL_WIDTH": head_dim == padded(head_dim),
        "FULL_WIDTH_V": head_dim_v == padded(head_dim_v),
        "BFLOAT16": q.dtype == torch.bfloat16,
        "MMA_DEPTH": family.mma_depth,
        "COPY_BYTES": min(vector_bytes(q), vector_bytes(k), vector_bytes(v)),
        "OUT_VECTORS": vector_bytes(out) == VECTOR_BYTES[0],
        "VARLEN": operands.cu_seqlens_q is not None,
        "WINDOW_LEFT": band_of(inputs).left != UNLIMITED,
        "WINDOW_RIGHT": band_of(inputs).right != UNLIMITED,
        "SOFTCAP": inputs.softcap > 0,
        "ALIBI": operands.alibi_slopes is not None,
        "BIAS": bias_kind,
        "BIAS_PAIRS": bias is not None and reads_pairs(bias),
        "MASK": operands.mask is not None,
        "SINKS": operands.sinks is not None,
        "DROPOUT": inputs.dropout_p > 0,
        "LSE": operands.lse is not None,
        "SCALE_POSITIVE": inputs.scale > 0,
    }


def vector_bytes(tensor: Tensor) -> int:
    """The widest access that every row of ``tensor`` allows: start, strides and width are multiples of it."""
    together = tensor.data_ptr() | tensor.shape[-1] * ELEMENT
    for size, stride in zip(tensor.shape[:-1], tensor.stride()[:-1]):
        if size > 1:
            together |= stride * ELEMENT
    return next(width for width in VECTOR_BYTES if together % width == 0)


def reads_pairs(bias: Tensor) -> bool:
    """Whether two neighbouring keys' biases lie side by side and aligned, for every even key."""
    size = bias.element_size()
    others = [stride for length, stride in zip(bias.shape[:-1], bias.stride()[:-1]) if length > 1]
    return (
        bias.shape[-1] > 1
        and bias.stride(-1) == 1
        and math.gcd(bias.data_ptr(), *(stride * size for stride in others)) % (2 * size) == 0
    )
