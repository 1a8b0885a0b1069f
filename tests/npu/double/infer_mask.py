"""Which pairs the inference operators hide, their known silent mistakes included."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from tests.npu.double.infer import InferCall

SEEN_OF_ONE_ROW = 512  # keys of a (1, 1, 1, S) mask that are looked at


def hidden_pairs(call: InferCall, b: int) -> Tensor | None:
    """Pairs of sequence b without part in it, (1, rows, keys); None without a mask."""
    if call.mask is None:
        return None
    rows, keys = call.lengths_q[b], call.lengths_k[b]
    down, across = _indices(call, rows, keys)
    if call.decodes or call.sparse_mode in (0, 1):
        hidden = _full(call, b, rows, keys)
        if tuple(call.mask.shape[:3]) == (1, 1, 1) and call.mask.dim() == 4:
            hidden = hidden & (across < SEEN_OF_ONE_ROW)  # known: silently ignored further on
        return hidden
    from_bottom = across - (down + keys - rows)
    if call.sparse_mode == 2:
        return (across > down)[None]
    if call.sparse_mode == 3:
        return (from_bottom > 0)[None]
    return ((from_bottom < -call.before) | (from_bottom > call.after))[None]


def undefined_rows(call: InferCall, b: int) -> Tensor | None:
    """Rows (1, rows) for which a full mask shows a pair that pre_tokens and next_tokens leave out."""
    if call.mask is None or call.decodes or call.sparse_mode != 0:
        return None
    rows, keys = call.lengths_q[b], call.lengths_k[b]
    down, across = _indices(call, rows, keys)
    outside = (across - down < -call.before) | (across - down > call.after)
    return (~_full(call, b, rows, keys) & outside).any(-1)


def _full(call: InferCall, b: int, rows: int, keys: int) -> Tensor:
    assert call.mask is not None
    mask = call.mask.bool()
    if call.decodes and mask.dim() == 2:  # (B, S)
        return mask[b, None, None, :keys]
    if call.decodes and mask.dim() == 3 and call.operator == "npu_incre_flash_attention":  # (B, 1, S)
        return mask[b, None, :, :keys]
    if mask.dim() == 2:
        return mask[None, :rows, :keys]
    if mask.dim() == 3:
        return mask[b if mask.shape[0] > 1 else 0, None, :rows, :keys]
    return mask[b if mask.shape[0] > 1 else 0, :, :rows, :keys]


def _indices(call: InferCall, rows: int, keys: int) -> tuple[Tensor, Tensor]:
    device = call.query.device
    return torch.arange(rows, device=device)[:, None], torch.arange(keys, device=device)[None, :]
