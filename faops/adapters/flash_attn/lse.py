"""lse as flash-attn 2 returns it, from that of faops and back.

It is +inf on a row without a key, where that of faops is -inf. Where flash-attn's kernel takes its path for plain
causal attention (right window 0, no left one) it adds ``slope * j`` to a score for ALiBi in place of
``-slope * (i + N - M - j)``: the softmax is the same, and lse is larger by ``slope * (i + N - M)``, the shift here.
"""

from __future__ import annotations

import torch
from torch import Tensor

from faops.adapters.flash_attn.conventions import Options
from faops.adapters.flash_attn.ragged import Places


def shifting_slopes(options: Options, seqlen_k: int) -> Tensor | None:
    """The ALiBi slopes, if flash-attn's kernel runs its causal path, where they shift lse; else None.

    ``seqlen_k`` is what its host code compares the window with: N, the longest N, or the capacity of a cache.
    """
    left, right = options.window
    runs_causal = (left < 0 or left >= seqlen_k) and (options.causal or right == 0)
    return options.alibi_slopes if runs_causal else None


def flash_lse(lse: Tensor, shift: Tensor | None) -> Tensor:
    """flash-attn's lse from that of faops."""
    if shift is not None:
        lse = lse + shift
    return torch.where(lse == -torch.inf, torch.inf, lse)


def plain_lse(lse: Tensor, shift: Tensor | None) -> Tensor:
    """The lse of faops from flash-attn's."""
    lse = torch.where(lse == torch.inf, -torch.inf, lse)
    return lse if shift is None else lse - shift


def dense_shift(slopes: Tensor | None, seqlen_q: int, seqlen_k: int | Tensor) -> Tensor | None:
    """slope * (i + N - M), float32 (B or 1, H, M). ``seqlen_k`` is N, or a tensor (B,) of them."""
    if slopes is None:
        return None
    keys = seqlen_k[:, None, None] if isinstance(seqlen_k, Tensor) else seqlen_k
    rows = torch.arange(seqlen_q, device=slopes.device)
    return slopes.view(-1, slopes.shape[-1], 1) * (rows + keys - seqlen_q)


def varlen_shift(slopes: Tensor | None, total_q: int, cu_seqlens_q: Tensor, lengths_k: Tensor) -> Tensor | None:
    """slope * (i + N - M) of packed rows, (H, total_q); ``lengths_k`` is (B,). Rows of no sequence get anything."""
    if slopes is None:
        return None
    places = Places.read(cu_seqlens_q, total_q)
    distance = places.row + (lengths_k - places.lengths)[places.sequence]
    return (slopes[places.sequence].T if slopes.dim() == 2 else slopes[:, None]) * distance
