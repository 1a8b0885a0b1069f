"""Backward attention that recomputes the probabilities tile by tile from (q, k, lse), in torch operations.

With P the probabilities, D = rowsum(dout · out) − dlse and S the scores (Dao 2023, FlashAttention-2, section 3.1):

    dV += (P · dropout)ᵀ dout        dP = (dout Vᵀ) · dropout        dS = P · (dP − D)
    dQ += scale · dS K               dK += scale · dSᵀ Q             (dS times d softcap where there is one)

Every sum runs in a fixed order, so the result is bitwise repeatable for the same config, thread count and device.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from faops.backends.torch.tiles import (
    LOG2E,
    Chunk,
    Features,
    Range,
    TileScores,
    chunks,
    compute_dtype,
    cut,
    pack_keys,
    pack_rows,
    unpack_rows,
)
from faops.registry import Config


@dataclass(frozen=True)
class Gradients:
    """Where the gradients of one dense segment go: dq, dk, dv like q, k, v; dbias and dsinks in the compute dtype,
    added to, shaped like bias and (H,). The last two may be None.
    """

    dq: Tensor
    dk: Tensor
    dv: Tensor
    dbias: Tensor | None
    dsinks: Tensor | None


def attend_backward(
    dout: Tensor,
    dlse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    features: Features,
    config: Config,
    gradients: Gradients,
) -> None:
    """Gradients of one dense segment, written into ``gradients``.

    Shapes: dout and out (B, M, H, Dv), lse and dlse (B, H, M), q (B, M, H, D), k (B, N, Hk, D), v (B, N, Hk, Dv).
    """
    batch, seqlen_q, heads_q, _ = q.shape
    seqlen_k, heads_kv = k.shape[1], k.shape[2]
    if q.numel() == 0 or k.numel() == 0 or dout.numel() == 0:
        for gradient in (gradients.dq, gradients.dk, gradients.dv):
            gradient.zero_()
        return
    dtype = compute_dtype(q.dtype)
    group = heads_q // heads_kv
    block_q, block_k = config.integer("block_q"), config.integer("block_k")
    for chunk in chunks(batch, heads_kv, config.integer("block_h")):
        keys, values = pack_keys(k, chunk, dtype), pack_keys(v, chunk, dtype)
        scores = TileScores(features, chunk, (heads_q, heads_kv), (seqlen_q, seqlen_k))
        worker = _ChunkBackward(scores, keys, values, block_q, block_k, gradients.dbias)
        for first in range(0, seqlen_q, block_q):
            rows = (first, min(first + block_q, seqlen_q))
            queries, douts, outs = (pack_rows(tensor, chunk, group, rows, dtype) for tensor in (q, dout, out))
            row_lse = _row_values(lse, chunk, group, rows)
            delta = (douts * outs).sum(-1, keepdim=True)
            if dlse is not None:
                delta -= _row_values(dlse, chunk, group, rows).to(dtype)
            dead = row_lse == -math.inf
            # Every key of a dead row is hidden, so any finite lse gives it probabilities of 0.
            row_lse = row_lse.to(dtype).masked_fill(dead, 0.0)
            unpack_rows(worker.rows(queries, douts, row_lse, delta, rows), gradients.dq, chunk, group, rows)
            if gradients.dsinks is not None and features.sinks is not None:
                _sink_gradient(gradients.dsinks, features.sinks, scores, row_lse, delta.masked_fill(dead, 0.0), rows)
        for packed, target in ((worker.dk, gradients.dk), (worker.dv, gradients.dv)):
            view = packed.view(chunk.b1 - chunk.b0, chunk.h1 - chunk.h0, seqlen_k, packed.shape[-1])
            target[chunk.b0 : chunk.b1, :, chunk.h0 : chunk.h1].copy_(view.transpose(1, 2))


class _ChunkBackward:
    """The tiles of one chunk: holds dK and dV while the row tiles go by. K and V are (C, N, D) and (C, N, Dv)."""

    def __init__(
        self, scores: TileScores, k: Tensor, v: Tensor, block_q: int, block_k: int, dbias: Tensor | None
    ) -> None:
        self.scores, self.k, self.v, self.block_k = scores, k, v, block_k
        self.dk, self.dv = torch.zeros_like(k), torch.zeros_like(v)
        self.dbias = None if dbias is None else scores.per_pair(dbias)
        height = scores.group * min(block_q, scores.seqlen_q)
        size = k.shape[0] * height * min(block_k, k.shape[1])
        self.buffers = [k.new_empty(size) for _ in range(3 if scores.features.softcap > 0 else 2)]

    def rows(self, q: Tensor, dout: Tensor, lse: Tensor, delta: Tensor, rows: Range) -> Tensor:
        """dQ of one tile of rows, (C, G·m, D); adds to dK, dV and dbias. lse and delta are (C, G·m, 1)."""
        scores, scale = self.scores, self.scores.features.scale
        lse2 = lse * LOG2E
        dq = torch.zeros_like(q)
        low, high = scores.visible_keys(rows)
        for first in range(low, high, self.block_k):
            keys = (first, min(first + self.block_k, high))
            shape = (q.shape[0], q.shape[1], keys[1] - keys[0])
            tiles = [buffer[: math.prod(shape)].view(shape) for buffer in self.buffers]
            probabilities, dscores = tiles[0], tiles[1]
            slope = tiles[2] if len(tiles) == 3 else None
            k, v = self.k[:, keys[0] : keys[1]], self.v[:, keys[0] : keys[1]]
            dk, dv = self.dk[:, keys[0] : keys[1]], self.dv[:, keys[0] : keys[1]]

            scores.product(q, k, probabilities)
            scores.apply(probabilities, rows, keys, slope)
            scores.exponentiate(probabilities, lse2)
            torch.bmm(dout, v.mT, out=dscores)
            if scores.batch_heads is None:
                dv.baddbmm_(probabilities.mT, dout)
            else:
                keep = scores.keep(rows, keys, probabilities.dtype)
                dv.baddbmm_((probabilities * keep).mT, dout)
                dscores.mul_(keep)
            dscores.sub_(delta).mul_(probabilities)
            if self.dbias is not None:
                _add_reduced(cut(self.dbias, rows, keys), scores.view(dscores, rows, keys))
            if slope is not None:
                dscores.mul_(slope)
            dq.baddbmm_(dscores, k, alpha=scale)
            dk.baddbmm_(dscores.mT, q, alpha=scale)
        return dq


def _row_values(values: Tensor, chunk: Chunk, group: int, rows: Range) -> Tensor:
    """(B, H, M) → (C, G·m, 1) of a chunk's rows."""
    part = values[chunk.b0 : chunk.b1, chunk.h0 * group : chunk.h1 * group, rows[0] : rows[1]]
    return part.reshape(chunk.count, group * (rows[1] - rows[0]), 1)


def _add_reduced(target: Tensor, values: Tensor) -> None:
    """Add ``values`` to ``target``, summed over the axes that ``target`` broadcasts."""
    axes = [axis for axis, (have, want) in enumerate(zip(values.shape, target.shape)) if have != want]
    target.add_(values.sum(axes, keepdim=True) if axes else values)


def _sink_gradient(dsinks: Tensor, sinks: Tensor, scores: TileScores, lse: Tensor, delta: Tensor, rows: Range) -> None:
    """dsink = −Σ over batch and rows of exp(sink − lse) · D: the sink is a key whose value is 0."""
    sink = scores.per_head(sinks.to(lse.dtype)[None])
    share = (sink - scores.view(lse, rows, (0, 1))).exp_().mul_(scores.view(delta, rows, (0, 1)))
    scores.per_head(dsinks[None]).sub_(share.sum((0, 3, 4), keepdim=True))
