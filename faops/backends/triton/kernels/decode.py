"""Attention of few query rows over a KV cache, dense or paged, split over the keys (flash-decoding, Dao et al. 2023).

The rows of a tile are the query heads that share a KV head, for one position after the other, so that a key is read
once for all of them. Keys have their absolute places in the cache; blocks of keys begin at multiples of BLOCK_N.
"""

from __future__ import annotations

import triton
import triton.language as tl

from faops.backends.triton.kernels.arithmetic import dot, narrow
from faops.backends.triton.kernels.cache import cache_rows, load_rotated, locate, of_sequence
from faops.backends.triton.kernels.scores import LN2, advance, finish_scores, indices
from faops.backends.triton.kernels.softmax import join_sink, take_block


@triton.jit
def _load_block(rows, row_stride, n, d, visible, DIM: tl.constexpr, WIDTH: tl.constexpr, GATHER: tl.constexpr,
                EDGE: tl.constexpr):  # fmt: skip
    """(BLOCK_N, WIDTH) keys or values; ``rows`` points to the first of them or, where GATHER, to each."""
    if GATHER:
        at = rows[:, None] + d
    else:
        at = rows + (n[:, None] * row_stride + d)
    if EDGE:
        return tl.load(at, mask=visible[:, None] & (d < DIM), other=0.0)
    elif DIM != WIDTH:
        return tl.load(at, mask=d < DIM, other=0.0)
    else:
        return tl.load(at)


@triton.jit
def _attend(
    acc, highest, total, q, k, v, k_page, k_row, v_page, v_row, block_table, own_page, pages, first, last, position,
    seqlen_q, pad, length, scale, softcap, slope, bias, bias_key, mask, mask_key,
    window_left, window_right,
    HEAD_DIM: tl.constexpr, HEAD_DIM_V: tl.constexpr, WIDTH: tl.constexpr, WIDTH_V: tl.constexpr,
    BLOCK_N: tl.constexpr, PAGE_SIZE: tl.constexpr, WINDOW_LEFT: tl.constexpr, WINDOW_RIGHT: tl.constexpr,
    SOFTCAP: tl.constexpr, ALIBI: tl.constexpr, FOLD_SCALE: tl.constexpr, PRECISION: tl.constexpr,
    WIDE: tl.constexpr, EDGE: tl.constexpr,
):  # fmt: skip
    """Add the keys of blocks [first, last) to a tile's (acc, highest, total)."""
    GATHER: tl.constexpr = PAGE_SIZE % BLOCK_N != 0
    n = indices(BLOCK_N, WIDE)
    d, d_v = tl.arange(0, WIDTH)[None, :], tl.arange(0, WIDTH_V)[None, :]
    for key in tl.range(first, last, BLOCK_N):
        visible = (key + n >= pad) & (key + n < length)
        if GATHER and EDGE:
            page, slot, exists = locate(block_table, own_page, key + n, visible, pages, PAGE_SIZE)
        elif GATHER:
            page, slot, exists = locate(block_table, own_page, key + n, None, pages, PAGE_SIZE)
        else:
            page, slot, exists = locate(block_table, own_page, key, None, pages, PAGE_SIZE)
        if EDGE:
            visible = tl.where(exists, visible, visible != visible)  # one truth or a block of them
        rows = cache_rows(k, page, slot, k_page, k_row)
        keys = _load_block(rows, k_row, n, d, visible, HEAD_DIM, WIDTH, GATHER, EDGE)
        products = dot(q, tl.trans(keys), None, PRECISION)
        scores, _ = finish_scores(
            products, position, n[None, :], 0, key, seqlen_q, length, scale, softcap, slope,
            bias, 0, bias_key, mask, 0, mask_key, window_left, window_right,
            SOFTCAP, ALIBI, WINDOW_LEFT, WINDOW_RIGHT, EDGE, not FOLD_SCALE,
        )  # fmt: skip
        if EDGE:
            scores = tl.where(visible[None, :], scores, float("-inf"))
        MAY_HIDE: tl.constexpr = EDGE or (mask is not None or bias is not None)
        weights, rescale, highest, total = take_block(scores, highest, total, scale, FOLD_SCALE, MAY_HIDE)
        rows = cache_rows(v, page, slot, v_page, v_row)
        values = _load_block(rows, v_row, n, d_v, visible, HEAD_DIM_V, WIDTH_V, GATHER, EDGE)
        acc = dot(narrow(weights, values.dtype), values, acc * rescale[:, None], PRECISION)
    return acc, highest, total


@triton.jit
def _key_runs(position, last_position, seqlen_q, pad, length, split, splits, window_left, window_right,
              BLOCK_N: tl.constexpr, WINDOW_LEFT: tl.constexpr, WINDOW_RIGHT: tl.constexpr):  # fmt: skip
    """A split's share of the keys that rows [position, last_position] see, as bounds of three runs of whole blocks.

    Blocks in [low, full_low) and [full_high, high) hold hidden pairs, those in [full_low, full_high) none.
    """
    shift = length - seqlen_q
    low, full_low = pad, pad
    high, full_high = length, length
    if WINDOW_LEFT:
        low = tl.maximum(pad, position + shift - window_left)
        full_low = tl.maximum(pad, last_position + shift - window_left)
    if WINDOW_RIGHT:
        high = tl.minimum(length, last_position + shift + window_right + 1)
        full_high = tl.maximum(tl.minimum(length, position + shift + window_right + 1), 0)
    first_block = low // BLOCK_N
    blocks = tl.where(high > low, tl.cdiv(high, BLOCK_N) - first_block, 0)
    share, left_over = blocks // splits, blocks % splits
    low = (first_block + split * share + tl.minimum(split, left_over)) * BLOCK_N
    high = low + (share + tl.where(split < left_over, 1, 0)) * BLOCK_N
    full_low = tl.minimum(tl.maximum(tl.cdiv(full_low, BLOCK_N) * BLOCK_N, low), high)
    full_high = tl.minimum(tl.maximum(full_high // BLOCK_N * BLOCK_N, full_low), high)
    return low, full_low, full_high, high


@triton.jit(do_not_specialize=["heads_kv", "row_tiles", "splits", "seqlen_q", "new", "capacity", "pages",
                               "positions", "window_left", "window_right"])  # fmt: skip
def attention_decode(
    q, k_cache, v_cache, out, lse, partial, cache_seqlens, cache_batch_idx, cache_leftpad, block_table,
    rotary_cos, rotary_sin, alibi_slopes, bias, mask, sinks,
    heads_kv, row_tiles, splits, seqlen_q, new, capacity, pages, positions, q_batch, q_row, q_head, k_cache_page,
    k_cache_row, k_cache_head, v_cache_page, v_cache_row, v_cache_head, out_batch, out_row, out_head, lse_batch,
    lse_head, table_batch, alibi_batch, bias_batch, bias_head, bias_row, bias_key, mask_batch, mask_head, mask_row,
    mask_key, window_left, window_right, scale, softcap,
    HEAD_DIM: tl.constexpr, HEAD_DIM_V: tl.constexpr, WIDTH: tl.constexpr, WIDTH_V: tl.constexpr,
    GROUP: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, PAGE_SIZE: tl.constexpr,
    ROTARY_DIM: tl.constexpr, INTERLEAVED: tl.constexpr, ADVANCING: tl.constexpr, WINDOW_LEFT: tl.constexpr,
    WINDOW_RIGHT: tl.constexpr, SOFTCAP: tl.constexpr, FOLD_SCALE: tl.constexpr, PRECISION: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    """One program computes BLOCK_M rows of one KV head of one sequence over one split of its keys.

    The grid is row_tiles * splits * heads_kv * batch. ``partial`` is None where one split sees all keys. Else it holds,
    in float32, a result (head_dim_v) for each row and split, then its logarithm to base 2 of the sum of exponentials,
    -inf where it saw no key; rows are numbered by sequence, KV head, position, head of the group.
    """
    program = tl.program_id(0)
    row_tile, split = program % row_tiles, program // row_tiles % splits
    head_kv, index = program // row_tiles // splits % heads_kv, program // row_tiles // splits // heads_kv
    row = row_tile * BLOCK_M + tl.arange(0, BLOCK_M)
    position, head = row // GROUP, head_kv * GROUP + row % GROUP
    inside = position < seqlen_q
    past = of_sequence(cache_seqlens, index, capacity)
    length = tl.maximum(tl.minimum(past + new, capacity), 0)
    pad = tl.maximum(of_sequence(cache_leftpad, index, 0), 0)
    own_page = of_sequence(cache_batch_idx, index, index)
    if PAGE_SIZE != 0:
        block_table = advance(block_table, index, table_batch)
    k, v = advance(k_cache, head_kv, k_cache_head), advance(v_cache, head_kv, v_cache_head)

    d, d_v = tl.arange(0, WIDTH)[None, :], tl.arange(0, WIDTH_V)[None, :]
    rows = advance(advance(advance(q, index, q_batch), position, q_row), head, q_head)[:, None]
    place = past + position * ADVANCING
    filled = inside[:, None] & (d < HEAD_DIM)
    queries = load_rotated(rows, d, filled, place[:, None], rotary_cos, rotary_sin, positions, ROTARY_DIM, INTERLEAVED)
    ALIBI: tl.constexpr = alibi_slopes is not None
    slope = 0.0
    if ALIBI:
        slope = tl.load(advance(alibi_slopes, index, alibi_batch) + head, mask=inside, other=0.0)[:, None]
    if bias is not None:
        bias = advance(advance(advance(bias, index, bias_batch), head, bias_head), position, bias_row)[:, None]
    if mask is not None:
        mask = advance(advance(advance(mask, index, mask_batch), head, mask_head), position, mask_row)[:, None]

    m = position[:, None]
    acc = tl.zeros([BLOCK_M, WIDTH_V], dtype=tl.float32)
    highest = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], dtype=tl.float32)
    last_position = tl.minimum((row_tile * BLOCK_M + BLOCK_M - 1) // GROUP, seqlen_q - 1)
    low, full_low, full_high, high = _key_runs(
        row_tile * BLOCK_M // GROUP, last_position, seqlen_q, pad, length, split, splits, window_left, window_right,
        BLOCK_N, WINDOW_LEFT, WINDOW_RIGHT,
    )  # fmt: skip
    if WINDOW_LEFT or cache_leftpad is not None:
        acc, highest, total = _attend(
            acc, highest, total, queries, k, v, k_cache_page, k_cache_row, v_cache_page, v_cache_row, block_table,
            own_page, pages, low, full_low, m, seqlen_q, pad, length, scale, softcap, slope, bias, bias_key,
            mask, mask_key, window_left, window_right,
            HEAD_DIM, HEAD_DIM_V, WIDTH, WIDTH_V, BLOCK_N, PAGE_SIZE, WINDOW_LEFT, WINDOW_RIGHT,
            SOFTCAP, ALIBI, FOLD_SCALE, PRECISION, WIDE, True,
        )  # fmt: skip
    acc, highest, total = _attend(
        acc, highest, total, queries, k, v, k_cache_page, k_cache_row, v_cache_page, v_cache_row, block_table,
        own_page, pages, full_low, full_high, m, seqlen_q, pad, length, scale, softcap, slope, bias, bias_key,
        mask, mask_key, window_left, window_right,
        HEAD_DIM, HEAD_DIM_V, WIDTH, WIDTH_V, BLOCK_N, PAGE_SIZE, WINDOW_LEFT, WINDOW_RIGHT,
        SOFTCAP, ALIBI, FOLD_SCALE, PRECISION, WIDE, False,
    )  # fmt: skip
    acc, highest, total = _attend(
        acc, highest, total, queries, k, v, k_cache_page, k_cache_row, v_cache_page, v_cache_row, block_table,
        own_page, pages, full_high, high, m, seqlen_q, pad, length, scale, softcap, slope, bias, bias_key,
        mask, mask_key, window_left, window_right,
        HEAD_DIM, HEAD_DIM_V, WIDTH, WIDTH_V, BLOCK_N, PAGE_SIZE, WINDOW_LEFT, WINDOW_RIGHT,
        SOFTCAP, ALIBI, FOLD_SCALE, PRECISION, WIDE, True,
    )  # fmt: skip

    alive = highest > float("-inf")
    filled = inside[:, None] & (d_v < HEAD_DIM_V)
    if partial is not None:
        rows_of_head = seqlen_q * GROUP
        numbered = tl.cast(index * heads_kv + head_kv, tl.int64) * rows_of_head + row
        result = acc / tl.where(alive, total, 1.0)[:, None]
        at = partial + (numbered * splits + split)[:, None] * HEAD_DIM_V + d_v
        tl.store(at, result, mask=filled & alive[:, None])  # combine reads no other
        all_rows = tl.num_programs(0) // (row_tiles * splits) * rows_of_head
        logs = advance(partial, all_rows, splits * HEAD_DIM_V)
        log = tl.where(alive, highest + tl.log2(total), float("-inf"))
        tl.store(logs + (numbered * splits + split), log, mask=inside)
    else:
        if sinks is not None:
            acc, highest, total = join_sink(acc, highest, total, tl.load(sinks + head, mask=inside, other=0.0))
        weight = tl.where(alive, 1 / tl.where(alive, total, 1.0), 0.0)
        rows = advance(advance(advance(out, index, out_batch), position, out_row), head, out_head)[:, None]
        tl.store(rows + d_v, narrow(acc * weight[:, None], out.dtype.element_ty), mask=filled)
        if lse is not None:
            rows = advance(advance(lse, index, lse_batch), head, lse_head) + position
            tl.store(rows, tl.where(alive, (highest + tl.log2(total)) * LN2, float("-inf")), mask=inside)
