"""Random calls of flash-attn's functions, and what they must return: in float64, written down directly."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor


def randn(*shape: int, dtype: torch.dtype = torch.float64, grad: bool = False) -> Tensor:
    return torch.randn(*shape, dtype=dtype, requires_grad=grad)


def random_options(heads: int, batch: int, chooser: Any = random, **fixed: Any) -> dict[str, Any]:
    """Options that all calls of flash-attn 2 but the cache's take, at random; dropout is left off.

    In a property test ``chooser`` must be Hypothesis's, which seeds the module ``random`` alike for every example.
    """
    window = (chooser.randint(-1, 6), chooser.randint(-1, 6))
    slopes = chooser.choice([None, random_slopes(heads), random_slopes(batch, heads)])
    return {
        "softmax_scale": chooser.choice([None, 0.3]),
        "causal": chooser.random() < 0.5,
        "window_size": chooser.choice([(-1, -1), window]),
        "softcap": chooser.choice([0.0, 2.0]),
        "alibi_slopes": slopes,
        **fixed,
    }


def random_slopes(*shape: int) -> Tensor:
    """ALiBi slopes whose products with a distance are exact in float32."""
    return torch.randint(1, 9, shape) / 16


def expected(
    q: Tensor, k: Tensor, v: Tensor, keep: Tensor | None = None, limit: int | None = None, **options: Any
) -> tuple[Tensor, Tensor]:
    """(out, softmax_lse) of flash-attn 2 for q (B, M, H, D) and k, v (B, N, Hk, D), with gradients.

    ``keep``, bool (B, H, M, N), is the dropout pattern for ``dropout_p``. As its kernel does, ALiBi adds slope * j
    where only the causal limit applies, and -slope * abs(i + N - M - j) elsewhere; lse of a row without a key is +inf.
    A left window counts as none from ``limit`` keys on, N by default.
    """
    M, N, heads = q.shape[1], k.shape[1], q.shape[2]
    k, v = (x.repeat_interleave(heads // x.shape[2], dim=2) for x in (k, v))
    scale, softcap = options.get("softmax_scale"), options.get("softcap", 0.0)
    left, right = options.get("window_size", (-1, -1))
    right = 0 if options.get("causal") else right
    scores = torch.einsum("bihd,bjhd->bhij", q, k) * (q.shape[3] ** -0.5 if scale is None else scale)
    if softcap > 0:
        scores = softcap * torch.tanh(scores / softcap)
    place, key = torch.arange(M)[:, None] + N - M, torch.arange(N)[None, :]
    if (slopes := options.get("alibi_slopes")) is not None:
        slopes = (slopes if slopes.dim() == 2 else slopes[None])[:, :, None, None]
        causal_path = right == 0 and (left < 0 or left >= (N if limit is None else limit))
        scores = scores + slopes * (key if causal_path else -(place - key).abs())
    hidden = torch.zeros(M, N, dtype=torch.bool)
    if left >= 0:
        hidden |= key < place - left
    if right >= 0:
        hidden |= key > place + right
    dead = hidden.all(-1)
    probabilities = torch.softmax(scores.masked_fill(hidden, -1e30), -1).masked_fill(hidden, 0.0)
    lse = torch.logsumexp(scores.masked_fill(hidden, -torch.inf), -1).masked_fill(dead, torch.inf)
    if keep is not None:
        probabilities = probabilities * keep / (1 - options["dropout_p"])
    return torch.einsum("bhij,bjhd->bihd", probabilities, v), lse


def expected_varlen(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lengths_q: list[int],
    lengths_k: list[int],
    limit: int | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor]:
    """The same for packed sequences: out (total_q, H, D), lse (H, total_q). ``limit`` is the longest by default."""
    slopes = options.pop("alibi_slopes", None)
    outs, lses = [], []
    for b, (rows, keys, values) in enumerate(zip(q.split(lengths_q), k.split(lengths_k), v.split(lengths_k))):
        own = slopes if slopes is None or slopes.dim() == 1 else slopes[b : b + 1]
        longest = max(lengths_k) if limit is None else limit
        out, lse = expected(rows[None], keys[None], values[None], limit=longest, alibi_slopes=own, **options)
        outs.append(out[0])
        lses.append(lse[0])
    return torch.cat(outs), torch.cat(lses, dim=1)


def offsets(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)


def close(ours: Tensor, wanted: Tensor) -> None:
    """Equal up to the rounding of float64, or of the float32 that softmax and lse of other dtypes are in."""
    tolerance = 1e-9 if ours.dtype == torch.float64 else 2e-5
    assert ours.shape == wanted.shape
    torch.testing.assert_close(ours.double(), wanted.double(), rtol=tolerance, atol=tolerance, equal_nan=False)
