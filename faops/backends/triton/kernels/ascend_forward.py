"""Forward attention for Ascend: FlashAttention-2 in a grid of as many programs as there are cores, dense and varlen.

A grid is bound to the cores, 65535 programs at most, and every round of programs beyond the cores costs a start. So
each program takes tiles of rows in turn until none is left.
"""

from __future__ import annotations

import triton
import triton.language as tl

from faops.backends.triton.kernels.arithmetic import dot, narrow
from faops.backends.triton.kernels.ascend_scores import finish_scores, join_sink, take_scores
from faops.backends.triton.kernels.scores import advance, bounds, clear_rows, indices, key_range, load_rows


@triton.jit
def _attend(
    acc, highest, total, q, k, v, k_row, v_row, first, last, row, seqlen_q, seqlen_k, scale, softcap, slope,
    bias, bias_row, bias_key, mask, mask_row, mask_key, window_left, window_right,
    HEAD_DIM: tl.constexpr, HEAD_DIM_V: tl.constexpr, WIDTH: tl.constexpr, WIDTH_V: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, SOFTCAP: tl.constexpr, ALIBI: tl.constexpr,
    BIAS_ROWS: tl.constexpr, BIAS_KEYS: tl.constexpr, MASK_ROWS: tl.constexpr, MASK_KEYS: tl.constexpr,
    WINDOW_LEFT: tl.constexpr, WINDOW_RIGHT: tl.constexpr, WIDE: tl.constexpr, EDGE: tl.constexpr,
):  # fmt: skip
    """Add the keys of blocks [first, last) to a tile's (acc, highest, total)."""
    MAY_HIDE: tl.constexpr = EDGE or (mask is not None or bias is not None)
    n = indices(BLOCK_N, WIDE)[:, None]
    d, d_v = tl.arange(0, WIDTH)[None, :], tl.arange(0, WIDTH_V)[None, :]
    for key in tl.range(first, last, BLOCK_N):
        keys = load_rows(advance(k, key, k_row), k_row, n, d, key, seqlen_k, HEAD_DIM, WIDTH, EDGE)
        products = dot(q, tl.trans(keys), None, "ieee")
        scores = finish_scores(
            products, row, key, seqlen_q, seqlen_k, scale, softcap, slope,
            bias, bias_row, bias_key, mask, mask_row, mask_key, window_left, window_right,
            BLOCK_M, BLOCK_N, SOFTCAP, ALIBI, BIAS_ROWS, BIAS_KEYS, MASK_ROWS, MASK_KEYS,
            WINDOW_LEFT, WINDOW_RIGHT, EDGE,
        )  # fmt: skip
        weights, rescale, highest, total = take_scores(scores, highest, total, MAY_HIDE)
        values = load_rows(advance(v, key, v_row), v_row, n, d_v, key, seqlen_k, HEAD_DIM_V, WIDTH_V, EDGE)
        acc = dot(narrow(weights, values.dtype), values, acc * rescale[:, None], "ieee")
    return acc, highest, total


@triton.jit
def _attend_rows(
    q, k, v, out, lse, slope, bias, mask, sink, row, seqlen_q, seqlen_k,
    q_row, k_row, v_row, out_row, bias_row, bias_key, mask_row, mask_key, window_left, window_right, scale, softcap,
    HEAD_DIM: tl.constexpr, HEAD_DIM_V: tl.constexpr, WIDTH: tl.constexpr, WIDTH_V: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, SOFTCAP: tl.constexpr, ALIBI: tl.constexpr, SINKS: tl.constexpr,
    BIAS_ROWS: tl.constexpr, BIAS_KEYS: tl.constexpr, MASK_ROWS: tl.constexpr, MASK_KEYS: tl.constexpr,
    WINDOW_LEFT: tl.constexpr, WINDOW_RIGHT: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """out and lse of rows [row, row + BLOCK_M) of one head of one sequence; pointers are to the sequence's first."""
    m = indices(BLOCK_M, WIDE)
    d, d_v = tl.arange(0, WIDTH)[None, :], tl.arange(0, WIDTH_V)[None, :]
    queries = load_rows(advance(q, row, q_row), q_row, m[:, None], d, row, seqlen_q, HEAD_DIM, WIDTH, True)
    acc = tl.zeros([BLOCK_M, WIDTH_V], dtype=tl.float32)
    highest = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], dtype=tl.float32)
    low, full_low, full_high, high = key_range(
        row, tl.minimum(row + BLOCK_M, seqlen_q), seqlen_q, seqlen_k, window_left, window_right, BLOCK_N,
        WINDOW_LEFT, WINDOW_RIGHT,
    )  # fmt: skip
    if WINDOW_LEFT:
        acc, highest, total = _attend(
            acc, highest, total, queries, k, v, k_row, v_row, low, full_low, row, seqlen_q, seqlen_k, scale, softcap,
            slope, bias, bias_row, bias_key, mask, mask_row, mask_key, window_left, window_right,
            HEAD_DIM, HEAD_DIM_V, WIDTH, WIDTH_V, BLOCK_M, BLOCK_N, SOFTCAP, ALIBI,
            BIAS_ROWS, BIAS_KEYS, MASK_ROWS, MASK_KEYS, WINDOW_LEFT, WINDOW_RIGHT, WIDE, True,
        )  # fmt: skip
    acc, highest, total = _attend(
        acc, highest, total, queries, k, v, k_row, v_row, full_low, full_high, row, seqlen_q, seqlen_k, scale, softcap,
        slope, bias, bias_row, bias_key, mask, mask_row, mask_key, window_left, window_right,
        HEAD_DIM, HEAD_DIM_V, WIDTH, WIDTH_V, BLOCK_M, BLOCK_N, SOFTCAP, ALIBI,
        BIAS_ROWS, BIAS_KEYS, MASK_ROWS, MASK_KEYS, WINDOW_LEFT, WINDOW_RIGHT, WIDE, False,
    )  # fmt: skip
    acc, highest, total = _attend(
        acc, highest, total, queries, k, v, k_row, v_row, full_high, high, row, seqlen_q, seqlen_k, scale, softcap,
        slope, bias, bias_row, bias_key, mask, mask_row, mask_key, window_left, window_right,
        HEAD_DIM, HEAD_DIM_V, WIDTH, WIDTH_V, BLOCK_M, BLOCK_N, SOFTCAP, ALIBI,
        BIAS_ROWS, BIAS_KEYS, MASK_ROWS, MASK_KEYS, WINDOW_LEFT, WINDOW_RIGHT, WIDE, True,
    )  # fmt: skip

    dead = highest == float("-inf")
    if SINKS:
        acc, highest, total = join_sink(acc, highest, total, sink)
    inside = row + m < seqlen_q
    weight = tl.where(dead, 0.0, 1.0 / tl.where(dead, 1.0, total))
    result = narrow(acc * weight[:, None], out.dtype.element_ty)
    out = advance(out, row, out_row)
    tl.store(out + (m[:, None] * out_row + d_v), result, mask=inside[:, None] & (d_v < HEAD_DIM_V))
    if lse is not None:
        logarithm = highest + tl.log(tl.where(dead, 1.0, total))
        tl.store(advance(lse, row, 1) + m, tl.where(dead, float("-inf"), logarithm), mask=inside)


@triton.jit
def _clear_lse(start, first, last, BLOCK: tl.constexpr):
    """Rows behind the last sequence of a packed batch have no key: -inf."""
    m = tl.arange(0, BLOCK)
    nothing = tl.full([BLOCK], float("-inf"), tl.float32)
    for row in tl.range(first, last, BLOCK):
        tl.store(advance(start, row, 1) + m, nothing, mask=row + m < last)


@triton.jit(do_not_specialize=["batch", "heads", "group", "row_tiles", "seqlen_q", "seqlen_k", "total_q",
                               "window_left", "window_right"])  # fmt: skip
def attention_forward(
    q, k, v, out, lse, alibi_slopes, bias, mask, sinks, cu_seqlens_q, cu_seqlens_k, rng,
    batch, heads, group, row_tiles, seqlen_q, seqlen_k, total_q,
    q_batch, q_row, q_head, k_batch, k_row, k_head, v_batch, v_row, v_head, out_batch, out_row, out_head,
    lse_batch, lse_head, alibi_batch, bias_batch, bias_head, bias_row, bias_key,
    mask_batch, mask_head, mask_row, mask_key, window_left, window_right, scale, softcap,
    HEAD_DIM: tl.constexpr, HEAD_DIM_V: tl.constexpr, WIDTH: tl.constexpr, WIDTH_V: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, VARLEN: tl.constexpr, SOFTCAP: tl.constexpr,
    BIAS_ROWS: tl.constexpr, BIAS_KEYS: tl.constexpr, MASK_ROWS: tl.constexpr, MASK_KEYS: tl.constexpr,
    WINDOW_LEFT: tl.constexpr, WINDOW_RIGHT: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Tiles of BLOCK_M rows, row_tiles * heads * batch of them, dealt out to any number of programs.

    Tensors may be None but for q, k, v and out; rng always is.
    """
    ALIBI: tl.constexpr = alibi_slopes is not None
    SINKS: tl.constexpr = sinks is not None
    sequences = heads * batch  # the rows of one head
    for task in tl.range(tl.program_id(0), row_tiles * sequences, tl.num_programs(0)):
        # The last rows see the most keys under a causal band. All heads' last rows come first, then those before, so
        # that no program gets more than one tile's difference of work more than another.
        row = (row_tiles - 1 - task // sequences) * BLOCK_M
        head = task % heads
        index = task % sequences // heads
        first_row, rows = bounds(cu_seqlens_q, index, seqlen_q, VARLEN)
        first_key, keys = bounds(cu_seqlens_k, index, seqlen_k, VARLEN)
        head_kv = head // group
        slope = 0.0
        if ALIBI:
            slope = tl.load(advance(alibi_slopes, index, alibi_batch) + head)
        sink = 0.0
        if SINKS:
            sink = tl.load(sinks + head)
        bias_of_head, mask_of_head, lse_of_head = bias, mask, lse
        if bias is not None:
            bias_of_head = advance(advance(bias, index, bias_batch), head, bias_head)
        if mask is not None:
            mask_of_head = advance(advance(mask, index, mask_batch), head, mask_head)
        if lse is not None:
            lse_of_head = advance(advance(advance(lse, index, lse_batch), head, lse_head), first_row, 1)
        if row < rows:
            _attend_rows(
                advance(advance(advance(q, index, q_batch), head, q_head), first_row, q_row),
                advance(advance(advance(k, index, k_batch), head_kv, k_head), first_key, k_row),
                advance(advance(advance(v, index, v_batch), head_kv, v_head), first_key, v_row),
                advance(advance(advance(out, index, out_batch), head, out_head), first_row, out_row),
                lse_of_head, slope, bias_of_head, mask_of_head, sink, row, rows, keys,
                q_row, k_row, v_row, out_row, bias_row, bias_key, mask_row, mask_key,
                window_left, window_right, scale, softcap,
                HEAD_DIM, HEAD_DIM_V, WIDTH, WIDTH_V, BLOCK_M, BLOCK_N, SOFTCAP, ALIBI, SINKS,
                BIAS_ROWS, BIAS_KEYS, MASK_ROWS, MASK_KEYS, WINDOW_LEFT, WINDOW_RIGHT, WIDE,
            )  # fmt: skip
    if VARLEN:  # what lies behind the last sequence
        end = tl.load(cu_seqlens_q + batch)
        for head in tl.range(tl.program_id(0), heads, tl.num_programs(0)):
            clear_rows(advance(out, head, out_head), end, total_q, out_row, HEAD_DIM_V, WIDTH_V, BLOCK_M)
            if lse is not None:
                _clear_lse(advance(lse, head, lse_head), end, total_q, BLOCK_M)
