"""What a look-up reads: few files however many there are, and again only those that have changed."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from faops.autotune import cache as cache_module
from faops.autotune.cache import TuningCache, index, lookup
from faops.autotune.cache.index import near_keys
from faops.autotune.effort import NEAREST_DISTANCE
from faops.device import known
from faops.problem import AttentionProblem, Band
from faops.registry import Config

from ..support import PROBLEM, FakeKernel, make_entry

H200 = known("h200")
MANY = 60


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the entry files that are read from now on."""
    found: list[str] = []
    original = cache_module.load
    monkeypatch.setattr(cache_module, "load", lambda path: found.append(path.name) or original(path))
    return found


def settle(cache: TuningCache) -> None:
    """Make the directory look as if it was written long ago."""
    long_ago = time.time() - 100
    os.utime(cache.directory(H200) / "entries", (long_ago, long_ago))


@pytest.fixture
def many(cache: TuningCache) -> TuningCache:
    """A cache with the entry of PROBLEM, one twice as long, and many that are not near."""
    cache.store(H200, make_entry(H200))
    cache.store(H200, make_entry(H200, replace(PROBLEM, seqlen_k=256), config=Config(block=2)))
    for number in range(MANY):
        cache.store(H200, make_entry(H200, replace(PROBLEM, head_dim=8 * (number + 20))))
    settle(cache)
    return cache


def honest_near_keys(problem: AttentionProblem) -> set[tuple[float, str]]:
    """What `near_keys` should give, asked of every problem around."""
    bucket = problem.bucket()

    def reachable(size: int) -> list[tuple[float, int]]:
        powers = [0, *(1 << power for power in range(24))]
        steps = [(abs(max(size, 1).bit_length() - max(other, 1).bit_length()), other) for other in powers]
        return [(distance, other) for distance, other in steps if distance <= NEAREST_DISTANCE]

    return {
        (b + q + k, near.key())
        for b, batch in reachable(bucket.batch)
        for q, seqlen_q in reachable(bucket.seqlen_q)
        for k, seqlen_k in reachable(bucket.seqlen_k)
        if b + q + k <= NEAREST_DISTANCE
        and (near := replace(bucket, batch=batch, seqlen_q=seqlen_q, seqlen_k=seqlen_k)).key() != problem.key()
    }


@pytest.mark.parametrize(
    "problem",
    [
        replace(PROBLEM, batch=8, seqlen_q=1024, seqlen_k=4096),
        replace(PROBLEM, batch=3, seqlen_q=100, seqlen_k=1000, band=Band(300, 0), bias=".hmn", alibi=True),
        replace(PROBLEM, batch=1, seqlen_q=1, seqlen_k=1 << 20, op="decode", layout="paged", page_size=16),
        replace(PROBLEM, batch=0, seqlen_q=1, seqlen_k=0),
        replace(PROBLEM, batch=2, seqlen_q=2, seqlen_k=2, op="backward", dropout=True),
    ],
)
def test_near_keys_are_those_of_all_problems_around(problem: AttentionProblem) -> None:
    found = list(near_keys(problem))
    assert set(found) == honest_near_keys(problem)
    assert len(found) == len(set(found))


def test_a_look_up_reads_one_file_of_many(many: TuningCache, kernel: FakeKernel, reads: list[str]) -> None:
    winner = lookup(PROBLEM, H200, [kernel])
    assert winner is not None and winner.source == "tuned"
    assert reads == [many.path(H200, PROBLEM).name]
    lookup(PROBLEM, H200, [kernel])
    assert len(reads) == 1


def test_a_near_look_up_reads_the_nearest_file_only(many: TuningCache, kernel: FakeKernel, reads: list[str]) -> None:
    winner = lookup(replace(PROBLEM, seqlen_k=512), H200, [kernel])
    assert winner is not None and winner.config == Config(block=2)
    assert reads == [many.path(H200, replace(PROBLEM, seqlen_k=256)).name]


def test_a_look_up_in_vain_reads_nothing(many: TuningCache, kernel: FakeKernel, reads: list[str]) -> None:
    assert lookup(replace(PROBLEM, heads_q=16), H200, [kernel]) is None
    assert reads == []


def test_after_a_write_only_what_has_changed_is_read_again(
    many: TuningCache, kernel: FakeKernel, reads: list[str]
) -> None:
    for number in range(MANY):
        assert lookup(replace(PROBLEM, head_dim=8 * (number + 20)), H200, [kernel]) is not None
    assert len(set(reads)) == MANY
    changed = replace(PROBLEM, head_dim=8 * 30)
    many.store(H200, make_entry(H200, changed, config=Config(block=7)))
    reads.clear()
    for number in range(MANY):
        winner = lookup(replace(PROBLEM, head_dim=8 * (number + 20)), H200, [kernel])
        assert winner is not None
        assert winner.config == Config(block=7 if number == 10 else 3)
    assert reads == [many.path(H200, changed).name]


def test_a_removed_entry_is_forgotten(many: TuningCache, kernel: FakeKernel) -> None:
    assert lookup(PROBLEM, H200, [kernel]) is not None
    many.path(H200, PROBLEM).unlink()
    winner = lookup(PROBLEM, H200, [kernel])
    assert winner is not None and winner.source == "nearest"
    many.path(H200, replace(PROBLEM, seqlen_k=256)).unlink()
    assert lookup(PROBLEM, H200, [kernel]) is None


def test_a_near_entry_that_appears_is_found(cache: TuningCache, kernel: FakeKernel) -> None:
    cache.store(H200, make_entry(H200, replace(PROBLEM, head_dim=128)))
    settle(cache)
    assert lookup(PROBLEM, H200, [kernel]) is None
    cache.store(H200, make_entry(H200, replace(PROBLEM, batch=2)))
    winner = lookup(PROBLEM, H200, [kernel])
    assert winner is not None and winner.source == "nearest"


def test_the_memory_of_near_names_is_bounded(
    many: TuningCache, kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index, "NAME_LISTS", 3)
    for heads in range(2, 22, 2):
        lookup(replace(PROBLEM, heads_q=heads, seqlen_k=512), H200, [kernel])
    assert 0 < len(cache_module._indices[many.directory(H200) / "entries"]._near) <= 3


def test_nothing_is_measured_or_compiled(
    many: TuningCache, register: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a call would stall."""

    class Costly(FakeKernel):
        def compile(self, *arguments: Any) -> Any:
            raise AssertionError("a look-up must not compile")

        def footprint(self, *arguments: Any) -> Any:
            raise AssertionError("a look-up must not model")

        def configs(self, *arguments: Any) -> Any:
            raise AssertionError("a look-up must not list the search space")

    kernel = register(Costly())
    assert lookup(PROBLEM, H200, [kernel]) is not None
    assert lookup(replace(PROBLEM, batch=2), H200, [kernel]) is not None
    assert lookup(replace(PROBLEM, batch=64), H200, [kernel]) is None


def test_the_list_of_configs_may_change(cache: TuningCache, register: Callable[[Any], Any]) -> None:
    """A winner stays one when the search space is edited, as long as the kernel can read its config."""
    cache.store(H200, make_entry(H200, config=Config(block=7)))
    for blocks in (2, 8, 100):
        winner = lookup(PROBLEM, H200, [register(FakeKernel(blocks=blocks))])
        assert winner is not None and winner.config == Config(block=7)
