"""What the Ascend kernel does to a tile of scores: the band, biases, softcap, and the online softmax.

Beside :mod:`scores` and :mod:`softmax` for two reasons. The vector unit of the 910B compares float32 but no int32,
which would go element by element, so the band is found in float32. And it has exp, while exp2 costs a multiplication
more, so scores are natural logarithms here.

A tile holds the scores of BLOCK_M query rows and BLOCK_N keys; ``row`` and ``key`` are its first in their own sequence.
"""

from __future__ import annotations

import triton
import triton.language as tl

from faops.backends.triton.kernels.scores import advance, tanh

# Further than any two places of a tile are apart, and exact in float32.
FAR = tl.constexpr(1048576)


@triton.jit
def near(count):
    """An integer ``count`` of places as float32: itself, or what is further than a tile is long."""
    return tl.minimum(tl.maximum(count, -FAR), FAR).to(tl.float32)


@triton.jit
def hide_edge(
    scores, row, key, seqlen_q, seqlen_k, window_left, window_right,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, WINDOW_LEFT: tl.constexpr, WINDOW_RIGHT: tl.constexpr,
):  # fmt: skip
    """-inf for the pairs of a tile that lie outside the band or behind the last key."""
    place = row + (seqlen_k - seqlen_q) - key  # of the first row on the diagonal, from the tile's first key
    m, n = tl.arange(0, BLOCK_M).to(tl.float32), tl.arange(0, BLOCK_N).to(tl.float32)
    # A key behind the last one is further ahead than any row may look.
    n = tl.where(n < near(seqlen_k - key), n, 4.0 * FAR)[None, :]
    most = 2.0 * FAR
    if WINDOW_RIGHT:
        most = near(place + window_right)
    scores = tl.where(n <= (m + most)[:, None], scores, float("-inf"))
    if WINDOW_LEFT:
        scores = tl.where(n >= (m + near(place - window_left))[:, None], scores, float("-inf"))
    return scores


@triton.jit
def slope_down(scores, row, key, seqlen_q, seqlen_k, slope, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """ALiBi: less ``slope`` for each place between key and diagonal."""
    place = (row + (seqlen_k - seqlen_q) - key).to(tl.float32)
    m = tl.arange(0, BLOCK_M).to(tl.float32)[:, None] + place
    return scores - slope * tl.abs(m - tl.arange(0, BLOCK_N).to(tl.float32)[None, :])


@triton.jit
def load_matrix(
    start, row, key, row_stride, key_stride, seqlen_q, seqlen_k,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """The tile of a bias or mask in float32, 0 behind the last row and key.

    ROWS and KEYS tell which of the two it varies over; the other axis of what is returned has one element.
    """
    start = advance(advance(start, row, row_stride), key, key_stride)
    m, n = tl.arange(0, BLOCK_M)[:, None], tl.arange(0, BLOCK_N)[None, :]
    if ROWS and KEYS:
        found = tl.load(
            start + (m * row_stride + n * key_stride), mask=(row + m < seqlen_q) & (key + n < seqlen_k), other=0
        )
    elif ROWS:
        found = tl.load(start + m * row_stride, mask=row + m < seqlen_q, other=0)
    elif KEYS:
        found = tl.load(start + n * key_stride, mask=key + n < seqlen_k, other=0)
    else:
        found = tl.load(start)
    return found.to(tl.float32)


@triton.jit
def hide_masked(
    scores, visible, key,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """-inf where ``visible``, as :func:`load_matrix` gives it, is 0.

    There is no unit that spreads bits, so what is the same for all rows or all keys is spread as numbers: compared with
    something that differs along the other axis, and from block to block, lest it be kept in a buffer of its own.
    """
    if ROWS == KEYS:
        return tl.where(visible > 0.5, scores, float("-inf"))
    hidden = tl.where(visible > 0.5, 0.0, 4.0 * FAR)
    if KEYS:
        bound = (tl.arange(0, BLOCK_M).to(tl.float32) + near(key))[:, None]
    else:
        bound = (tl.arange(0, BLOCK_N).to(tl.float32) + near(key))[None, :]
    return tl.where(hidden <= bound, scores, float("-inf"))


@triton.jit
def finish_scores(
    products, row, key, seqlen_q, seqlen_k, scale, softcap, slope,
    bias, bias_row, bias_key, mask, mask_row, mask_key, window_left, window_right,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, SOFTCAP: tl.constexpr, ALIBI: tl.constexpr,
    BIAS_ROWS: tl.constexpr, BIAS_KEYS: tl.constexpr, MASK_ROWS: tl.constexpr, MASK_KEYS: tl.constexpr,
    WINDOW_LEFT: tl.constexpr, WINDOW_RIGHT: tl.constexpr, EDGE: tl.constexpr,
):  # fmt: skip
    """Scores of a tile from the products q · k; EDGE tiles may hold pairs outside the band or behind the last key."""
    if SOFTCAP:
        scores = tanh(products * (scale / softcap)) * softcap
    else:
        scores = products * scale
    if ALIBI:
        scores = slope_down(scores, row, key, seqlen_q, seqlen_k, slope, BLOCK_M, BLOCK_N)
    if bias is not None:
        scores += load_matrix(
            bias, row, key, bias_row, bias_key, seqlen_q, seqlen_k, BLOCK_M, BLOCK_N, BIAS_ROWS, BIAS_KEYS
        )
    if mask is not None:
        visible = load_matrix(
            mask, row, key, mask_row, mask_key, seqlen_q, seqlen_k, BLOCK_M, BLOCK_N, MASK_ROWS, MASK_KEYS
        )
        scores = hide_masked(scores, visible, key, BLOCK_M, BLOCK_N, MASK_ROWS, MASK_KEYS)
    if EDGE:
        scores = hide_edge(
            scores, row, key, seqlen_q, seqlen_k, window_left, window_right, BLOCK_M, BLOCK_N, WINDOW_LEFT, WINDOW_RIGHT
        )
    return scores


@triton.jit
def take_scores(scores, highest, total, MAY_HIDE: tl.constexpr):
    """(weights of a tile of scores, what results so far are to be multiplied by, highest, total).

    MAY_HIDE where all scores of a row may be -inf.
    """
    higher = tl.maximum(highest, tl.max(scores, 1))
    # A row that has seen no key yet has -inf here, and -inf - -inf is no number.
    if MAY_HIDE:
        base = tl.where(higher == float("-inf"), 0.0, higher)
    else:
        base = higher
    weights = tl.exp(scores - base[:, None])
    rescale = tl.exp(highest - base)
    return weights, rescale, higher, total * rescale + tl.sum(weights, 1)


@triton.jit
def join_sink(acc, highest, total, sink):
    """(acc, highest, total) with one more key, whose score is ``sink`` and whose value is 0."""
    base = tl.maximum(highest, sink)
    rescale = tl.exp(highest - base)
    return acc * rescale[:, None], base, total * rescale + tl.exp(sink - base)
