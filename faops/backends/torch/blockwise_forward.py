"""Forward attention by online softmax over tiles (Milakov and Gimelshein 2018; Dao et al. 2022), in torch operations.

Memory is O(M + N): one chunk's K and V in the compute dtype, one tile of scores, and the outputs. Tiles that causal or
window hide are skipped. Works on every torch device and in every dtype.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from faops.backends.torch.tiles import (
    LN2,
    LOG2E,
    Chunk,
    Features,
    Range,
    TileScores,
    chunks,
    compute_dtype,
    pack_keys,
    pack_rows,
    unpack_rows,
)
from faops.registry import Config


def attend(
    q: Tensor, k: Tensor, v: Tensor, features: Features, config: Config, out: Tensor, lse: Tensor | None
) -> None:
    """Attention of one dense segment, written into ``out`` and ``lse``.

    Shapes: q (B, M, H, D), k (B, N, Hk, D), v (B, N, Hk, Dv), out (B, M, H, Dv), lse (B, H, M) or None.
    """
    batch, seqlen_q, heads_q, _ = q.shape
    seqlen_k, heads_kv = k.shape[1], k.shape[2]
    if out.numel() == 0 and (lse is None or lse.numel() == 0):
        return
    if seqlen_k == 0:
        out.zero_()
        if lse is not None:
            lse.fill_(-math.inf)
        return
    dtype = compute_dtype(q.dtype)
    group = heads_q // heads_kv
    block_q, block_k = config.integer("block_q"), config.integer("block_k")
    for chunk in chunks(batch, heads_kv, config.integer("block_h")):
        keys, values = pack_keys(k, chunk, dtype), pack_keys(v, chunk, dtype)
        scores = TileScores(features, chunk, (heads_q, heads_kv), (seqlen_q, seqlen_k))
        buffer = q.new_empty(chunk.count * group * min(block_q, seqlen_q) * min(block_k, seqlen_k), dtype=dtype)
        for first in range(0, seqlen_q, block_q):
            rows = (first, min(first + block_q, seqlen_q))
            packed = pack_rows(q, chunk, group, rows, dtype)
            result, row_lse = _attend_rows(packed, keys, values, scores, rows, block_k, buffer)
            unpack_rows(result, out, chunk, group, rows)
            if lse is not None:
                heads = slice(chunk.h0 * group, chunk.h1 * group)
                shape = (chunk.b1 - chunk.b0, heads.stop - heads.start, rows[1] - rows[0])
                lse[chunk.b0 : chunk.b1, heads, rows[0] : rows[1]] = row_lse.view(shape)


def _attend_rows(
    q: Tensor, k: Tensor, v: Tensor, scores: TileScores, rows: Range, block_k: int, buffer: Tensor
) -> tuple[Tensor, Tensor]:
    """One tile of rows against all its visible keys: (C, G·m, Dv) normalised, and lse (C, G·m) in natural units.

    Running values, all in the base-2 domain: ``peak`` the row maximum, ``total`` the sum of exp2(score - peak) and
    ``accumulator`` that sum weighted by V.
    """
    count, height, _ = q.shape
    peak = total = accumulator = None
    low, high = scores.visible_keys(rows)
    for first in range(low, high, block_k):
        keys = (first, min(first + block_k, high))
        tile = buffer[: count * height * (keys[1] - keys[0])].view(count, height, keys[1] - keys[0])
        scores.product(q, k[:, keys[0] : keys[1]], tile)
        scores.apply(tile, rows, keys)
        tile_peak = tile.amax(-1, keepdim=True)
        new_peak = tile_peak if peak is None else torch.maximum(peak, tile_peak)
        # A row that has seen no key yet has peak -inf; 0 stands in, so that its exponentials are 0 and not NaN.
        anchor = new_peak.masked_fill(new_peak == -math.inf, 0.0)
        scores.exponentiate(tile, anchor)
        tile_total = tile.sum(-1, keepdim=True)
        if scores.batch_heads is not None:
            tile.mul_(scores.keep(rows, keys, tile.dtype))
        values = v[:, keys[0] : keys[1]]
        if accumulator is None or total is None or peak is None:
            total, accumulator = tile_total, torch.bmm(tile, values)
        else:
            decay = (peak - anchor).exp2_()
            total = total.mul_(decay).add_(tile_total)
            accumulator = accumulator.mul_(decay).baddbmm_(tile, values)
        peak = new_peak
    if accumulator is None or total is None or peak is None:
        return q.new_zeros(count, height, v.shape[-1]), q.new_full((count, height), -math.inf)
    if scores.features.sinks is not None:
        peak, total, accumulator = _join_sink(peak, total, accumulator, scores, scores.features.sinks)
    dead = total == 0.0
    accumulator.div_(total.masked_fill(dead, 1.0))
    return accumulator, (peak + total.log2()).mul_(LN2).squeeze(-1)


def _join_sink(
    peak: Tensor, total: Tensor, accumulator: Tensor, scores: TileScores, sinks: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Add each head's sink to the softmax denominator; rows without a key stay dead."""
    count, height, _ = peak.shape
    sink = scores.per_head(sinks.to(peak.dtype)[None] * LOG2E)[..., 0]  # (1, h, G, 1)
    chunk: Chunk = scores.chunk
    sink = sink.expand(chunk.b1 - chunk.b0, -1, -1, height // scores.group).reshape(count, height, 1)
    sink = sink.masked_fill(total == 0.0, -math.inf)
    joined = torch.maximum(peak, sink)
    anchor = joined.masked_fill(joined == -math.inf, 0.0)
    decay = (peak - anchor).exp2_()
    return joined, total * decay + (sink - anchor).exp2_(), accumulator * decay
