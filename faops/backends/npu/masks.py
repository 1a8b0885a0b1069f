"""Which pairs of query row and key an operator leaves out: bands by sparse_mode, boolean masks by atten_mask.

In an atten_mask True means hidden, the opposite of faops and PyTorch. Without an atten_mask the operators silently
ignore sparse_mode and both sides of the band, so one is given whenever something is to be hidden.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from faops.problem import UNLIMITED, AttentionProblem, Band

COMPRESSED_SIZE = 2048  # rows and columns of the one mask that stands for all triangular ones
NO_MASK, ALL_MASK, CAUSAL, BAND = 0, 1, 3, 4  # sparse_mode; 3 and 4 are aligned bottom-right
ENCODINGS = ("compressed", "full")

# A mask that would take more memory is refused: 1 GiB hides 32768 × 32768 pairs once.
MASK_LIMIT = 1 << 30


@functools.lru_cache(maxsize=64)
def compressed(device: torch.device) -> Tensor:
    """The mask (2048, 2048) that sparse_mode 2, 3, 4, 7 and 8 want; made once for a device and kept."""
    with torch.inference_mode(False):
        square = torch.ones(COMPRESSED_SIZE, COMPRESSED_SIZE, dtype=torch.bool, device=device)
        return square.triu_(diagonal=1)


@functools.lru_cache(maxsize=2)
def outside(band: Band, seqlen_q: int, seqlen_k: int, device: torch.device) -> Tensor:
    """The pairs that ``band`` hides, bool (M, N), True = hidden. Depends on lengths alone, so the last two are kept."""
    with torch.inference_mode(False):
        rows = torch.arange(seqlen_q, device=device).unsqueeze(1) + (seqlen_k - seqlen_q)
        ahead = torch.arange(seqlen_k, device=device) - rows
        hidden = torch.zeros(seqlen_q, seqlen_k, dtype=torch.bool, device=device)
        if band.left != UNLIMITED:
            hidden |= ahead < -band.left
        if band.right != UNLIMITED:
            hidden |= ahead > band.right
        return hidden


def dead_rows(seqlen_q: int, seqlen_k: int, band: Band) -> int:
    """How many rows see no key. A band that is aligned bottom-right leaves the first rows without one, never others."""
    if seqlen_k == 0:
        return seqlen_q
    if band.right == UNLIMITED:
        return 0
    return min(seqlen_q, max(0, seqlen_q - seqlen_k - band.right))


def of_band(band: Band, seqlen_q: int, seqlen_k: int, device: torch.device, encoding: str) -> dict[str, Any]:
    """The keywords by which an operator hides what lies outside of ``band``, whose rows all see a key.

    With packed sequences the lengths are the longest ones.
    """
    if band.full:
        return {"sparse_mode": NO_MASK}
    left = seqlen_k if band.left == UNLIMITED else band.left
    right = seqlen_q if band.right == UNLIMITED else band.right
    if encoding == "full":
        return _of_full_band(band, left, right, seqlen_q, seqlen_k, device)
    if band.causal:
        return {"sparse_mode": CAUSAL, "atten_mask": compressed(device)}
    return {"sparse_mode": BAND, "atten_mask": compressed(device), "pre_tokens": left, "next_tokens": right}


def _of_full_band(
    band: Band, left: int, right: int, seqlen_q: int, seqlen_k: int, device: torch.device
) -> dict[str, Any]:
    """Mode 0 counts both sides from the top left corner, and skips blocks of keys by them. A band that lies right of
    that corner's diagonal has a negative left side, which not every length allows: there all blocks are computed.
    """
    mask, shift = outside(band, seqlen_q, seqlen_k, device), seqlen_k - seqlen_q
    if left < shift:
        return {"sparse_mode": ALL_MASK, "atten_mask": mask}
    return {"sparse_mode": NO_MASK, "atten_mask": mask, "pre_tokens": left - shift, "next_tokens": right + shift}


def of_mask(hidden: Tensor) -> dict[str, Any]:
    """The keywords for a materialised mask, True = hidden."""
    return {"sparse_mode": ALL_MASK, "atten_mask": hidden}


def hide(mask: Tensor, band: Band, batch: int, heads: int, seqlen_q: int, seqlen_k: int) -> Tensor:
    """``mask`` (True = visible, broadcastable to (B, H, M, N)) and ``band`` as one mask with True = hidden.

    Of the broadcast shapes an operator takes (B, H, M, N), (B, 1, M, N) and (1, 1, M, N).
    """
    if mask.shape[1] > 1:
        shape = (batch, heads, seqlen_q, seqlen_k)
    else:
        shape = (mask.shape[0], 1, seqlen_q, seqlen_k)
    hidden = mask.logical_not()
    if not band.full:
        hidden = hidden | outside(band, seqlen_q, seqlen_k, mask.device)
    return hidden.expand(shape).contiguous()


def mask_bytes(problem: AttentionProblem) -> int:
    """Bytes of the mask that :func:`hide` makes for ``problem``; 0 without a mask."""
    if not problem.mask:
        return 0
    planes = 1
    if "h" in problem.mask:
        planes = problem.batch * problem.heads_q
    elif "b" in problem.mask:
        planes = problem.batch
    return planes * problem.seqlen_q * problem.seqlen_k
