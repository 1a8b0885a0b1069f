"""What the forward and backward kernels are compiled for, read off a call."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from faops.inputs import AttentionInputs
from faops.operands import Operands, band_of
from faops.problem import UNLIMITED
from faops.registry import Config

Constant = int | float | bool | str | None

LEAST_WIDTH = 16  # of a matrix that tl.dot takes
LARGEST_TILE = 256  # rows or keys
FLOAT32_PRODUCTS = {"highest": "ieee", "high": "tf32", "medium": "tf32"}  # of torch's float32_matmul_precision


def width(head_dim: int) -> int:
    """The power of two that a head dim is padded to inside a kernel."""
    return max(LEAST_WIDTH, 1 << (head_dim - 1).bit_length())


def precision(dtype: torch.dtype) -> str:
    """How tl.dot multiplies: float32 as tf32 only where torch was told to do so too."""
    return FLOAT32_PRODUCTS[torch.get_float32_matmul_precision()] if dtype == torch.float32 else "ieee"


def is_wide(rows: Iterable[Tensor], matrices: Iterable[Tensor | None] = ()) -> bool:
    """Whether an offset inside one tile may exceed 32 bits: by the rows of q, k, v and their like, or by the rows and
    keys of a bias or mask. Everything else that moves a pointer is computed in 64 bits anyway.
    """
    strides = [tensor.stride(-3) for tensor in rows]
    for matrix in matrices:
        if matrix is not None:
            strides += [stride for size, stride in zip(matrix.shape[2:], matrix.stride()[2:]) if size > 1]
    return max(strides) > (2**31 - 1) // LARGEST_TILE


def constants(inputs: AttentionInputs, operands: Operands) -> dict[str, Constant]:
    """The constants that every forward and backward kernel has; tile sizes are not among them."""
    q, v = operands.q, operands.v
    band = band_of(inputs)
    return {
        "HEAD_DIM": q.shape[-1],
        "HEAD_DIM_V": v.shape[-1],
        "WIDTH": width(q.shape[-1]),
        "WIDTH_V": width(v.shape[-1]),
        "VARLEN": operands.cu_seqlens_q is not None,
        "WINDOW_LEFT": band.left != UNLIMITED,
        "WINDOW_RIGHT": band.right != UNLIMITED,
        "SOFTCAP": inputs.softcap > 0,
        "DROPOUT": inputs.dropout_p > 0,
        "PRECISION": precision(q.dtype),
        "WIDE": is_wide((q, operands.k, v, operands.out), (operands.bias, operands.mask)),
    }


def folds_scale(softcap: float, scale: float, alibi_slopes: Tensor | None, bias: Tensor | None) -> bool:
    """Whether the scale may wait for the multiplication before exp2: it is positive and the scores get nothing else."""
    return softcap == 0 and alibi_slopes is None and bias is None and scale > 0


def options(config: Config) -> dict[str, int | bool]:
    """What the compiler is told."""
    return {"num_warps": config.integer("num_warps"), "num_stages": config.integer("num_stages")}


def as_bytes(operands: Operands) -> Operands:
    """The mask as bytes: a pointer to single bits is no use to a kernel."""
    return operands if operands.mask is None else operands._replace(mask=operands.mask.view(torch.uint8))
