"""What hides or biases single scores in inference: masks, biases, and the window of a call for one row.

The inference operators take two tensors for it, and neither in every form:

- ``atten_mask``, bool, True hidden, (B | 1, 1, M, N): for calls with several rows. For one row it is not used: the
  operator accepts (1, 1, 1, N) and ignores it past the 512th key.
- ``pse_shift``, in q's dtype, (B | 1, H, M, N), added to the scaled scores: with fewer heads it is accepted and wrong.
  It holds a finite number where a key is hidden, since -inf in it has been seen to give NaN.

A row that sees no key is shown all of them, since operators refuse such rows or fill them with anything; its result is
overwritten afterwards (:func:`settle`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from faops.problem import UNLIMITED, AttentionProblem, Band

# A bias or mask that the operator wants expanded to every head and row may take this much memory.
MOST_EXPANDED_BYTES = 256 << 20


class Range(NamedTuple):
    """The keys of a sequence that are looked at, [low, high), and where its keys end: the band counts from there."""

    low: int
    high: int
    end: int


@dataclass(slots=True)
class Scores:
    """``shift`` or ``hidden`` as the operators take them, and the rows without a key, bool (B | 1, H | 1, M)."""

    shift: Tensor | None
    hidden: Tensor | None
    dead: Tensor


def expansion(problem: AttentionProblem) -> str:
    """Why a bias or mask of ``problem`` cannot be passed; "" if it can, or there is none."""
    if not (problem.bias or problem.mask):
        return ""
    patterns = problem.bias + problem.mask
    batch = problem.batch if "b" in patterns or problem.op == "decode" else 1
    rows = batch * problem.seqlen_q * problem.seqlen_k
    shifted = bool(problem.bias) or problem.seqlen_q == 1 or "h" in problem.mask
    needed = rows * problem.heads_q * problem.torch_dtype.itemsize if shifted else rows
    if needed <= MOST_EXPANDED_BYTES:
        return ""
    what = "bias" if problem.bias else "mask"
    return (
        f"the {what} would be expanded to {needed >> 20} MiB for the operator, of at most {MOST_EXPANDED_BYTES >> 20}"
    )


def scores_of(
    q: Tensor, ranges: list[Range], starts: list[int], width: int, band: Band, mask: Tensor | None, bias: Tensor | None
) -> Scores:
    """Everything that hides or biases the scores of rows q (B, M, H, D) and keys [start, start + width).

    mask and bias (4-D) are indexed by key position.
    """
    batch, seqlen_q, heads, _ = q.shape
    visible = _visible(q, ranges, starts, width, band)
    if mask is not None:
        visible = visible & columns(mask, starts, width)
    if bias is not None:
        bias = columns(bias, starts, width)
        visible = visible & (bias > -math.inf)
    visible = visible.expand(-1, -1, seqlen_q, -1)
    dead = ~visible.any(-1)
    hidden = ~(visible | dead.unsqueeze(-1))
    if bias is None and seqlen_q > 1 and hidden.shape[1] == 1:
        return Scores(None, hidden.contiguous(), dead)
    lowest = torch.finfo(q.dtype).min
    added = q.new_zeros(1) if bias is None else bias.to(q.dtype).clamp(min=lowest)
    alike = hidden.shape[0] == 1 and (bias is None or bias.shape[0] == 1)
    shape = (1 if alike else batch, heads, seqlen_q, width)
    shift = torch.where(hidden.expand(shape), lowest, added.expand(shape))
    return Scores(shift, None, dead)


def _visible(q: Tensor, ranges: list[Range], starts: list[int], width: int, band: Band) -> Tensor:
    """Which keys the band and the sequences' ranges show to each row, (B | 1, 1, M | 1, width)."""
    seqlen_q = q.shape[1]
    if len(set(ranges)) == 1 and len(set(starts)) == 1:
        ranges, starts = ranges[:1], starts[:1]
    numbers = torch.tensor([[*one, start] for one, start in zip(ranges, starts)], dtype=torch.int32).to(q.device)
    low, high, end, start = (numbers[:, column, None, None, None] for column in range(4))  # each (B | 1, 1, 1, 1)
    position = start + torch.arange(width, dtype=torch.int32, device=q.device)
    visible = (position >= low) & (position < high)
    own = end - seqlen_q + torch.arange(seqlen_q, dtype=torch.int32, device=q.device)[:, None]
    if band.left != UNLIMITED:
        visible = visible & (position >= own - band.left)
    if band.right != UNLIMITED:
        visible = visible & (position <= own + band.right)
    return visible


def columns(matrix: Tensor, starts: list[int], width: int) -> Tensor:
    """``matrix`` (B | 1, H | 1, M | 1, capacity | 1) at the key positions [start, start + width) of each sequence.

    Positions behind the capacity hold any of its values.
    """
    capacity = matrix.shape[3]
    if capacity == 1:
        return matrix
    if len(set(starts)) == 1 and starts[0] + width <= capacity:
        return matrix[..., starts[0] : starts[0] + width]
    batch = len(starts)
    wanted = torch.tensor(starts)[:, None] + torch.arange(width)
    index = wanted.clamp(max=capacity - 1).view(batch, 1, 1, width).to(matrix.device)
    found: Tensor = matrix.expand(batch, -1, -1, -1).gather(3, index.expand(batch, *matrix.shape[1:3], width))
    return found


def settle(out: Tensor, lse: Tensor | None, dead: Tensor | None) -> None:
    """out 0 and lse -inf in the rows that see no key, whatever the operator left there; in place.

    out (B, M, H, D), lse (B, H, M), dead (B | 1, H | 1, M).
    """
    if dead is None:
        return
    out.masked_fill_(dead.transpose(1, 2).unsqueeze(-1), 0.0)
    if lse is not None:
        lse.masked_fill_(dead, -math.inf)
