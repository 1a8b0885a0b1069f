"""Forward attention: online softmax over blocks of keys (Dao 2023, FlashAttention-2), dense and varlen."""

from __future__ import annotations

import triton
import triton.language as tl

from faops.backends.triton.kernels.arithmetic import dot, narrow
from faops.backends.triton.kernels.scores import (
    LN2,
    advance,
    bounds,
    clear_rows,
    finish_scores,
    indices,
    keep_tile,
    key_range,
    load_rows,
)
from faops.backends.triton.kernels.softmax import join_sink, take_block


@triton.jit
def _attend_block(
    acc, highest, total, q, k, v, k_row, v_row, key, row, batch_head,
    seqlen_q, seqlen_k, scale, softcap, slope, bias, bias_row, bias_key, mask, mask_row, mask_key,
    rng, drop_below, window_left, window_right,
    HEAD_DIM: tl.constexpr, HEAD_DIM_V: tl.constexpr, WIDTH: tl.constexpr, WIDTH_V: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, WINDOW_LEFT: tl.constexpr, WINDOW_RIGHT: tl.constexpr,
    SOFTCAP: tl.constexpr, ALIBI: tl.constexpr, DROPOUT: tl.constexpr, FOLD_SCALE: tl.constexpr,
    PRECISION: tl.constexpr, WIDE: tl.constexpr, EDGE: tl.constexpr,
):  # fmt: skip
    """Add the keys of one block to a tile's (acc, highest, total)."""
    m = indices(BLOCK_M, WIDE)[:, None]
    n = indices(BLOCK_N, WIDE)
    d, d_v = tl.arange(0, WIDTH)[None, :], tl.arange(0, WIDTH_V)[None, :]
    keys = load_rows(advance(k, key, k_row), k_row, n[:, None], d, key, seqlen_k, HEAD_DIM, WIDTH, EDGE)
    products = dot(q, tl.trans(keys), None, PRECISION)
    scores, _ = finish_scores(
        products, m, n[None, :], row, key, seqlen_q, seqlen_k, scale, softcap, slope,
        bias, bias_row, bias_key, mask, mask_row, mask_key, window_left, window_right,
        SOFTCAP, ALIBI, WINDOW_LEFT, WINDOW_RIGHT, EDGE, not FOLD_SCALE,
    )  # fmt: skip
    MAY_HIDE: tl.constexpr = EDGE or (mask is not None or bias is not None)
    weights, rescale, highest, total = take_block(scores, highest, total, scale, FOLD_SCALE, MAY_HIDE)
    if DROPOUT:
        keep = keep_tile(rng, row, key, batch_head, drop_below, BLOCK_M, BLOCK_N)
        weights = tl.where(keep != 0, weights, 0.0)
    values = load_rows(advance(v, key, v_row), v_row, n[:, None], d_v, key, seqlen_k, HEAD_DIM_V, WIDTH_V, EDGE)
    acc = dot(narrow(weights, values.dtype), values, acc * rescale[:, None], PRECISION)
    return acc, highest, total


@triton.jit
def _attend(
    acc, highest, total, q, k, v, k_row, v_row, first, last, row, batch_head,
    seqlen_q, seqlen_k, scale, softcap, slope, bias, bias_row, bias_key, mask, mask_row, mask_key,
    rng, drop_below, window_left, window_right,
    HEAD_DIM: tl.constexpr, HEAD_DIM_V: tl.constexpr, WIDTH: tl.constexpr, WIDTH_V: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, WINDOW_LEFT: tl.constexpr, WINDOW_RIGHT: tl.constexpr,
    SOFTCAP: tl.constexpr, ALIBI: tl.constexpr, DROPOUT: tl.constexpr, FOLD_SCALE: tl.constexpr,
    PRECISION: tl.constexpr, WIDE: tl.constexpr, WARP_SPECIALIZE: tl.constexpr, EDGE: tl.constexpr,
):  # fmt: skip
    """Add the keys of blocks [first, last) to a tile's (acc, highest, total)."""
    if WARP_SPECIALIZE:  # Triton 3.3 has no such argument, and must not meet it
        for key in tl.range(first, last, BLOCK_N, warp_specialize=True):
            acc, highest, total = _attend_block(
                acc, highest, total, q, k, v, k_row, v_row, key, row, batch_head,
                seqlen_q, seqlen_k, scale, softcap, slope, bias, bias_row, bias_key, mask, mask_row, mask_key,
                rng, drop_below, window_left, window_right,
                HEAD_DIM, HEAD_DIM_V, WIDTH, WIDTH_V, BLOCK_M, BLOCK_N, WINDOW_LEFT, WINDOW_RIGHT,
                SOFTCAP, ALIBI, DROPOUT, FOLD_SCALE, PRECISION, WIDE, EDGE,
            )  # fmt: skip
    else:
        for key in tl.range(first, last, BLOCK_N):
            acc, highest, total = _attend_block(
                acc, highest, total, q, k, v, k_row, v_row, key, row, batch_head,
                seqlen_q, seqlen_k, scale, softcap, slope, bias, bias_row, bias_key, mask, mask_row, mask_key,
                rng, drop_below, window_left, window_right,
                HEAD_DIM, HEAD_DIM_V, WIDTH, WIDTH_V, BLOCK_M, BLOCK_N, WINDOW_LEFT, WINDOW_RIGHT,
                SOFTCAP, ALIBI, DROPOUT, FOLD_SCALE, PRECISION, WIDE, EDGE,
            )  # fmt: skip
    return acc, highest, total


@triton.jit
def _clear_lse(start, first, last, BLOCK: tl.constexpr):
    """Rows behind the last sequence of a packed batch have no key: -inf."""
    m = tl.arange(0, BLOCK)
    nothing = tl.full([BLOCK], float("-inf"), tl.float32)
    for row in tl.range(first, last, BLOCK):
        tl.store(advance(start, row, 1) + m, nothing, mask=row + m < last)


@triton.jit(do_not_specialize=["batch", "heads", "group", "row_tiles", "seqlen_q", "seqlen_k", "total_q",
                               "window_left", "window_right", "drop_below"])  # fmt: skip
def attention_forward(
    q, k, v, out, lse, alibi_slopes, bias, mask, sinks, cu_seqlens_q, cu_seqlens_k, rng,
    batch, heads, group, row_tiles, seqlen_q, seqlen_k, total_q,
    q_batch, q_row, q_head, k_batch, k_row, k_head, v_batch, v_row, v_head, out_batch, out_row, out_head,
    lse_batch, lse_head, alibi_batch, bias_batch, bias_head, bias_row, bias_key,
    mask_batch, mask_head, mask_row, mask_key, window_left, window_right, scale, softcap, keep_scale, drop_below,
    HEAD_DIM: tl.constexpr, HEAD_DIM_V: tl.constexpr, WIDTH: tl.constexpr, WIDTH_V: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, VARLEN: tl.constexpr, WINDOW_LEFT: tl.constexpr,
    WINDOW_RIGHT: tl.constexpr, SOFTCAP: tl.constexpr, DROPOUT: tl.constexpr, FOLD_SCALE: tl.constexpr,
    PRECISION: tl.constexpr, WIDE: tl.constexpr, WARP_SPECIALIZE: tl.constexpr,
):  # fmt: skip
    """One program computes BLOCK_M rows of one head of one sequence. Tensors may be None but for q, k, v and out.

    The grid is row_tiles * heads * batch, and heads more for what lies behind the last sequence of a packed batch.
    """
    program = tl.program_id(0)
    head = program // row_tiles % heads
    index = program // row_tiles // heads
    if index >= batch:
        # One of the last `heads` programs of a packed batch.
        spare = program - row_tiles * heads * batch
        if VARLEN:
            end = tl.load(cu_seqlens_q + batch)
            clear_rows(advance(out, spare, out_head), end, total_q, out_row, HEAD_DIM_V, WIDTH_V, BLOCK_M)
            if lse is not None:
                _clear_lse(advance(lse, spare, lse_head), end, total_q, BLOCK_M)
        return
    # The last rows see the most keys under a causal band; begun first, they leave no long tail.
    row = (row_tiles - 1 - program % row_tiles) * BLOCK_M
    first_row, seqlen_q = bounds(cu_seqlens_q, index, seqlen_q, VARLEN)
    first_key, seqlen_k = bounds(cu_seqlens_k, index, seqlen_k, VARLEN)
    if row >= seqlen_q:
        return
    head_kv = head // group
    m = indices(BLOCK_M, WIDE)
    d = tl.arange(0, WIDTH)[None, :]
    q = advance(advance(advance(q, index, q_batch), head, q_head), first_row + row, q_row)
    k = advance(advance(advance(k, index, k_batch), head_kv, k_head), first_key, k_row)
    v = advance(advance(advance(v, index, v_batch), head_kv, v_head), first_key, v_row)
    queries = load_rows(q, q_row, m[:, None], d, row, seqlen_q, HEAD_DIM, WIDTH, True)
    ALIBI: tl.constexpr = alibi_slopes is not None
    slope = 0.0
    if ALIBI:
        slope = tl.load(advance(alibi_slopes, index, alibi_batch) + head)
    if bias is not None:
        bias = advance(advance(bias, index, bias_batch), head, bias_head)
    if mask is not None:
        mask = advance(advance(mask, index, mask_batch), head, mask_head)

    acc = tl.zeros([BLOCK_M, WIDTH_V], dtype=tl.float32)
    highest = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], dtype=tl.float32)
    rows_end = tl.minimum(row + BLOCK_M, seqlen_q)
    low, full_low, full_high, high = key_range(
        row, rows_end, seqlen_q, seqlen_k, window_left, window_right, BLOCK_N, WINDOW_LEFT, WINDOW_RIGHT
    )
    if WINDOW_LEFT:
        acc, highest, total = _attend(
            acc, highest, total, queries, k, v, k_row, v_row, low, full_low, row, index * heads + head,
            seqlen_q, seqlen_k, scale, softcap, slope, bias, bias_row, bias_key, mask, mask_row, mask_key,
            rng, drop_below, window_left, window_right,
            HEAD_DIM, HEAD_DIM_V, WIDTH, WIDTH_V, BLOCK_M, BLOCK_N, WINDOW_LEFT, WINDOW_RIGHT,
            SOFTCAP, ALIBI, DROPOUT, FOLD_SCALE, PRECISION, WIDE, False, True,
        )  # fmt: skip
    acc, highest, total = _attend(
        acc, highest, total, queries, k, v, k_row, v_row, full_low, full_high, row, index * heads + head,
        seqlen_q, seqlen_k, scale, softcap, slope, bias, bias_row, bias_key, mask, mask_row, mask_key,
        rng, drop_below, window_left, window_right,
        HEAD_DIM, HEAD_DIM_V, WIDTH, WIDTH_V, BLOCK_M, BLOCK_N, WINDOW_LEFT, WINDOW_RIGHT,
        SOFTCAP, ALIBI, DROPOUT, FOLD_SCALE, PRECISION, WIDE, WARP_SPECIALIZE, False,
    )  # fmt: skip
    acc, highest, total = _attend(
        acc, highest, total, queries, k, v, k_row, v_row, full_high, high, row, index * heads + head,
        seqlen_q, seqlen_k, scale, softcap, slope, bias, bias_row, bias_key, mask, mask_row, mask_key,
        rng, drop_below, window_left, window_right,
        HEAD_DIM, HEAD_DIM_V, WIDTH, WIDTH_V, BLOCK_M, BLOCK_N, WINDOW_LEFT, WINDOW_RIGHT,
        SOFTCAP, ALIBI, DROPOUT, FOLD_SCALE, PRECISION, WIDE, False, True,
    )  # fmt: skip

    dead = highest == float("-inf")
    if sinks is not None:
        acc, highest, total = join_sink(acc, highest, total, tl.load(sinks + head))
    inside = row + m < seqlen_q
    weight = tl.where(dead, 0.0, keep_scale / tl.where(dead, 1.0, total))
    out = advance(advance(advance(out, index, out_batch), head, out_head), first_row + row, out_row)
    d_v = tl.arange(0, WIDTH_V)[None, :]
    result = narrow(acc * weight[:, None], out.dtype.element_ty)
    tl.store(out + (m[:, None] * out_row + d_v), result, mask=inside[:, None] & (d_v < HEAD_DIM_V))
    if lse is not None:
        lse = advance(advance(advance(lse, index, lse_batch), head, lse_head), first_row + row, 1)
        tl.store(lse + m, tl.where(dead, float("-inf"), (highest + tl.log2(total)) * LN2), mask=inside)
