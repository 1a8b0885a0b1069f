"""One problem from its candidates to its entry: what is in quarantine, what the entry tells, what cannot be stored."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from faops import files, registry
from faops.autotune import effort
from faops.autotune.cache import TuningCache, environment
from faops.autotune.measurement.conditions import Conditions
from faops.autotune.search.candidates import Candidate
from faops.autotune.tuner import tune
from faops.autotune.tuner.events import Event
from faops.device import DeviceProfile
from faops.errors import ArgumentError, CrashedError, HangError
from faops.registry import Config, Kernel

from ..support import PROBLEM, FakeBench, FakeKernel, make_entry, steady
from .test_tuner import OTHER, bench

pytestmark = pytest.mark.usefixtures("only_fakes")


def test_what_crashed_or_hung_is_not_tried_again_by_the_same_code(cache: TuningCache, kernel: FakeKernel) -> None:
    errors = {1: CrashedError("SIGSEGV"), 2: HangError("no answer"), 4: RuntimeError("no such instruction")}

    def samples(item: Candidate) -> list[float]:
        error = errors.get(item.config.integer("block"))
        if error is not None:
            raise error
        return steady(1.0)

    def blocks_tried(**options: Any) -> set[int]:
        made = FakeBench(samples)
        tune([PROBLEM], force=True, make_bench=made, **options)
        return {item.config.integer("block") for item, _ in made.timed}

    assert blocks_tried() == {0, 1, 2, 3, 4, 5, 6, 7}
    events: list[Event] = []
    for _ in range(2):  # it is remembered from entry to entry
        assert blocks_tried(on_event=events.append) == {0, 3, 4, 5, 6, 7}
        (entry,) = cache.entries()
        assert {item["config"][-2]: item["kind"] for item in entry.dropped} == {
            "1": "crashed",
            "2": "hung",
            "4": "failed",
        }
    told = [event.message for event in events if event.kind == "quarantined"][:2]
    assert sorted(told) == [
        "fake.forward [block=1] is not tried again: CrashedError: SIGSEGV",
        "fake.forward [block=2] is not tried again: HangError: no answer",
    ]
    registry.register(FakeKernel(source="mended"))
    assert blocks_tried() == {0, 1, 2, 3, 4, 5, 6, 7}
    cache.clear()
    assert blocks_tried() == {0, 1, 2, 3, 4, 5, 6, 7}


def test_a_default_in_quarantine_gives_way(
    cache: TuningCache, kernel: FakeKernel, register: Callable[[Kernel], Kernel]
) -> None:
    register(FakeKernel("other", priority=500))

    def samples(item: Candidate) -> list[float]:
        if item.kernel is kernel and item.config == Config(block=0):
            raise CrashedError("SIGSEGV")
        return steady(1.0)

    for _ in range(2):
        (result,) = tune([PROBLEM], force=True, make_bench=FakeBench(samples))
        assert result.entry is not None
        assert (result.entry.default_kernel, result.entry.is_default) == ("fake.other", True)


def test_the_entry_tells_how_it_was_found(cache: TuningCache, kernel: FakeKernel) -> None:
    (result,) = tune([PROBLEM], strategy="random", make_bench=bench())
    assert result.entry is not None
    assert (result.entry.strategy, result.entry.pruned) == ("random", 0)
    decision = result.entry.decision
    assert (decision["kernel"], decision["config"], decision["won"]) == ("fake.forward", {"block": 3}, True)
    assert decision["difference"] == pytest.approx(0.5)
    assert decision["needed"] == pytest.approx(effort.WIN_MARGIN)
    with pytest.raises(ArgumentError, match="strategy: got 'guess', expected one of halving, random, exhaustive"):
        tune([PROBLEM], strategy="guess", make_bench=bench())


def test_another_driver_is_measured_again_and_recorded(
    cache: TuningCache, kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    for version, status in (("570", "tuned"), ("570", "warm"), ("580", "tuned"), ("580", "warm")):
        monkeypatch.setattr(environment, "driver", lambda vendor: version)  # noqa: B023
        (result,) = tune([PROBLEM], make_bench=bench())
        assert (result.status, result.entry and result.entry.driver) == (status, version)


def test_the_conditions_of_the_timings_are_recorded(cache: TuningCache, kernel: FakeKernel) -> None:
    observant = bench()
    observant.conditions = Conditions(sm_mhz_lowest=1700, sm_mhz_highest=1980)  # type: ignore[attr-defined]
    (result,) = tune([PROBLEM], make_bench=observant)
    assert result.entry is not None
    assert result.entry.clocks == {"sm_mhz_lowest": 1700, "sm_mhz_highest": 1980}
    (plain,) = tune([OTHER], make_bench=bench())
    assert plain.entry is not None
    assert plain.entry.clocks == {}


def test_a_full_disk_loses_no_result(cache: TuningCache, kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.os, "replace", refuse)
    results = tune([PROBLEM, OTHER], make_bench=bench())
    for result in results:
        assert result.status == "tuned"
        assert result.entry is not None
        assert result.entry.path is None
        assert result.entry.config == Config(block=3)
        assert "2.00x over the default; not stored: " in result.message
        assert "No space left on device" in result.message
    assert cache.entries() == []


def test_the_nearest_winner_is_among_the_candidates(
    cache: TuningCache, register: Callable[[Kernel], Kernel], cpu: DeviceProfile
) -> None:
    register(FakeKernel(blocks=1000))
    best = Config(block=777)  # too many to be found by chance
    near = replace(PROBLEM, seqlen_k=256)
    cache.store(cpu, make_entry(cpu, near, config=best))
    made = FakeBench(lambda item: steady(0.5 if item.config == best else 1.0))
    (result,) = tune([PROBLEM], make_bench=made)
    assert result.entry is not None
    assert result.entry.config == best
    assert len({item for item, _ in made.timed}) == effort.MAX_CONFIGS
