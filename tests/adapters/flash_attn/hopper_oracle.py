"""What flash-attn 3's calls mean, one sequence at a time and key by key, for the tests of its names."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rules:
    """The options of a call that change its result."""

    scale: float
    causal: bool = False
    window: tuple[int, int] = (-1, -1)
    chunk: int = 0
    softcap: float = 0.0

    def sees(self, row: int, rows: int, key: int, keys: int) -> bool:
        """Whether a row sees a key, by their positions in a sequence with so many rows and keys."""
        position = row + keys - rows
        left, right = self.window[0], 0 if self.causal else self.window[1]
        if (left >= 0 and key < position - left) or (right >= 0 and key > position + right):
            return False
        return not self.chunk or math.floor(position / self.chunk) == key // self.chunk


def attend(
    q: Tensor, k: Tensor, v: Tensor, qv: Tensor | None, rules: Rules, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """(out, lse) in ``dtype`` of q (M, H, D), k (N, Hk, D), v (N, Hk, Dv) and qv (M, H, Dv): (M, H, Dv) and (H, M)."""
    rows, keys, group = q.shape[0], k.shape[0], q.shape[1] // k.shape[1]
    q, k, v = q.to(dtype), k.to(dtype).repeat_interleave(group, 1), v.to(dtype).repeat_interleave(group, 1)
    scores = torch.einsum("ihd,jhd->hij", q, k)
    if qv is not None:
        scores = scores + torch.einsum("ihd,jhd->hij", qv.to(dtype), v)
    scores = scores * rules.scale
    if rules.softcap > 0:
        scores = rules.softcap * torch.tanh(scores / rules.softcap)
    visible = torch.tensor([[rules.sees(i, rows, j, keys) for j in range(keys)] for i in range(rows)], dtype=torch.bool)
    scores = scores.masked_fill(~visible.view(rows, keys), -math.inf)
    lse = torch.logsumexp(scores, -1)
    weights = torch.exp(scores - lse.masked_fill(lse == -math.inf, 0.0).unsqueeze(-1))
    return torch.einsum("hij,jhd->ihd", weights, v), lse


def rotated(x: Tensor, cos: Tensor, sin: Tensor, positions: list[int], interleaved: bool) -> Tensor:
    """x (S, H, D), pair by pair, at its tokens' positions; float32 arithmetic, rounded to x's dtype."""
    result, pairs = x.float().clone(), cos.shape[1]
    for token, position in enumerate(positions):
        for pair in range(pairs):
            first, second = (2 * pair, 2 * pair + 1) if interleaved else (pair, pair + pairs)
            a, b = x[token, :, first].float(), x[token, :, second].float()
            c, s = cos[position, pair].float(), sin[position, pair].float()
            result[token, :, first], result[token, :, second] = a * c - b * s, a * s + b * c
    return result.to(x.dtype)
