"""What the backward kernels share: the probabilities of a tile made again from lse, and the gradient of its scores."""

from __future__ import annotations

import triton
import triton.language as tl

from faops.backends.triton.kernels.scores import LOG2E, finish_scores


@triton.jit
def load_row_values(lse, delta, m, row, seqlen_q, EDGE: tl.constexpr):
    """(lse in units of log 2, delta) of a block of rows; +inf and 0 where there is no row or a row has no key.

    With +inf every probability of the row is 0, whatever its scores are.
    """
    if EDGE:
        inside = row + m < seqlen_q
        row_lse = tl.load(lse + m, mask=inside, other=float("inf"))
        row_delta = tl.load(delta + m, mask=inside, other=0.0)
    else:
        row_lse = tl.load(lse + m)
        row_delta = tl.load(delta + m)
    return tl.where(row_lse == float("-inf"), float("inf"), row_lse * LOG2E), row_delta


@triton.jit
def tile_gradient(
    products, dweights, lse, delta, keep, keep_scale, m, n, row, key, seqlen_q, seqlen_k, scale, softcap, slope,
    bias, bias_row, bias_key, mask, mask_row, mask_key, window_left, window_right,
    SOFTCAP: tl.constexpr, ALIBI: tl.constexpr, DROPOUT: tl.constexpr, WINDOW_LEFT: tl.constexpr,
    WINDOW_RIGHT: tl.constexpr, EDGE: tl.constexpr,
):  # fmt: skip
    """From q · k and dout · v of a tile to (weights of v, gradient of biased scores, gradient of the products / scale).

    ``lse`` and ``delta`` broadcast to the tile as ``m`` does; ``keep`` is its dropout mask or, without dropout, unread.
    """
    scores, capped = finish_scores(
        products, m, n, row, key, seqlen_q, seqlen_k, scale, softcap, slope,
        bias, bias_row, bias_key, mask, mask_row, mask_key, window_left, window_right,
        SOFTCAP, ALIBI, WINDOW_LEFT, WINDOW_RIGHT, EDGE, True,
    )  # fmt: skip
    weights = tl.exp2(scores - lse)
    if DROPOUT:
        dscores = weights * (tl.where(keep != 0, dweights * keep_scale, 0.0) - delta)
        weights = tl.where(keep != 0, weights * keep_scale, 0.0)
    else:
        dscores = weights * (dweights - delta)
    if SOFTCAP:
        return weights, dscores, dscores * (1 - capped * capped)
    else:
        return weights, dscores, dscores
