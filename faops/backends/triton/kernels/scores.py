"""What every attention kernel does to a tile of scores: places in memory, the band, biases, softcap, dropout.

A tile holds the scores of BLOCK_M query rows and BLOCK_N keys. Most functions take ``m`` and ``n``, the indices inside
the tile, in a shape that broadcasts to it: (BLOCK_M, 1) and (1, BLOCK_N), or (1, BLOCK_M) and (BLOCK_N, 1) where a
kernel keeps its tiles transposed. ``row`` and ``key`` are the places of a tile's first element in its own sequence.

Scores are in units of log 2 from :func:`finish_scores` on, because the hardware has exp2 and no exp.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def indices(SIZE: tl.constexpr, WIDE: tl.constexpr):
    """0 .. SIZE - 1, in 64 bits where a stride times SIZE does not fit 32."""
    found = tl.arange(0, SIZE)
    if WIDE:
        found = found.to(tl.int64)
    return found


@triton.jit
def advance(start, count, stride):
    """``start`` moved by ``count`` strides; the product may exceed 32 bits."""
    return start + tl.cast(count, tl.int64) * stride


@triton.jit
def bounds(cu_seqlens, index, seqlen, VARLEN: tl.constexpr):
    """First token of sequence ``index`` in the packed tensor, and its length; (0, seqlen) where nothing is packed."""
    if VARLEN:
        first = tl.load(cu_seqlens + index)
        return first, tl.load(cu_seqlens + index + 1) - first
    else:
        return 0, seqlen


@triton.jit
def load_rows(start, row_stride, m, d, row, seqlen, DIM: tl.constexpr, WIDTH: tl.constexpr, EDGE: tl.constexpr):
    """Elements (m, d) of a matrix, 0 behind its last row (looked at where EDGE) and behind its DIM columns."""
    at = start + (m * row_stride + d)
    if EDGE and DIM != WIDTH:
        return tl.load(at, mask=(row + m < seqlen) & (d < DIM), other=0.0)
    elif EDGE:
        return tl.load(at, mask=row + m < seqlen, other=0.0)
    elif DIM != WIDTH:
        return tl.load(at, mask=d < DIM, other=0.0)
    else:
        return tl.load(at)


@triton.jit
def clear_rows(start, first, last, row_stride, DIM: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """Zeros in rows [first, last) of a matrix: what lies behind the last sequence of a packed batch."""
    m, d = tl.arange(0, BLOCK)[:, None], tl.arange(0, WIDTH)[None, :]
    nothing = tl.zeros([BLOCK, WIDTH], dtype=start.dtype.element_ty)
    for row in tl.range(first, last, BLOCK):
        at = advance(start, row, row_stride) + (m * row_stride + d)
        tl.store(at, nothing, mask=(row + m < last) & (d < DIM))


@triton.jit
def key_range(row, rows_end, seqlen_q, seqlen_k, window_left, window_right, BLOCK_N: tl.constexpr,
              WINDOW_LEFT: tl.constexpr, WINDOW_RIGHT: tl.constexpr):  # fmt: skip
    """The keys that rows [row, rows_end) look at, as bounds of three runs of whole blocks.

    Blocks in [low, full_low) and [full_high, high) hold hidden pairs, those in [full_low, full_high) none.
    """
    shift = seqlen_k - seqlen_q
    low = tl.cast(0, tl.int32)
    full_low = tl.cast(0, tl.int32)
    end = tl.cast(seqlen_k, tl.int32)
    full_high = end
    if WINDOW_LEFT:
        low = tl.maximum(row + shift - window_left, 0) // BLOCK_N * BLOCK_N
        full_low = tl.cdiv(tl.maximum(rows_end - 1 + shift - window_left, 0), BLOCK_N) * BLOCK_N
    if WINDOW_RIGHT:
        full_high = tl.minimum(end, tl.maximum(row + shift + window_right + 1, 0))
        end = tl.minimum(end, tl.maximum(rows_end + shift + window_right, 0))
    high = tl.maximum(tl.cdiv(end, BLOCK_N) * BLOCK_N, low)
    full_low = tl.minimum(full_low, high)
    full_high = tl.maximum(full_high // BLOCK_N * BLOCK_N, full_low)
    return low, full_low, full_high, high


@triton.jit
def row_range(key, keys_end, seqlen_q, seqlen_k, window_left, window_right, BLOCK_M: tl.constexpr,
              WINDOW_LEFT: tl.constexpr, WINDOW_RIGHT: tl.constexpr):  # fmt: skip
    """The rows that look at keys [key, keys_end), as bounds of three runs of whole blocks.

    Blocks in [low, full_low) and [full_high, high) hold hidden pairs, those in [full_low, full_high) none.
    """
    shift = seqlen_k - seqlen_q
    low = tl.cast(0, tl.int32)
    full_low = tl.cast(0, tl.int32)
    end = tl.cast(seqlen_q, tl.int32)
    full_high = end
    if WINDOW_RIGHT:
        low = tl.maximum(key - shift - window_right, 0) // BLOCK_M * BLOCK_M
        full_low = tl.cdiv(tl.maximum(keys_end - 1 - shift - window_right, 0), BLOCK_M) * BLOCK_M
    if WINDOW_LEFT:
        full_high = tl.minimum(full_high, tl.maximum(key - shift + window_left + 1, 0))
        end = tl.minimum(end, tl.maximum(keys_end - shift + window_left, 0))
    high = tl.maximum(tl.cdiv(end, BLOCK_M) * BLOCK_M, low)
    full_low = tl.minimum(full_low, high)
    full_high = tl.maximum(full_high // BLOCK_M * BLOCK_M, full_low)
    return low, full_low, full_high, high


@triton.jit
def tanh(x):
    """tanh for float32, with an error of some 1e-7 of its value also near 0, where 1 - exp loses digits."""
    falling = tl.exp2(tl.abs(x) * (-2 * LOG2E))
    large = (1 - falling) / (1 + falling)
    square = x * x
    # Taylor's series; its next term is below 1e-8 of the value for |x| < 0.2.
    small = x * (1 + square * (-1 / 3 + square * (2 / 15 + square * (-17 / 315 + square * (62 / 2835)))))
    return tl.where(tl.abs(x) < 0.2, small, tl.where(x < 0, -large, large))


@triton.jit
def finish_scores(
    products, m, n, row, key, seqlen_q, seqlen_k, scale, softcap, slope,
    bias, bias_row, bias_key, mask, mask_row, mask_key, window_left, window_right,
    SOFTCAP: tl.constexpr, ALIBI: tl.constexpr, WINDOW_LEFT: tl.constexpr, WINDOW_RIGHT: tl.constexpr,
    EDGE: tl.constexpr, SCALED: tl.constexpr,
):  # fmt: skip
    """Scores of a tile from the products q · k: (scores in units of log 2, softcap's tanh or 1).

    ``bias`` and ``mask`` point to their elements of the sequence's first row and key, or are None. EDGE tiles may hold
    pairs outside the band or behind the last key, which become -inf. Without SCALED the scores are the products,
    hidden ones apart: for callers that fold a positive scale into a later multiplication.
    """
    capped = 1.0
    if SOFTCAP:
        capped = tanh(products * (scale / softcap))
        scores = capped * (softcap * LOG2E)
    elif SCALED:
        scores = products * (scale * LOG2E)
    else:
        scores = products
    if ALIBI:
        distance = (row + m) + (seqlen_k - seqlen_q) - (key + n)
        scores -= (slope * LOG2E) * tl.abs(distance).to(tl.float32)
    inside = (row + m < seqlen_q) & (key + n < seqlen_k)
    if bias is not None:
        start = advance(advance(bias, row, bias_row), key, bias_key)
        scores += tl.load(start + (m * bias_row + n * bias_key), mask=inside, other=0.0).to(tl.float32) * LOG2E
    if mask is not None:
        start = advance(advance(mask, row, mask_row), key, mask_key)
        visible = tl.load(start + (m * mask_row + n * mask_key), mask=inside, other=0) != 0
        scores = tl.where(visible, scores, float("-inf"))
    if EDGE:
        visible = key + n < seqlen_k
        place = row + m + (seqlen_k - seqlen_q)
        if WINDOW_LEFT:
            visible = visible & (key + n >= place - window_left)
        if WINDOW_RIGHT:
            visible = visible & (key + n <= place + window_right)
        scores = tl.where(visible, scores, float("-inf"))
    return scores, capped


@triton.jit
def keep_tile(rng, row, key, batch_head, drop_below, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Which probabilities of a (BLOCK_M, BLOCK_N) tile survive dropout, int8; the contract is :mod:`faops.philox`'s.

    Four neighbouring keys share one counter, so a quarter of the tile is drawn and the words are dealt out.
    """
    seed = tl.load(rng)
    offset = tl.load(rng + 1)
    groups = (key // 4 + tl.arange(0, BLOCK_N // 4))[None, :]
    rows = (row + tl.arange(0, BLOCK_M))[:, None]
    counter0 = (groups + rows * 0).to(tl.uint32)
    counter1 = (rows + groups * 0).to(tl.uint32)
    counter2 = tl.zeros_like(counter0) + tl.cast(batch_head, tl.uint32)
    counter3 = tl.zeros_like(counter0) + offset.to(tl.uint32)
    word0, word1, word2, word3 = tl.philox(seed, counter0, counter1, counter2, counter3)
    least = tl.cast(drop_below, tl.uint32)
    keep0, keep1 = (word0 >= least).to(tl.int8), (word1 >= least).to(tl.int8)
    keep2, keep3 = (word2 >= least).to(tl.int8), (word3 >= least).to(tl.int8)
    return tl.reshape(tl.join(tl.join(keep0, keep2), tl.join(keep1, keep3)), [BLOCK_M, BLOCK_N])
