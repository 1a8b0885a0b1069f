"""Backward attention: probabilities are made again from lse tile by tile (Dao 2023, FlashAttention-2, section 3.1).

With P the probabilities and delta = rowsum(dout * out) - dlse:

    dV = P^T dout        dS = P * (dout V^T - delta)        dQ = scale dS K        dK = scale dS^T Q

:func:`prepare` computes delta. :func:`attention_dkv` owns a block of keys and steps over the rows that see it,
:func:`attention_dq` owns a block of rows and steps over their keys: each sum has one owner and a fixed order, so
results repeat bitwise. In the faster and unordered form dK's kernel adds to dQ atomically and the other is left out.
"""

from __future__ import annotations

import triton
import triton.language as tl

from faops.backends.triton.kernels.arithmetic import dot, narrow
from faops.backends.triton.kernels.gradients import load_row_values, tile_gradient
from faops.backends.triton.kernels.scores import (
    LOG2E,
    advance,
    bounds,
    clear_rows,
    indices,
    keep_tile,
    key_range,
    load_rows,
    row_range,
)

_UNSPECIALIZED = [
    "batch", "heads", "heads_kv", "group", "row_tiles", "key_tiles", "seqlen_q", "seqlen_k", "total_q", "total_k",
    "window_left", "window_right", "drop_below",
]  # fmt: skip


@triton.jit(do_not_specialize=["heads", "row_tiles", "seqlen_q"])
def prepare(
    dout, out, lse, dlse, delta, sinks, dsinks, cu_seqlens_q, heads, row_tiles, seqlen_q,
    dout_batch, dout_row, dout_head, out_batch, out_row, out_head, lse_batch, lse_head,
    HEAD_DIM_V: tl.constexpr, WIDTH_V: tl.constexpr, BLOCK_M: tl.constexpr, VARLEN: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """delta of every row, 0 where a row has no key; with sinks each tile's part of their gradient, (tiles, heads).

    A sink is one more key whose value is 0: dsink = -sum over rows of exp(sink - lse) * delta.
    """
    program = tl.program_id(0)
    row = program % row_tiles * BLOCK_M
    head = program // row_tiles % heads
    index = program // row_tiles // heads
    first_row, seqlen_q = bounds(cu_seqlens_q, index, seqlen_q, VARLEN)
    m = indices(BLOCK_M, WIDE)
    d_v = tl.arange(0, WIDTH_V)[None, :]
    inside = row + m < seqlen_q
    dout = advance(advance(advance(dout, index, dout_batch), head, dout_head), first_row + row, dout_row)
    out = advance(advance(advance(out, index, out_batch), head, out_head), first_row + row, out_row)
    at = tl.cast(index, tl.int64) * lse_batch + tl.cast(head, tl.int64) * lse_head + first_row + row + m
    douts = load_rows(dout, dout_row, m[:, None], d_v, row, seqlen_q, HEAD_DIM_V, WIDTH_V, True).to(tl.float32)
    outs = load_rows(out, out_row, m[:, None], d_v, row, seqlen_q, HEAD_DIM_V, WIDTH_V, True).to(tl.float32)
    row_lse = tl.load(lse + at, mask=inside, other=float("-inf"))
    value = tl.sum(douts * outs, 1)
    if dlse is not None:
        value -= tl.load(dlse + at, mask=inside, other=0.0)
    dead = row_lse == float("-inf")
    value = tl.where(dead, 0.0, value)
    tl.store(delta + at, value, mask=inside)
    if dsinks is not None:
        sink = tl.load(sinks + head)
        share = tl.where(dead, 0.0, tl.exp2((sink - tl.where(dead, sink, row_lse)) * LOG2E))
        tile = tl.cast(index, tl.int64) * row_tiles + program % row_tiles
        tl.store(dsinks + tile * heads + head, -tl.sum(share * value, 0))


@triton.jit
def _gather_rows(
    dk, dv, k, v, q, dout, lse, delta, dq, q_row, q_head, dout_row, dout_head, lse_head, dq_row, dq_head,
    first, last, first_head, group, key, first_batch_head, seqlen_q, seqlen_k, scale, softcap,
    alibi_slopes, bias, bias_head, bias_row, bias_key, mask, mask_head, mask_row, mask_key,
    rng, drop_below, keep_scale, window_left, window_right,
    HEAD_DIM: tl.constexpr, HEAD_DIM_V: tl.constexpr, WIDTH: tl.constexpr, WIDTH_V: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, WINDOW_LEFT: tl.constexpr, WINDOW_RIGHT: tl.constexpr,
    SOFTCAP: tl.constexpr, DROPOUT: tl.constexpr, PRECISION: tl.constexpr, WIDE: tl.constexpr, EDGE: tl.constexpr,
):  # fmt: skip
    """Add what rows of blocks [first, last) of a group's heads give to a block of (dK, dV).

    Tiles are transposed: keys by rows. Heads and rows are one loop, because two nested ones cost registers.
    """
    ALIBI: tl.constexpr = alibi_slopes is not None
    m = indices(BLOCK_M, WIDE)
    n = indices(BLOCK_N, WIDE)[:, None]
    d, d_v = tl.arange(0, WIDTH)[None, :], tl.arange(0, WIDTH_V)[None, :]
    blocks = tl.cdiv(last - first, BLOCK_M)
    for step in tl.range(0, blocks * group):
        head = first_head + step // blocks
        row = first + step % blocks * BLOCK_M
        q_at = advance(advance(q, head, q_head), row, q_row)
        queries = load_rows(q_at, q_row, m[:, None], d, row, seqlen_q, HEAD_DIM, WIDTH, EDGE)
        products = dot(k, tl.trans(queries), None, PRECISION)
        dout_at = advance(advance(dout, head, dout_head), row, dout_row)
        douts = load_rows(dout_at, dout_row, m[:, None], d_v, row, seqlen_q, HEAD_DIM_V, WIDTH_V, EDGE)
        dweights = dot(v, tl.trans(douts), None, PRECISION)
        lse_at, delta_at = (
            advance(advance(lse, head, lse_head), row, 1),
            advance(advance(delta, head, lse_head), row, 1),
        )
        row_lse, row_delta = load_row_values(lse_at, delta_at, m, row, seqlen_q, EDGE)
        slope = 0.0
        if ALIBI:
            slope = tl.load(alibi_slopes + head)
        bias_at = bias
        if bias is not None:
            bias_at = advance(bias, head, bias_head)
        mask_at = mask
        if mask is not None:
            mask_at = advance(mask, head, mask_head)
        keep = 0
        if DROPOUT:
            drawn = keep_tile(rng, row, key, first_batch_head + step // blocks, drop_below, BLOCK_M, BLOCK_N)
            keep = tl.trans(drawn)
        weights, _, dproducts = tile_gradient(
            products, dweights, row_lse[None, :], row_delta[None, :], keep, keep_scale, m[None, :], n, row, key,
            seqlen_q, seqlen_k, scale, softcap, slope, bias_at, bias_row, bias_key, mask_at, mask_row, mask_key,
            window_left, window_right, SOFTCAP, ALIBI, DROPOUT, WINDOW_LEFT, WINDOW_RIGHT, EDGE,
        )  # fmt: skip
        dv = dot(narrow(weights, douts.dtype), douts, dv, PRECISION)
        dproducts = narrow(dproducts, queries.dtype)
        dk = dot(dproducts, queries, dk, PRECISION)
        if dq is not None:
            part = dot(tl.trans(dproducts), k, None, PRECISION) * scale
            at = advance(advance(dq, head, dq_head), row, dq_row) + (m[:, None] * dq_row + d)
            tl.atomic_add(at, part, mask=(row + m[:, None] < seqlen_q) & (d < HEAD_DIM), sem="relaxed")
    return dk, dv


@triton.jit(do_not_specialize=_UNSPECIALIZED)
def attention_dkv(
    q, k, v, dout, lse, delta, dk, dv, dq, alibi_slopes, bias, mask, cu_seqlens_q, cu_seqlens_k, rng,
    batch, heads, heads_kv, group, key_tiles, seqlen_q, seqlen_k, total_k,
    q_batch, q_row, q_head, k_batch, k_row, k_head, v_batch, v_row, v_head, dout_batch, dout_row, dout_head,
    dk_batch, dk_row, dk_head, dv_batch, dv_row, dv_head, dq_batch, dq_row, dq_head, lse_batch, lse_head,
    alibi_batch, bias_batch, bias_head, bias_row, bias_key, mask_batch, mask_head, mask_row, mask_key,
    window_left, window_right, scale, softcap, keep_scale, drop_below,
    HEAD_DIM: tl.constexpr, HEAD_DIM_V: tl.constexpr, WIDTH: tl.constexpr, WIDTH_V: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, VARLEN: tl.constexpr, WINDOW_LEFT: tl.constexpr,
    WINDOW_RIGHT: tl.constexpr, SOFTCAP: tl.constexpr, DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    """dK and dV of BLOCK_N keys of one key/value head: the sum over its query heads is made here, in their order.

    ``dq`` is None, or a float32 buffer of zeros that dQ is added to atomically. The grid is key_tiles * heads_kv *
    batch, and heads_kv more for what lies behind the last sequence of a packed batch.
    """
    program = tl.program_id(0)
    head_kv = program // key_tiles % heads_kv
    index = program // key_tiles // heads_kv
    if index >= batch:
        if VARLEN:
            spare = program - key_tiles * heads_kv * batch
            end = tl.load(cu_seqlens_k + batch)
            clear_rows(advance(dk, spare, dk_head), end, total_k, dk_row, HEAD_DIM, WIDTH, BLOCK_N)
            clear_rows(advance(dv, spare, dv_head), end, total_k, dv_row, HEAD_DIM_V, WIDTH_V, BLOCK_N)
        return
    key = program % key_tiles * BLOCK_N  # under a causal band the first keys are seen by the most rows
    first_row, seqlen_q = bounds(cu_seqlens_q, index, seqlen_q, VARLEN)
    first_key, seqlen_k = bounds(cu_seqlens_k, index, seqlen_k, VARLEN)
    if key >= seqlen_k:
        return
    n = indices(BLOCK_N, WIDE)[:, None]
    d, d_v = tl.arange(0, WIDTH)[None, :], tl.arange(0, WIDTH_V)[None, :]
    k = advance(advance(advance(k, index, k_batch), head_kv, k_head), first_key + key, k_row)
    v = advance(advance(advance(v, index, v_batch), head_kv, v_head), first_key + key, v_row)
    keys = load_rows(k, k_row, n, d, key, seqlen_k, HEAD_DIM, WIDTH, True)
    values = load_rows(v, v_row, n, d_v, key, seqlen_k, HEAD_DIM_V, WIDTH_V, True)
    sum_dk = tl.zeros([BLOCK_N, WIDTH], dtype=tl.float32)
    sum_dv = tl.zeros([BLOCK_N, WIDTH_V], dtype=tl.float32)
    keys_end = tl.minimum(key + BLOCK_N, seqlen_k)
    low, full_low, full_high, high = row_range(
        key, keys_end, seqlen_q, seqlen_k, window_left, window_right, BLOCK_M, WINDOW_LEFT, WINDOW_RIGHT
    )
    if key + BLOCK_N > seqlen_k:  # keys behind the last must not reach dQ
        full_low = low
        full_high = low
    first_head = head_kv * group
    q = advance(advance(q, index, q_batch), first_row, q_row)
    dout = advance(advance(dout, index, dout_batch), first_row, dout_row)
    lse = advance(advance(lse, index, lse_batch), first_row, 1)
    delta = advance(advance(delta, index, lse_batch), first_row, 1)
    if dq is not None:
        dq = advance(advance(dq, index, dq_batch), first_row, dq_row)
    if alibi_slopes is not None:
        alibi_slopes = advance(alibi_slopes, index, alibi_batch)
    if bias is not None:
        bias = advance(bias, index, bias_batch)
    if mask is not None:
        mask = advance(mask, index, mask_batch)
    if WINDOW_RIGHT:
        sum_dk, sum_dv = _gather_rows(
            sum_dk, sum_dv, keys, values, q, dout, lse, delta, dq, q_row, q_head, dout_row, dout_head, lse_head,
            dq_row, dq_head, low, full_low, first_head, group, key, index * heads + first_head, seqlen_q, seqlen_k,
            scale, softcap, alibi_slopes, bias, bias_head, bias_row, bias_key, mask, mask_head, mask_row, mask_key,
            rng, drop_below, keep_scale, window_left, window_right, HEAD_DIM, HEAD_DIM_V, WIDTH, WIDTH_V,
            BLOCK_M, BLOCK_N, WINDOW_LEFT, WINDOW_RIGHT, SOFTCAP, DROPOUT, PRECISION, WIDE, True,
        )  # fmt: skip
    sum_dk, sum_dv = _gather_rows(
        sum_dk, sum_dv, keys, values, q, dout, lse, delta, dq, q_row, q_head, dout_row, dout_head, lse_head,
        dq_row, dq_head, full_low, full_high, first_head, group, key, index * heads + first_head, seqlen_q, seqlen_k,
        scale, softcap, alibi_slopes, bias, bias_head, bias_row, bias_key, mask, mask_head, mask_row, mask_key,
        rng, drop_below, keep_scale, window_left, window_right, HEAD_DIM, HEAD_DIM_V, WIDTH, WIDTH_V,
        BLOCK_M, BLOCK_N, WINDOW_LEFT, WINDOW_RIGHT, SOFTCAP, DROPOUT, PRECISION, WIDE, False,
    )  # fmt: skip
    sum_dk, sum_dv = _gather_rows(
        sum_dk, sum_dv, keys, values, q, dout, lse, delta, dq, q_row, q_head, dout_row, dout_head, lse_head,
        dq_row, dq_head, full_high, high, first_head, group, key, index * heads + first_head, seqlen_q, seqlen_k,
        scale, softcap, alibi_slopes, bias, bias_head, bias_row, bias_key, mask, mask_head, mask_row, mask_key,
        rng, drop_below, keep_scale, window_left, window_right, HEAD_DIM, HEAD_DIM_V, WIDTH, WIDTH_V,
        BLOCK_M, BLOCK_N, WINDOW_LEFT, WINDOW_RIGHT, SOFTCAP, DROPOUT, PRECISION, WIDE, True,
    )  # fmt: skip
    inside = key + n < seqlen_k
    dk = advance(advance(advance(dk, index, dk_batch), head_kv, dk_head), first_key + key, dk_row)
    dv = advance(advance(advance(dv, index, dv_batch), head_kv, dv_head), first_key + key, dv_row)
    tl.store(dk + (n * dk_row + d), narrow(sum_dk * scale, dk.dtype.element_ty), mask=inside & (d < HEAD_DIM))
    tl.store(dv + (n * dv_row + d_v), narrow(sum_dv, dv.dtype.element_ty), mask=inside & (d_v < HEAD_DIM_V))


@triton.jit
def _gather_keys(
    dq, q, dout, lse, delta, k, v, k_row, v_row, first, last, row, batch_head,
    seqlen_q, seqlen_k, scale, softcap, slope, bias, bias_row, bias_key, mask, mask_row, mask_key,
    rng, drop_below, keep_scale, window_left, window_right,
    HEAD_DIM: tl.constexpr, HEAD_DIM_V: tl.constexpr, WIDTH: tl.constexpr, WIDTH_V: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, WINDOW_LEFT: tl.constexpr, WINDOW_RIGHT: tl.constexpr,
    SOFTCAP: tl.constexpr, ALIBI: tl.constexpr, DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
    WIDE: tl.constexpr, EDGE: tl.constexpr,
):  # fmt: skip
    """Add what the keys of blocks [first, last) give to a block of dQ."""
    m = indices(BLOCK_M, WIDE)[:, None]
    n = indices(BLOCK_N, WIDE)
    d, d_v = tl.arange(0, WIDTH)[None, :], tl.arange(0, WIDTH_V)[None, :]
    for key in tl.range(first, last, BLOCK_N):
        keys = load_rows(advance(k, key, k_row), k_row, n[:, None], d, key, seqlen_k, HEAD_DIM, WIDTH, EDGE)
        products = dot(q, tl.trans(keys), None, PRECISION)
        values = load_rows(advance(v, key, v_row), v_row, n[:, None], d_v, key, seqlen_k, HEAD_DIM_V, WIDTH_V, EDGE)
        dweights = dot(dout, tl.trans(values), None, PRECISION)
        keep = 0
        if DROPOUT:
            keep = keep_tile(rng, row, key, batch_head, drop_below, BLOCK_M, BLOCK_N)
        _, _, dproducts = tile_gradient(
            products, dweights, lse[:, None], delta[:, None], keep, keep_scale, m, n[None, :], row, key,
            seqlen_q, seqlen_k, scale, softcap, slope, bias, bias_row, bias_key, mask, mask_row, mask_key,
            window_left, window_right, SOFTCAP, ALIBI, DROPOUT, WINDOW_LEFT, WINDOW_RIGHT, EDGE,
        )  # fmt: skip
        dq = dot(narrow(dproducts, keys.dtype), keys, dq, PRECISION)
    return dq


@triton.jit(do_not_specialize=_UNSPECIALIZED)
def attention_dq(
    q, k, v, dout, lse, delta, dq, alibi_slopes, bias, mask, cu_seqlens_q, cu_seqlens_k, rng,
    batch, heads, group, row_tiles, seqlen_q, seqlen_k, total_q,
    q_batch, q_row, q_head, k_batch, k_row, k_head, v_batch, v_row, v_head, dout_batch, dout_row, dout_head,
    dq_batch, dq_row, dq_head, lse_batch, lse_head,
    alibi_batch, bias_batch, bias_head, bias_row, bias_key, mask_batch, mask_head, mask_row, mask_key,
    window_left, window_right, scale, softcap, keep_scale, drop_below,
    HEAD_DIM: tl.constexpr, HEAD_DIM_V: tl.constexpr, WIDTH: tl.constexpr, WIDTH_V: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, VARLEN: tl.constexpr, WINDOW_LEFT: tl.constexpr,
    WINDOW_RIGHT: tl.constexpr, SOFTCAP: tl.constexpr, DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    """dQ of BLOCK_M rows of one head. The grid is that of the forward kernel."""
    program = tl.program_id(0)
    head = program // row_tiles % heads
    index = program // row_tiles // heads
    if index >= batch:
        if VARLEN:
            spare = program - row_tiles * heads * batch
            end = tl.load(cu_seqlens_q + batch)
            clear_rows(advance(dq, spare, dq_head), end, total_q, dq_row, HEAD_DIM, WIDTH, BLOCK_M)
        return
    row = (row_tiles - 1 - program % row_tiles) * BLOCK_M
    first_row, seqlen_q = bounds(cu_seqlens_q, index, seqlen_q, VARLEN)
    first_key, seqlen_k = bounds(cu_seqlens_k, index, seqlen_k, VARLEN)
    if row >= seqlen_q:
        return
    head_kv = head // group
    m = indices(BLOCK_M, WIDE)
    d, d_v = tl.arange(0, WIDTH)[None, :], tl.arange(0, WIDTH_V)[None, :]
    q = advance(advance(advance(q, index, q_batch), head, q_head), first_row + row, q_row)
    dout = advance(advance(advance(dout, index, dout_batch), head, dout_head), first_row + row, dout_row)
    k = advance(advance(advance(k, index, k_batch), head_kv, k_head), first_key, k_row)
    v = advance(advance(advance(v, index, v_batch), head_kv, v_head), first_key, v_row)
    lse = advance(advance(advance(lse, index, lse_batch), head, lse_head), first_row + row, 1)
    delta = advance(advance(advance(delta, index, lse_batch), head, lse_head), first_row + row, 1)
    queries = load_rows(q, q_row, m[:, None], d, row, seqlen_q, HEAD_DIM, WIDTH, True)
    douts = load_rows(dout, dout_row, m[:, None], d_v, row, seqlen_q, HEAD_DIM_V, WIDTH_V, True)
    row_lse, row_delta = load_row_values(lse, delta, m, row, seqlen_q, True)
    ALIBI: tl.constexpr = alibi_slopes is not None
    slope = 0.0
    if ALIBI:
        slope = tl.load(advance(alibi_slopes, index, alibi_batch) + head)
    if bias is not None:
        bias = advance(advance(bias, index, bias_batch), head, bias_head)
    if mask is not None:
        mask = advance(advance(mask, index, mask_batch), head, mask_head)
    total = tl.zeros([BLOCK_M, WIDTH], dtype=tl.float32)
    rows_end = tl.minimum(row + BLOCK_M, seqlen_q)
    low, full_low, full_high, high = key_range(
        row, rows_end, seqlen_q, seqlen_k, window_left, window_right, BLOCK_N, WINDOW_LEFT, WINDOW_RIGHT
    )
    if WINDOW_LEFT:
        total = _gather_keys(
            total, queries, douts, row_lse, row_delta, k, v, k_row, v_row, low, full_low, row, index * heads + head,
            seqlen_q, seqlen_k, scale, softcap, slope, bias, bias_row, bias_key, mask, mask_row, mask_key,
            rng, drop_below, keep_scale, window_left, window_right,
            HEAD_DIM, HEAD_DIM_V, WIDTH, WIDTH_V, BLOCK_M, BLOCK_N, WINDOW_LEFT, WINDOW_RIGHT,
            SOFTCAP, ALIBI, DROPOUT, PRECISION, WIDE, True,
        )  # fmt: skip
    total = _gather_keys(
        total, queries, douts, row_lse, row_delta, k, v, k_row, v_row, full_low, full_high, row, index * heads + head,
        seqlen_q, seqlen_k, scale, softcap, slope, bias, bias_row, bias_key, mask, mask_row, mask_key,
        rng, drop_below, keep_scale, window_left, window_right,
        HEAD_DIM, HEAD_DIM_V, WIDTH, WIDTH_V, BLOCK_M, BLOCK_N, WINDOW_LEFT, WINDOW_RIGHT,
        SOFTCAP, ALIBI, DROPOUT, PRECISION, WIDE, False,
    )  # fmt: skip
    total = _gather_keys(
        total, queries, douts, row_lse, row_delta, k, v, k_row, v_row, full_high, high, row, index * heads + head,
        seqlen_q, seqlen_k, scale, softcap, slope, bias, bias_row, bias_key, mask, mask_row, mask_key,
        rng, drop_below, keep_scale, window_left, window_right,
        HEAD_DIM, HEAD_DIM_V, WIDTH, WIDTH_V, BLOCK_M, BLOCK_N, WINDOW_LEFT, WINDOW_RIGHT,
        SOFTCAP, ALIBI, DROPOUT, PRECISION, WIDE, True,
    )  # fmt: skip
    dq = advance(advance(advance(dq, index, dq_batch), head, dq_head), first_row + row, dq_row)
    inside = row + m[:, None] < seqlen_q
    tl.store(dq + (m[:, None] * dq_row + d), narrow(total * scale, dq.dtype.element_ty), mask=inside & (d < HEAD_DIM))
