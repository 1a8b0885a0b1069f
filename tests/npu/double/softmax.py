"""Attention of one sequence, forward and backward, as the fusion operators define it. All in float64."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

HIDDEN = -float(torch.finfo(torch.float32).max)  # the score of a masked pair
LARGEST = float(torch.finfo(torch.float32).max)


@dataclass
class Sequence:
    """One sequence, or one batch entry. N query heads, their scores already scaled and with the position encoding."""

    q: Tensor  # (N, Sq, D)
    k: Tensor  # (Nkv, Skv, D)
    v: Tensor  # (Nkv, Skv, Dv)
    scale: float
    pse: Tensor | None = None  # broadcastable to (N, Sq, Skv)
    pse_before_scale: bool = True  # pse type 1; the others add after scaling
    hidden: Tensor | None = None  # bool, broadcastable to (N, Sq, Skv): True takes no part
    undefined: Tensor | None = None  # bool, broadcastable to (N, Sq): rows whose result the documents leave open
    repair: bool = False  # rows without a visible key are computed as such
    kept: Tensor | None = None  # bool (N, Sq, Skv) of dropout
    keep_prob: float = 1.0
    sink: Tensor | None = None  # (N,)

    @property
    def group(self) -> int:
        return self.q.shape[0] // self.k.shape[0]

    def scores(self) -> Tensor:
        """(N, Sq, Skv) with HIDDEN where a pair takes no part."""
        scores = self.q @ self.k.repeat_interleave(self.group, 0).transpose(-1, -2)
        if self.pse is not None and self.pse_before_scale:
            scores = (scores + self.pse) * self.scale
        elif self.pse is not None:
            scores = scores * self.scale + self.pse
        else:
            scores = scores * self.scale
        return scores if self.hidden is None else scores.masked_fill(self.hidden, HIDDEN)

    def dead(self) -> Tensor:
        """(N, Sq): rows without a visible key."""
        if self.hidden is None:
            return torch.zeros(self.q.shape[:2], dtype=torch.bool, device=self.q.device)
        return self.hidden.all(-1).expand(self.q.shape[:2])


def forward(sequence: Sequence) -> tuple[Tensor, Tensor, Tensor]:
    """(out (N, Sq, Dv), max (N, Sq), sum (N, Sq)).

    A row without a visible key is not looked for: its scores are all HIDDEN, so it averages v uniformly. Only with
    ``repair`` its out is 0 and its max and sum are such that every probability computed from them is 0.
    """
    scores = sequence.scores()
    largest = scores.amax(-1)
    if sequence.sink is not None:
        largest = torch.maximum(largest, sequence.sink[:, None])
    weights = torch.exp(scores - largest[..., None])
    total = weights.sum(-1)
    if sequence.sink is not None:
        total = total + torch.exp(sequence.sink[:, None] - largest)
    probabilities = _dropped(weights / total[..., None], sequence)
    out = probabilities @ sequence.v.repeat_interleave(sequence.group, 0)
    if sequence.repair:
        dead = sequence.dead()
        out = out.masked_fill(dead[..., None], 0.0)
        if sequence.sink is None:
            largest, total = largest.masked_fill(dead, HIDDEN), total.masked_fill(dead, LARGEST)
    if sequence.undefined is not None:
        rows = sequence.undefined.expand(out.shape[:2])
        out = out.masked_fill(rows[..., None], torch.nan)
    return out, largest, total


@dataclass
class Gradients:
    dq: Tensor
    dk: Tensor
    dv: Tensor
    dsink: Tensor | None


def backward(sequence: Sequence, dout: Tensor, out: Tensor, largest: Tensor, total: Tensor) -> Gradients:
    """From what forward has saved: probabilities are exp(score - max) / sum and nothing is looked for again."""
    probabilities = torch.exp(sequence.scores() - largest[..., None]) / total[..., None]
    if sequence.undefined is not None:
        probabilities = probabilities.masked_fill(sequence.undefined[..., None], torch.nan)
    v = sequence.v.repeat_interleave(sequence.group, 0)
    dv = _dropped(probabilities, sequence).transpose(-1, -2) @ dout
    dprobabilities = _dropped(dout @ v.transpose(-1, -2), sequence)
    mean = (dout * out).sum(-1)
    dscores = probabilities * (dprobabilities - mean[..., None])
    scaled = dscores * sequence.scale
    dq = scaled @ sequence.k.repeat_interleave(sequence.group, 0)
    dk = scaled.transpose(-1, -2) @ sequence.q
    dsink = None
    if sequence.sink is not None:
        dsink = -(torch.exp(sequence.sink[:, None] - largest) / total * mean).sum(-1)
    return Gradients(dq, _of_groups(dk, sequence.group), _of_groups(dv, sequence.group), dsink)


def _dropped(values: Tensor, sequence: Sequence) -> Tensor:
    if sequence.kept is None:
        return values
    return (values / sequence.keep_prob).masked_fill(~sequence.kept, 0.0)


def _of_groups(gradient: Tensor, group: int) -> Tensor:
    """(N, S, D) of query heads summed to (Nkv, S, D)."""
    return gradient.unflatten(0, (-1, group)).sum(1)
