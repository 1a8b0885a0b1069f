"""Finding a winner at call time: the exact problem, the nearest shape, changed kernels, changes on disk."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from faops import dispatch
from faops.autotune import cache as cache_module
from faops.autotune.cache import TuningCache, lookup, stamp
from faops.autotune.effort import NEAREST_DISTANCE
from faops.device import known
from faops.problem import AttentionProblem, Band
from faops.registry import Config, Kernel

from ..support import PROBLEM, FakeKernel, make_entry

H200 = known("h200")


def sized(batch: int, seqlen_q: int, seqlen_k: int) -> AttentionProblem:
    return replace(PROBLEM, batch=batch, seqlen_q=seqlen_q, seqlen_k=seqlen_k)


def test_the_winner_of_the_very_problem(cache: TuningCache, kernel: FakeKernel) -> None:
    cache.store(H200, make_entry(H200))
    winner = lookup(PROBLEM, H200, [kernel])
    assert winner is not None
    assert (winner.kernel, winner.config, winner.source) == (kernel, Config(block=3), "tuned")
    assert winner.detail == "tuned here on 2026-11-21, 2.00x over the default"
    assert lookup(PROBLEM, known("t4"), [kernel]) is None


def test_a_default_that_won_is_the_default_of_the_problem_that_is_asked(
    cache: TuningCache, register: Callable[[Kernel], Kernel]
) -> None:
    class Sized(FakeKernel):
        def default_config(self, problem: AttentionProblem, device: Any) -> Config:
            return Config(block=problem.seqlen_k)

    kernel = register(Sized())
    own = Config(block=PROBLEM.seqlen_k)
    cache.store(H200, make_entry(H200, config=own, default_config=own, speedup=1.0, p50=1.0))
    exact = lookup(PROBLEM, H200, [kernel])
    near = lookup(sized(1, 256, 256), H200, [kernel])
    assert exact is not None
    assert near is not None
    assert exact.config == Config(block=128)
    assert exact.detail == "tuned here on 2026-11-21, nothing beat the default"
    assert (near.config, near.source) == (Config(block=256), "nearest")


def test_an_entry_of_other_code_is_not_served(cache: TuningCache, kernel: FakeKernel) -> None:
    cache.store(H200, make_entry(H200))
    assert lookup(PROBLEM, H200, [FakeKernel(source="changed")]) is None
    assert lookup(PROBLEM, H200, [FakeKernel(name="renamed")]) is None
    assert lookup(PROBLEM, H200, []) is None
    assert lookup(PROBLEM, H200, [FakeKernel(name="another"), kernel]) is not None


def test_a_default_that_won_is_served_as_it_was_measured_once_the_default_has_changed(
    cache: TuningCache, kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.store(H200, make_entry(H200, config=Config(block=0)))
    monkeypatch.setattr(FakeKernel, "default_config", lambda self, problem, device: Config(block=5))
    winner = lookup(PROBLEM, H200, [kernel])
    assert winner is not None
    assert winner.config == Config(block=0)


@pytest.mark.parametrize(
    ("tuned", "asked", "found"),
    [
        ((1, 256, 256), (1, 128, 128), True),
        ((8, 128, 128), (1, 128, 128), True),
        ((1, 128, 1024), (1, 128, 128), True),
        ((2, 256, 256), (1, 128, 128), True),
        ((4, 256, 256), (1, 128, 128), False),
        ((1, 512, 512), (1, 128, 128), False),
        ((16, 128, 128), (1, 128, 128), False),
        ((1, 1, 0), (1, 1, 1), True),
    ],
)
def test_the_nearest_shape_is_bounded(
    cache: TuningCache, kernel: FakeKernel, tuned: tuple[int, int, int], asked: tuple[int, int, int], found: bool
) -> None:
    cache.store(H200, make_entry(H200, sized(*tuned)))
    winner = lookup(sized(*asked), H200, [kernel])
    assert (winner is not None) is found
    if winner is not None:
        assert winner.source == "nearest"
        assert str(sized(*tuned)) in winner.detail


def test_the_nearest_of_several_shapes(cache: TuningCache, kernel: FakeKernel) -> None:
    for length, block in ((128, 1), (512, 2), (1024, 3)):
        cache.store(H200, make_entry(H200, sized(1, 128, length), config=Config(block=block)))
    for length, block in ((256, 1), (2048, 3), (4096, 3)):  # 256 is as near to 128 as to 512: the key decides
        winner = lookup(sized(1, 128, length), H200, [kernel])
        assert winner is not None
        assert winner.config == Config(block=block), length
    assert NEAREST_DISTANCE == 3
    assert lookup(sized(1, 128, 16384), H200, [kernel]) is None


def test_a_shape_further_away_serves_when_the_nearest_cannot(cache: TuningCache, kernel: FakeKernel) -> None:
    cache.store(H200, make_entry(H200, sized(1, 128, 256), kernel="fake.gone"))
    cache.store(H200, make_entry(H200, sized(1, 128, 512)))
    winner = lookup(PROBLEM, H200, [kernel])
    assert winner is not None
    assert "128x512" in winner.detail


def test_a_near_shape_serves_when_the_very_problems_entry_cannot(cache: TuningCache, kernel: FakeKernel) -> None:
    cache.store(H200, make_entry(H200, source_hash="older"))
    assert lookup(PROBLEM, H200, [kernel]) is None
    cache.store(H200, make_entry(H200, sized(1, 128, 256), config=Config(block=5)))
    winner = lookup(PROBLEM, H200, [kernel])
    assert winner is not None
    assert (winner.source, winner.config) == ("nearest", Config(block=5))


@pytest.mark.parametrize(
    "change", [{"head_dim": 128}, {"dtype": "bfloat16"}, {"band": Band(-1, 0)}, {"need_lse": True}, {"heads_q": 8}]
)
def test_only_sizes_may_differ_in_a_near_shape(cache: TuningCache, kernel: FakeKernel, change: dict[str, Any]) -> None:
    cache.store(H200, make_entry(H200))
    assert lookup(replace(PROBLEM, **change), H200, [kernel]) is None


def test_new_winners_change_the_stamp_and_are_found(cache: TuningCache, kernel: FakeKernel) -> None:
    seen = [stamp()]
    assert lookup(PROBLEM, H200, [kernel]) is None
    for block in (1, 2, 3):  # at once, so that time stamps of the directory may be equal
        cache.store(H200, make_entry(H200, config=Config(block=block)))
        seen.append(stamp())
        winner = lookup(PROBLEM, H200, [kernel])
        assert winner is not None
        assert winner.config == Config(block=block)
    cache.clear()
    seen.append(stamp())
    assert lookup(PROBLEM, H200, [kernel]) is None
    assert len(set(seen)) == len(seen)


def test_a_write_within_the_resolution_of_the_directorys_time_is_noticed(
    cache: TuningCache, kernel: FakeKernel
) -> None:
    """A file system may give two writes in quick succession the same time stamp."""
    now = time.time()
    seen = []
    for block in (1, 2):
        cache.store(H200, make_entry(H200, config=Config(block=block)))
        os.utime(cache.directory(H200) / "entries", (now, now))
        seen.append(stamp())
        winner = lookup(PROBLEM, H200, [kernel])
        assert winner is not None
        assert winner.config == Config(block=block)
    assert seen[0] != seen[1]


def settle(cache: TuningCache) -> None:
    """Make the directory look as if it was written long ago."""
    long_ago = time.time() - 100
    os.utime(cache.directory(H200) / "entries", (long_ago, long_ago))


def test_a_settled_directory_is_read_once(
    cache: TuningCache, kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.store(H200, make_entry(H200))
    settle(cache)
    reads: list[object] = []
    original = cache_module.load
    monkeypatch.setattr(cache_module, "load", lambda path: reads.append(path) or original(path))
    assert stamp() == stamp()
    for _ in range(5):
        assert lookup(PROBLEM, H200, [kernel]) is not None
    assert len(reads) == 1
    other = replace(PROBLEM, head_dim=128)
    cache.store(H200, make_entry(H200, other))
    reads.clear()
    assert lookup(PROBLEM, H200, [kernel]) is not None
    assert reads == []  # a new file says nothing about those that are known
    assert lookup(other, H200, [kernel]) is not None
    assert reads == [cache.path(H200, other)]


def test_the_dispatcher_serves_winners_of_another_process(cache: TuningCache, kernel: FakeKernel) -> None:
    assert dispatch.plan(PROBLEM, H200).source == "default"
    cache.store(H200, make_entry(H200))
    dispatch.forget()  # what the dispatcher does by itself once its recheck time is over
    plan = dispatch.plan(PROBLEM, H200)
    assert (plan.source, plan.config) == ("tuned", Config(block=3))
    near = dispatch.plan(sized(2, 128, 128), H200)
    assert (near.source, near.config) == ("nearest", Config(block=3))
    cache.clear()
    dispatch.forget()
    assert dispatch.plan(PROBLEM, H200).source == "default"


def test_tuning_can_be_switched_off(cache: TuningCache, kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.store(H200, make_entry(H200))
    monkeypatch.setenv("FAOPS_TUNING", "0")
    assert dispatch.plan(PROBLEM, H200).source == "default"
