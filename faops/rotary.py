"""Rotary position embedding of queries and keys."""

from __future__ import annotations

import torch
from torch import Tensor


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor, interleaved: bool) -> Tensor:
    """``x`` with the first R of its D dims rotated in pairs by the angles of its positions.

    ``x`` is (B, S, H, D); ``cos`` and ``sin`` are (P, R / 2) with R <= D; ``positions`` is an integer tensor (B, S)
    with values in [0, P). Pairs are dims (0, 1), (2, 3), ... when ``interleaved``, else (0, R/2), (1, R/2 + 1), ...
    Computed in float32 (float64 for float64 ``x``) and rounded once to the dtype of ``x``; a new tensor is returned.
    """
    return rotate(x, *angles_at(cos, sin, positions, x.dtype), interleaved)


def angles_at(cos: Tensor, sin: Tensor, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos and sin of (B, S) positions, each (B, S, 1, R / 2), in the dtype that ``dtype`` is rotated in."""
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    shape = (*positions.shape, 1, cos.shape[1])
    places = positions.reshape(-1)
    found = (table.index_select(0, places).to(compute).view(shape) for table in (cos, sin))
    return next(found), next(found)


def rotate(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """``x`` (B, S, H, D) turned by the angles of :func:`angles_at`; a new tensor."""
    rotated = 2 * cos.shape[-1]
    pairs = x[..., :rotated].to(cos.dtype)
    if interleaved:
        first, second = pairs[..., 0::2], pairs[..., 1::2]
    else:
        first, second = pairs.chunk(2, dim=-1)
    turned = (first * cos - second * sin, first * sin + second * cos)
    if interleaved:
        result = torch.stack(turned, dim=-1).flatten(-2)
    else:
        result = torch.cat(turned, dim=-1)
    result = result.to(x.dtype)
    return result if rotated == x.shape[-1] else torch.cat([result, x[..., rotated:]], dim=-1)
