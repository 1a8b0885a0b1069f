"""Tiles that are counted, against every pair of small masks looked at one by one."""

from __future__ import annotations

import itertools
import math
import random

import pytest

from faops.autotune.measurement.synthetic import inputs_for
from faops.inputs import AttentionInputs
from faops.problem import AttentionProblem, Band
from faops.tiling import filled, loops_of_band, sequences, tiles_of_band, walk_keys, walk_rows

BANDS = (Band(), Band(-1, 0), Band(5, 0), Band(0, 0), Band(3, 4), Band(-1, 7), Band(9, -1))
SHAPES = ((1, 1), (1, 17), (16, 16), (17, 16), (16, 33), (40, 9), (5, 40))
BLOCKS = ((1, 1), (4, 8), (16, 4), (64, 64), (3, 5))


def visible(band: Band, rows: int, keys: int) -> set[tuple[int, int]]:
    """Pairs, by the definition in faops.problem."""
    shift = keys - rows
    return {
        (i, j)
        for i, j in itertools.product(range(rows), range(keys))
        if (band.left < 0 or i + shift - band.left <= j) and (band.right < 0 or j <= i + shift + band.right)
    }


def touched(pairs: set[tuple[int, int]], block_m: int, block_n: int) -> list[tuple[int, int]]:
    """Tiles that hold a visible pair."""
    return sorted({(i // block_m, j // block_n) for i, j in pairs})


@pytest.mark.parametrize("band", BANDS, ids=str)
def test_tiles_are_those_that_hold_a_visible_pair(band: Band) -> None:
    for (rows, keys), (block_m, block_n) in itertools.product(SHAPES, BLOCKS):
        tiles = touched(visible(band, rows, keys), block_m, block_n)
        found = tiles_of_band(band, rows, keys, block_m, block_n)
        own = [sum(1 for row, _ in tiles if row == block) for block in range(math.ceil(rows / block_m))]
        assert found == (len(own), len(tiles), max(own)), (rows, keys, block_m, block_n)


@pytest.mark.parametrize("band", BANDS, ids=str)
def test_loops_begin_at_the_first_visible_key(band: Band) -> None:
    for (rows, keys), (block_m, block_n) in itertools.product(SHAPES, BLOCKS):
        tiles = pairs = 0
        for first in range(0, rows, block_m):
            last = min(first + block_m, rows)
            low, high = band.keys_of_rows(first, last, rows, keys)
            tiles += len(range(low, high, block_n))
            pairs += (last - first) * (high - low)
        assert loops_of_band(band, rows, keys, block_m, block_n) == (math.ceil(rows / block_m), tiles, pairs)


def test_rows_of_keys_are_the_same_pairs_seen_from_the_other_side() -> None:
    problem = AttentionProblem(op="backward", batch=2, seqlen_q=37, seqlen_k=51, heads_q=6, heads_kv=2, band=Band(9, 3))
    tiles = touched(visible(problem.band, 37, 51), 4, 8)
    by_keys = [sum(1 for _, key in tiles if key == block) for block in range(math.ceil(51 / 8))]
    found = walk_rows(problem, 8, 4)
    assert found == (2 * 2 * len(by_keys), 2 * 6 * len(tiles), 3 * max(by_keys))
    assert walk_keys(problem, 4, 8).total == found.total  # every pair is computed once by each
    assert found.unevenness == pytest.approx(max(by_keys) * len(by_keys) / len(tiles))


def test_more_tiles_than_an_exact_mask_but_no_more_than_a_full_one() -> None:
    for _ in range(50):
        rows, keys = random.randint(1, 3000), random.randint(1, 3000)
        band = Band(random.choice([-1, random.randint(0, 500)]), random.choice([-1, 0]))
        block_m, block_n = random.choice([16, 64, 128]), random.choice([16, 32, 64])
        found = tiles_of_band(band, rows, keys, block_m, block_n)
        assert band.visible_pairs(rows, keys) <= found.total * block_m * block_n
        assert found.total <= found.blocks * math.ceil(keys / block_n)


@pytest.mark.parametrize("batch", [1, 2, 3, 8, 33])
def test_packed_lengths_are_like_those_that_tuning_makes(batch: int) -> None:
    problem = AttentionProblem(layout="varlen", batch=batch, seqlen_q=200, seqlen_k=300)
    inputs = inputs_for(problem, "cpu")
    assert isinstance(inputs, AttentionInputs)
    assert filled(problem) == pytest.approx(inputs.q.shape[0] / (batch * 200), rel=0.02)
    assert math.fsum(count for count, _, _ in sequences(problem)) == pytest.approx(batch)
    assert max(rows for _, rows, _ in sequences(problem)) == 200


def test_nothing_to_compute() -> None:
    for problem in (
        AttentionProblem(batch=0, seqlen_q=8, seqlen_k=8),
        AttentionProblem(seqlen_q=0, seqlen_k=8),
        AttentionProblem(seqlen_q=8, seqlen_k=0),
    ):
        tiles = walk_keys(problem, 16, 16)
        assert (tiles.total, tiles.unevenness, tiles.steps) == (0, 1.0, 0.0)
        assert filled(problem) == 1.0
