"""The gradient of a bias: that of the biased scores, summed over the axes that the bias is broadcast over."""

from __future__ import annotations

import triton
import triton.language as tl

from faops.backends.triton.kernels.arithmetic import dot
from faops.backends.triton.kernels.gradients import load_row_values, tile_gradient
from faops.backends.triton.kernels.scores import advance, bounds, indices, keep_tile, load_rows


@triton.jit(do_not_specialize=["batch", "heads", "group", "row_tiles", "key_tiles", "seqlen_q", "seqlen_k",
                               "window_left", "window_right", "drop_below"])  # fmt: skip
def attention_dbias(
    q, k, v, dout, lse, delta, dbias, alibi_slopes, bias, mask, cu_seqlens_q, cu_seqlens_k, rng,
    batch, heads, group, row_tiles, key_tiles, seqlen_q, seqlen_k,
    q_batch, q_row, q_head, k_batch, k_row, k_head, v_batch, v_row, v_head, dout_batch, dout_row, dout_head,
    lse_batch, lse_head, dbias_part, dbias_batch, dbias_head, dbias_row, dbias_key,
    alibi_batch, bias_batch, bias_head, bias_row, bias_key, mask_batch, mask_head, mask_row, mask_key,
    window_left, window_right, scale, softcap, keep_scale, drop_below,
    HEAD_DIM: tl.constexpr, HEAD_DIM_V: tl.constexpr, WIDTH: tl.constexpr, WIDTH_V: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, VARLEN: tl.constexpr, WINDOW_LEFT: tl.constexpr,
    WINDOW_RIGHT: tl.constexpr, SOFTCAP: tl.constexpr, DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
    WIDE: tl.constexpr, VARIES_BATCH: tl.constexpr, VARIES_HEAD: tl.constexpr, VARIES_ROW: tl.constexpr,
    VARIES_KEY: tl.constexpr,
):  # fmt: skip
    """One program owns a tile of ``dbias`` (float32) and walks over all tiles of scores that were given the same bias.

    Axes that the bias varies over, which the VARIES constants tell, are spread over programs; the others are walked.
    A bias that varies over neither rows nor keys would leave few programs, so there each tile of rows gives a part of
    its own, which the caller adds up. Every sum has a fixed order.
    """
    SPREAD_ROWS: tl.constexpr = VARIES_ROW or not VARIES_KEY
    own_keys = key_tiles if VARIES_KEY else 1
    own_rows = row_tiles if SPREAD_ROWS else 1
    own_heads = heads if VARIES_HEAD else 1
    program = tl.program_id(0)
    own_key = program % own_keys
    own_row = program // own_keys % own_rows
    own_head = program // own_keys // own_rows % own_heads
    own_index = program // own_keys // own_rows // own_heads
    walk_keys = 1 if VARIES_KEY else key_tiles
    walk_rows = 1 if SPREAD_ROWS else row_tiles
    walk_heads = 1 if VARIES_HEAD else heads
    walk_batch = 1 if VARIES_BATCH else batch

    m = indices(BLOCK_M, WIDE)
    n = indices(BLOCK_N, WIDE)
    d, d_v = tl.arange(0, WIDTH)[None, :], tl.arange(0, WIDTH_V)[None, :]
    ALIBI: tl.constexpr = alibi_slopes is not None
    total = tl.zeros([BLOCK_M, BLOCK_N], dtype=tl.float32)
    for step in tl.range(0, walk_keys * walk_rows * walk_heads * walk_batch):
        key = (own_key + step % walk_keys) * BLOCK_N
        row = (own_row + step // walk_keys % walk_rows) * BLOCK_M
        head = own_head + step // walk_keys // walk_rows % walk_heads
        index = own_index + step // walk_keys // walk_rows // walk_heads
        first_row, rows = bounds(cu_seqlens_q, index, seqlen_q, VARLEN)
        first_key, keys = bounds(cu_seqlens_k, index, seqlen_k, VARLEN)
        seen = (row < rows) & (key < keys)
        if WINDOW_LEFT:
            seen = seen & (tl.minimum(key + BLOCK_N, keys) > row + keys - rows - window_left)
        if WINDOW_RIGHT:
            seen = seen & (key < tl.minimum(row + BLOCK_M, rows) + keys - rows + window_right)
        if seen:
            head_kv = head // group
            q_at = advance(advance(advance(q, index, q_batch), head, q_head), first_row + row, q_row)
            dout_at = advance(advance(advance(dout, index, dout_batch), head, dout_head), first_row + row, dout_row)
            k_at = advance(advance(advance(k, index, k_batch), head_kv, k_head), first_key + key, k_row)
            v_at = advance(advance(advance(v, index, v_batch), head_kv, v_head), first_key + key, v_row)
            lse_at = advance(advance(advance(lse, index, lse_batch), head, lse_head), first_row + row, 1)
            delta_at = advance(advance(advance(delta, index, lse_batch), head, lse_head), first_row + row, 1)
            queries = load_rows(q_at, q_row, m[:, None], d, row, rows, HEAD_DIM, WIDTH, True)
            douts = load_rows(dout_at, dout_row, m[:, None], d_v, row, rows, HEAD_DIM_V, WIDTH_V, True)
            key_tile = load_rows(k_at, k_row, n[:, None], d, key, keys, HEAD_DIM, WIDTH, True)
            value_tile = load_rows(v_at, v_row, n[:, None], d_v, key, keys, HEAD_DIM_V, WIDTH_V, True)
            row_lse, row_delta = load_row_values(lse_at, delta_at, m, row, rows, True)
            slope = 0.0
            if ALIBI:
                slope = tl.load(advance(alibi_slopes, index, alibi_batch) + head)
            mask_at = mask
            if mask is not None:
                mask_at = advance(advance(mask, index, mask_batch), head, mask_head)
            keep = 0
            if DROPOUT:
                keep = keep_tile(rng, row, key, index * heads + head, drop_below, BLOCK_M, BLOCK_N)
            products = dot(queries, tl.trans(key_tile), None, PRECISION)
            dweights = dot(douts, tl.trans(value_tile), None, PRECISION)
            _, dscores, _ = tile_gradient(
                products, dweights, row_lse[:, None], row_delta[:, None], keep, keep_scale, m[:, None], n[None, :],
                row, key, rows, keys, scale, softcap, slope,
                advance(advance(bias, index, bias_batch), head, bias_head), bias_row, bias_key,
                mask_at, mask_row, mask_key, window_left, window_right,
                SOFTCAP, ALIBI, DROPOUT, WINDOW_LEFT, WINDOW_RIGHT, True,
            )  # fmt: skip
            total += dscores

    dbias = advance(advance(dbias, own_index, dbias_batch), own_head, dbias_head)
    row, key = own_row * BLOCK_M, own_key * BLOCK_N
    if VARIES_ROW and VARIES_KEY:
        at = advance(advance(dbias, row, dbias_row), key, dbias_key) + (m[:, None] * dbias_row + n[None, :] * dbias_key)
        tl.store(at, total, mask=(row + m[:, None] < seqlen_q) & (key + n[None, :] < seqlen_k))
    elif VARIES_KEY:
        tl.store(advance(dbias, key, dbias_key) + n * dbias_key, tl.sum(total, 0), mask=key + n < seqlen_k)
    elif VARIES_ROW:
        tl.store(advance(dbias, row, dbias_row) + m * dbias_row, tl.sum(total, 1), mask=row + m < seqlen_q)
    else:
        tl.store(advance(dbias, own_row, dbias_part), tl.sum(tl.sum(total, 1), 0))
