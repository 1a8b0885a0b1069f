"""Into how many parts the keys of a cache are cut: a brute-force count of waves, and what must hold for any problem."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from faops.device import known
from faops.problem import AttentionProblem, Band
from faops.splits import BLOCK_COST, COMBINE_COST, MAX_SPLITS, choose_splits, row_tiles, visible_keys

CARD = known("h100")
PROBLEM = AttentionProblem(
    op="decode", batch=1, seqlen_q=1, seqlen_k=8192, heads_q=32, heads_kv=8, head_dim=128, head_dim_v=128
)


def duration(problem: AttentionProblem, splits: int, block_m: int, block_n: int, slots: int) -> float:
    """Time by dealing out the blocks of threads wave by wave."""
    keys = visible_keys(problem)
    rows = problem.seqlen_q * problem.group
    programs = -(-rows // block_m) * problem.heads_kv * problem.batch * splits
    waves = 0
    while programs > 0:
        programs, waves = programs - slots, waves + 1
    blocks = -(-keys // block_n)
    longest = max(blocks // splits + (1 if index < blocks % splits else 0) for index in range(splits))
    if splits == 1:
        return waves * (longest + BLOCK_COST)
    part = 8 * min(rows, block_m) * problem.head_dim_v
    part_in_blocks = part / (block_n * 2 * (problem.head_dim + problem.head_dim_v))
    return waves * (longest + BLOCK_COST + part_in_blocks) + COMBINE_COST


def test_no_other_number_finishes_sooner() -> None:
    for _ in range(20):
        problem = replace(
            PROBLEM, batch=random.randint(1, 20), seqlen_q=random.randint(1, 40), seqlen_k=random.randint(1, 20000),
            head_dim_v=random.choice((64, 128)), band=Band(random.choice((-1, 700)), 0),
        )  # fmt: skip
        block_m, block_n = random.choice((16, 64)), random.choice((32, 64))
        resident = random.randint(1, 4)
        chosen = choose_splits(problem, block_m, block_n, resident, CARD)
        slots = CARD.units * resident
        if row_tiles(problem.seqlen_q * problem.group, block_m) * problem.heads_kv * problem.batch >= slots:
            assert chosen == 1
            continue
        best = duration(problem, chosen, block_m, block_n, slots)
        most = min(MAX_SPLITS, -(-visible_keys(problem) // block_n))
        assert 1 <= chosen <= max(1, most)
        others = (duration(problem, splits, block_m, block_n, slots) for splits in range(1, most + 1))
        assert all(best <= other + 1e-9 for other in others)


@pytest.mark.parametrize(
    ("band", "seqlen_q", "expected"),
    [(Band(), 1, 1000), (Band(-1, 0), 5, 1000), (Band(99, 0), 1, 100), (Band(99, 0), 5, 104), (Band(99, 3), 5, 107),
     (Band(5000, 0), 1, 1000), (Band(0, 0), 1, 1), (Band(99, 50), 5, 109)],
)  # fmt: skip
def test_visible_keys(band: Band, seqlen_q: int, expected: int) -> None:
    assert visible_keys(replace(PROBLEM, seqlen_q=seqlen_q, seqlen_k=1000, band=band)) == expected


def test_a_full_device_is_not_split() -> None:
    assert choose_splits(replace(PROBLEM, batch=CARD.units), 16, 64, 1, CARD) == 1
    assert choose_splits(PROBLEM, 16, 64, 2, CARD) > 1
    assert choose_splits(replace(PROBLEM, seqlen_k=2**22), 16, 64, 64, CARD) == MAX_SPLITS
    assert choose_splits(replace(PROBLEM, seqlen_k=0), 16, 64, 2, CARD) == 1


def test_there_is_always_a_tile_of_rows() -> None:
    assert [row_tiles(rows, 16) for rows in (0, 1, 16, 17)] == [1, 1, 1, 2]
