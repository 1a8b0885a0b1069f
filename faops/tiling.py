"""How many tiles a kernel computes: of a band, of a problem's heads and sequences, and of the block that has most.

NumPy is imported at the first use, so that importing faops does not wait for it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from typing import Any, NamedTuple

from faops.problem import UNLIMITED, AttentionProblem, Band

LENGTHS_COUNTED = 4  # lengths that stand for those of a packed batch


class Tiles(NamedTuple):
    """The tiles that a kernel computes: of how many blocks, of all of them, and of the block that has most."""

    blocks: float
    total: float
    longest: int

    @property
    def unevenness(self) -> float:
        """The longest block as a multiple of the mean."""
        return self.longest * self.blocks / self.total if self.total else 1.0

    @property
    def steps(self) -> float:
        """Tiles of a mean block."""
        return self.total / self.blocks if self.blocks else 0.0


@functools.lru_cache(maxsize=4096)
def tiles_of_band(band: Band, seqlen_q: int, seqlen_k: int, block_m: int, block_n: int) -> Tiles:
    """Tiles where each block of ``block_m`` rows walks over the blocks of ``block_n`` keys, counted from key 0, that
    any of its rows sees.
    """
    import numpy as np

    _, low, high = _spans(band, seqlen_q, seqlen_k, block_m)
    counts = np.where(high > low, -(-high // block_n) - low // block_n, 0)
    return Tiles(len(counts), int(counts.sum()), int(counts.max()))


class Loops(NamedTuple):
    """What loops over a band compute: blocks of rows, tiles, and pairs in them."""

    blocks: int
    tiles: int
    pairs: int


@functools.lru_cache(maxsize=4096)
def loops_of_band(band: Band, seqlen_q: int, seqlen_k: int, block_m: int, block_n: int) -> Loops:
    """The same where tiles begin at the first key that any row of a block sees and end at the last."""
    rows, low, high = _spans(band, seqlen_q, seqlen_k, block_m)
    seen = high - low
    return Loops(len(rows), int((-(-seen // block_n)).sum()), int((rows * seen).sum()))


def _spans(band: Band, seqlen_q: int, seqlen_k: int, block_m: int) -> tuple[Any, Any, Any]:
    """Arrays over blocks of rows: how many rows, and the half-open range of keys that any of them sees."""
    import numpy as np

    first = np.arange(0, max(1, seqlen_q), block_m, dtype=np.int64)
    last = np.minimum(first + block_m, seqlen_q)
    shift = seqlen_k - seqlen_q
    low, high = np.zeros_like(first), np.where(last > first, seqlen_k, 0)
    if band.left != UNLIMITED:
        low = np.maximum(0, first + shift - band.left)
    if band.right != UNLIMITED:
        high = np.minimum(high, last + shift + band.right)
    return last - first, low, np.maximum(low, high)


def walk_keys(problem: AttentionProblem, block_m: int, block_n: int) -> Tiles:
    """Tiles of all heads and sequences, where a block has ``block_m`` rows and walks over their keys."""
    return _together(
        (count * problem.heads_q, tiles_of_band(problem.band, rows, keys, block_m, block_n))
        for count, rows, keys in sequences(problem)
    )


def walk_rows(problem: AttentionProblem, block_n: int, block_m: int) -> Tiles:
    """Tiles of all key/value heads and sequences, where a block has ``block_n`` keys and walks over the rows that see
    them, of one query head of the group after the other.

    Key j sees row i where row i sees key j: the same band, mirrored.
    """
    mirrored, group = Band(problem.band.right, problem.band.left), max(1, problem.group)
    found = _together(
        (count * problem.heads_kv, tiles_of_band(mirrored, keys, rows, block_n, block_m))
        for count, rows, keys in sequences(problem)
    )
    return Tiles(found.blocks, found.total * group, found.longest * group)


def _together(parts: Iterable[tuple[float, Tiles]]) -> Tiles:
    """So many of each."""
    found = list(parts)
    blocks, total = (math.fsum(count * tiles[item] for count, tiles in found) for item in (0, 1))
    return Tiles(blocks, total, max((tiles.longest for _, tiles in found), default=0))


def sequences(problem: AttentionProblem) -> list[tuple[float, int, int]]:
    """How many sequences there are of which (query length, key length).

    Of a packed batch only the longest lengths are known; as in tuning, the others spread evenly down to half of them.
    """
    if problem.layout != "varlen" or problem.batch <= 1:
        return [(float(problem.batch), problem.seqlen_q, problem.seqlen_k)]
    count = min(problem.batch, LENGTHS_COUNTED)
    parts = [1 - 0.5 * index / (count - 1) for index in range(count)]
    return [(problem.batch / count, round(problem.seqlen_q * part), round(problem.seqlen_k * part)) for part in parts]


def filled(problem: AttentionProblem) -> float:
    """Part of the longest lengths that the sequences have on average."""
    if not problem.batch or not problem.seqlen_q:
        return 1.0
    return math.fsum(count * rows for count, rows, _ in sequences(problem)) / (problem.batch * problem.seqlen_q)
