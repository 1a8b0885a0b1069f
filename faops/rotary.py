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
    compute = torch.float64 if x.dtype == torch.float64 else torch.float32
    rotated = 2 * cos.shape[1]
    c = cos[positions].to(compute).unsqueeze(2)  # (B, S, 1, R / 2)
    s = sin[positions].to(compute).unsqueeze(2)
    pairs = x[..., :rotated].to(compute)
    if interleaved:
        first, second = pairs[..., 0::2], pairs[..., 1::2]
    else:
        first, second = pairs.chunk(2, dim=-1)
    turned = (first * c - second * s, first * s + second * c)
    if interleaved:
        result = torch.stack(turned, dim=-1).flatten(-2)
    else:
        result = torch.cat(turned, dim=-1)
    return torch.cat([result.to(x.dtype), x[..., rotated:]], dim=-1)
