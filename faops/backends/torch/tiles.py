"""Tiling shared by the blockwise forward and backward: chunks of heads, tiles of rows and keys, scores of one tile.

Scores live in the base-2 log domain, because exp2 is the exponential that every backend of torch vectorises (on a CPU
in float32 it is more than ten times as fast as exp).

A chunk is a rectangle of batch rows × key/value heads, computed together as the batch of a bmm; the query heads that
share a key/value head are extra rows of it, so K and V are never expanded:

    q chunk  (C, G·m, D)     C = batch rows × kv heads of the chunk, G = query heads a kv head
    k chunk  (C, n, D)       scores (C, G·m, n), seen as (b, h, G, m, n) to apply masks
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from faops import philox
from faops.problem import Band

LOG2E = math.log2(math.e)
LN2 = math.log(2.0)

Range = tuple[int, int]  # half-open

# Base-2 logarithms below which a probability is dropped: 2^-100 is far below the rounding error of a float32 sum of
# probabilities whose largest is 1, and its products with values stay normal numbers. Likewise for float64.
NEGLIGIBLE = {torch.float32: -100.0, torch.float64: -960.0}

EDGE_TILES_KEPT = 8  # a regular tiling meets the band's edges at fewer offsets than that


@dataclass(frozen=True)
class Features:
    """What happens to the scores of one dense segment, in natural units.

    ``alibi`` is (B, H) in the compute dtype; ``bias`` and ``mask`` are 4-D and broadcastable to (B, H, M, N);
    ``first_batch`` is the batch index that the segment's first row has in the dropout generator's counter.
    """

    band: Band
    scale: float
    softcap: float = 0.0
    alibi: Tensor | None = None
    bias: Tensor | None = None
    mask: Tensor | None = None
    sinks: Tensor | None = None
    dropout_p: float = 0.0
    rng: Tensor | None = None
    first_batch: int = 0

    def segment(self, index: int, seqlen_q: int, seqlen_k: int, first_key: int = 0) -> Features:
        """The features of sequence ``index`` alone, as a batch of one with its own lengths; its keys start at column
        ``first_key`` of bias and mask.
        """

        def own(tensor: Tensor | None) -> Tensor | None:
            if tensor is None:
                return None
            tensor = tensor if tensor.shape[0] == 1 else tensor[index : index + 1]
            tensor = tensor if tensor.shape[2] == 1 else tensor[:, :, :seqlen_q]
            return tensor if tensor.shape[3] == 1 else tensor[..., first_key : first_key + seqlen_k]

        return replace(
            self,
            alibi=None if self.alibi is None else self.alibi[index : index + 1],
            bias=own(self.bias),
            mask=own(self.mask),
            first_batch=self.first_batch + index,
        )

    def columns(self, first: int, last: int) -> Features:
        """The features of keys [first, last) alone."""

        def own(tensor: Tensor | None) -> Tensor | None:
            return tensor if tensor is None or tensor.shape[3] == 1 else tensor[..., first:last]

        return replace(self, bias=own(self.bias), mask=own(self.mask))


def alibi_of(slopes: Tensor | None, batch: int, dtype: torch.dtype) -> Tensor | None:
    """Slopes of shape (H,) or (B, H) as Features wants them for inputs of ``dtype``."""
    if slopes is None:
        return None
    slopes = slopes.to(compute_dtype(dtype))
    return slopes.expand(max(1, batch), -1) if slopes.dim() == 1 else slopes


@dataclass(frozen=True)
class Chunk:
    """Batch rows [b0, b1) × key/value heads [h0, h1)."""

    b0: int
    b1: int
    h0: int
    h1: int

    @property
    def count(self) -> int:
        return (self.b1 - self.b0) * (self.h1 - self.h0)


def chunks(batch: int, heads_kv: int, target: int) -> Iterator[Chunk]:
    """Rectangles of about ``target`` (batch row, head) pairs: whole batch rows, or some heads of one row."""
    if target >= heads_kv:
        step = max(1, target // max(1, heads_kv))
        for b0 in range(0, batch, step):
            yield Chunk(b0, min(batch, b0 + step), 0, heads_kv)
    else:
        for b0 in range(batch):
            for h0 in range(0, heads_kv, max(1, target)):
                yield Chunk(b0, b0 + 1, h0, min(heads_kv, h0 + max(1, target)))


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Products and softmax are computed in float32, or in float64 for float64 inputs."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def pack_keys(tensor: Tensor, chunk: Chunk, dtype: torch.dtype) -> Tensor:
    """(B, N, Hk, D) → (C, N, D) of a chunk in the compute dtype; copies unless it lies so already."""
    part = tensor[chunk.b0 : chunk.b1, :, chunk.h0 : chunk.h1]
    return part.to(dtype).transpose(1, 2).reshape(chunk.count, tensor.shape[1], tensor.shape[3])


def pack_rows(tensor: Tensor, chunk: Chunk, group: int, rows: Range, dtype: torch.dtype) -> Tensor:
    """(B, M, H, D) → (C, G·m, D) of a chunk's rows in the compute dtype."""
    part = tensor[chunk.b0 : chunk.b1, rows[0] : rows[1], chunk.h0 * group : chunk.h1 * group]
    part = part.to(dtype).transpose(1, 2)  # (b, h·G, m, D)
    return part.reshape(chunk.count, group * (rows[1] - rows[0]), tensor.shape[3])


def unpack_rows(packed: Tensor, target: Tensor, chunk: Chunk, group: int, rows: Range) -> None:
    """Write (C, G·m, D) into the chunk's rows of a (B, M, H, D) tensor."""
    view = packed.view(chunk.b1 - chunk.b0, (chunk.h1 - chunk.h0) * group, rows[1] - rows[0], packed.shape[-1])
    target[chunk.b0 : chunk.b1, rows[0] : rows[1], chunk.h0 * group : chunk.h1 * group].copy_(view.transpose(1, 2))


class TileScores:
    """Turns the raw products of one chunk's tiles into scores, and draws its dropout mask.

    ``rows`` and ``keys`` are half-open ranges. Score tiles are (C, G·m, n), changed in place.
    """

    def __init__(self, features: Features, chunk: Chunk, heads: tuple[int, int], seqlens: tuple[int, int]) -> None:
        self.features = features
        self.chunk = chunk
        self.heads_q, heads_kv = heads
        self.seqlen_q, self.seqlen_k = seqlens
        self.group = self.heads_q // heads_kv
        self.alibi = None if features.alibi is None else self.per_head(features.alibi * LOG2E)
        self.bias = None if features.bias is None else self.per_pair(features.bias)
        self.mask = None if features.mask is None else self.per_pair(features.mask)
        self.batch_heads = self._counters() if features.dropout_p > 0 else None
        self._edges: dict[tuple[int, int, int], Tensor] = {}

    def product(self, q: Tensor, k: Tensor, buffer: Tensor) -> Tensor:
        """scale · q·kᵀ of (C, G·m, D) and (C, n, D): in the base-2 domain, or in natural units if softcap follows."""
        scale = self.features.scale if self.features.softcap > 0 else self.features.scale * LOG2E
        return torch.baddbmm(buffer, q, k.mT, beta=0, alpha=scale, out=buffer)

    def apply(self, scores: Tensor, rows: Range, keys: Range, slope: Tensor | None = None) -> None:
        """Softcap, ALiBi, bias, mask and band. ``slope`` receives d softcap / d score, which backward multiplies by."""
        features = self.features
        if features.softcap > 0:
            scores.div_(features.softcap).tanh_()
            if slope is not None:
                torch.mul(scores, scores, out=slope).neg_().add_(1.0)
            scores.mul_(features.softcap * LOG2E)
        tile = self.view(scores, rows, keys)
        if self.alibi is not None:
            tile.addcmul_(self.alibi, self._distance(rows, keys, scores), value=-1.0)
        if self.bias is not None:
            tile.add_(cut(self.bias, rows, keys), alpha=LOG2E)
        # Hidden pairs are added as -inf: on a CPU masked_fill_ with a broadcast mask is twenty times as slow as add_.
        if self.mask is not None:
            visible = cut(self.mask, rows, keys)
            tile.add_(visible.new_zeros(visible.shape, dtype=tile.dtype).masked_fill_(~visible, -math.inf))
        if features.band.hides_within(*rows, *keys, self.seqlen_q, self.seqlen_k):
            tile.add_(self._outside_band(rows, keys, scores))

    def exponentiate(self, scores: Tensor, anchor: Tensor) -> Tensor:
        """exp2(scores - anchor), in place.

        On a CPU what would come out subnormal, or as good as nothing beside the row's peak, becomes 0: arithmetic on
        subnormal numbers is ten times as slow there.
        """
        scores.sub_(anchor)
        if scores.device.type == "cpu":
            torch.threshold_(scores, NEGLIGIBLE[scores.dtype], -math.inf)
        return scores.exp2_()

    def keep(self, rows: Range, keys: Range, dtype: torch.dtype) -> Tensor:
        """Dropout factors of a tile, (C, G·m, n): 0 or 1 / (1 - p)."""
        assert self.features.rng is not None and self.batch_heads is not None
        kept = philox.keep_tile(self.features.rng, rows, keys, self.batch_heads, self.features.dropout_p)
        factors = kept.to(dtype).mul_(1.0 / (1.0 - self.features.dropout_p))
        return factors.view(self.chunk.count, -1, keys[1] - keys[0])

    def visible_keys(self, rows: Range) -> Range:
        """Keys that the band leaves to any of ``rows``."""
        return self.features.band.keys_of_rows(*rows, self.seqlen_q, self.seqlen_k)

    def view(self, tile: Tensor, rows: Range, keys: Range) -> Tensor:
        """(C, G·m, n) seen as (b, h, G, m, n)."""
        chunk = self.chunk
        return tile.view(chunk.b1 - chunk.b0, chunk.h1 - chunk.h0, self.group, rows[1] - rows[0], keys[1] - keys[0])

    def per_head(self, values: Tensor) -> Tensor:
        """(B | 1, H) → the chunk's (b | 1, h, G, 1, 1)."""
        return self.per_pair(values[:, :, None, None])

    def per_pair(self, values: Tensor) -> Tensor:
        """(B | 1, H | 1, ...) → the chunk's (b | 1, h | 1, G | 1, ...), a view."""
        chunk = self.chunk
        if values.shape[0] != 1:
            values = values[chunk.b0 : chunk.b1]
        if values.shape[1] == 1:
            return values.unsqueeze(2)
        return split_heads(values, self.group)[:, chunk.h0 : chunk.h1]

    def _distance(self, rows: Range, keys: Range, like: Tensor) -> Tensor:
        """abs(i + N - M - j) of a tile, (m, n), exact in float32 up to 2^24."""
        shift = self.seqlen_k - self.seqlen_q
        i = torch.arange(rows[0] + shift, rows[1] + shift, device=like.device, dtype=like.dtype)
        j = torch.arange(*keys, device=like.device, dtype=like.dtype)
        return (i[:, None] - j).abs_()

    def _outside_band(self, rows: Range, keys: Range, like: Tensor) -> Tensor:
        """0 where the band shows a pair and -inf where it hides it, (m, n). Tiles at the same offset share one."""
        band = self.features.band
        offset = rows[0] + self.seqlen_k - self.seqlen_q - keys[0]  # the diagonal: key j of the tile = row i + offset
        key = (offset, rows[1] - rows[0], keys[1] - keys[0])
        if key not in self._edges:
            edge = like.new_full(key[1:], -math.inf) if band.right >= 0 else like.new_zeros(key[1:])
            if band.right >= 0:
                edge.triu_(offset + band.right + 1)
            if band.left >= 0:
                edge.add_(like.new_full(key[1:], -math.inf).tril_(offset - band.left - 1))
            if len(self._edges) >= EDGE_TILES_KEPT:
                self._edges.clear()
            self._edges[key] = edge
        return self._edges[key]

    def _counters(self) -> Tensor:
        """b·H + h of every (batch row, query head) of the chunk, (b, h, G): the dropout generator's third counter."""
        assert self.features.rng is not None
        chunk, device = self.chunk, self.features.rng.device
        first = self.features.first_batch
        batch = torch.arange(first + chunk.b0, first + chunk.b1, device=device) * self.heads_q
        head = torch.arange(chunk.h0 * self.group, chunk.h1 * self.group, device=device)
        return split_heads(batch[:, None] + head, self.group)


def split_heads(values: Tensor, group: int) -> Tensor:
    """(B, H, ...) → (B, Hk, G, ...), a view."""
    return values.view(values.shape[0], values.shape[1] // group, group, *values.shape[2:])


def cut(pairs: Tensor, rows: Range, keys: Range) -> Tensor:
    """The tile of a (..., M | 1, N | 1) tensor."""
    if pairs.shape[-2] != 1:
        pairs = pairs[..., rows[0] : rows[1], :]
    return pairs if pairs.shape[-1] == 1 else pairs[..., keys[0] : keys[1]]
