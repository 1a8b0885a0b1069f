"""Runs that end early and are gone on with: what is left to do is known, and nothing is measured twice."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from faops import files, registry
from faops.autotune.cache import TuningCache
from faops.autotune.effort import Budget
from faops.autotune.recording import journal
from faops.autotune.search.candidates import Candidate
from faops.autotune.tuner import pending, tune, unfinished
from faops.autotune.tuner.events import Event
from faops.autotune.tuner.pending import Pending
from faops.device import DeviceProfile
from faops.errors import CacheError
from faops.problem import AttentionProblem, Band
from faops.registry import Config, Kernel

from ..support import PROBLEM, FakeBench, FakeKernel, steady
from .test_tuner import OTHER

pytestmark = pytest.mark.usefixtures("only_fakes")

THIRD = replace(PROBLEM, head_dim=32, band=Band(-1, 0))


class Impatient(FakeBench):
    """Is interrupted when asked for one timing more than ``patience``."""

    def __init__(self, patience: float = float("inf")) -> None:
        super().__init__(lambda item: steady(0.5 if item.config == Config(block=3) else 1.0))
        self.patience = patience

    def sample(self, item: Candidate, budget: Budget) -> list[float]:
        if len(self.timed) >= self.patience:
            raise KeyboardInterrupt
        return super().sample(item, budget)


def interrupted(*problems: AttentionProblem, after: int, **options: Any) -> None:
    with pytest.raises(KeyboardInterrupt):
        tune(problems, make_bench=Impatient(after), **options)


def journals(cache: TuningCache, device: DeviceProfile) -> list[Path]:
    return list(cache.directory(device).glob("journal/*"))


def test_a_resumed_run_takes_only_the_timings_that_are_missing(
    cache: TuningCache, kernel: FakeKernel, cpu: DeviceProfile
) -> None:
    (whole,) = tune([PROBLEM], make_bench=Impatient(), cache=TuningCache(cache.root / "other"))
    interrupted(PROBLEM, OTHER, after=10)
    assert cache.entries() == []
    rest = Impatient()
    events: list[Event] = []
    first, second = tune([PROBLEM, OTHER], make_bench=rest, resume=True, on_event=events.append)
    assert (first.measurements, second.measurements) == (whole.measurements - 10, whole.measurements)
    assert len(rest.timed) == first.measurements + second.measurements
    assert first.entry is not None and whole.entry is not None
    assert first.entry.measurements == whole.measurements
    assert first.entry.as_dict() == whole.entry.as_dict()
    (resumed,) = [event for event in events if event.kind == "resumed"]
    assert (resumed.index, resumed.message) == (0, "10 timings and checks of an interrupted run count")
    assert journals(cache, cpu) == []
    assert unfinished() == []


def test_a_run_interrupted_twice(cache: TuningCache, kernel: FakeKernel) -> None:
    interrupted(PROBLEM, after=10)
    interrupted(PROBLEM, after=5, resume=True)
    rest = Impatient()
    (result,) = tune([PROBLEM], make_bench=rest, resume=True)
    assert result.entry is not None
    assert result.entry.measurements == len(rest.timed) + 15


def test_without_resume_everything_is_measured(cache: TuningCache, kernel: FakeKernel) -> None:
    interrupted(PROBLEM, after=10)
    rest = Impatient()
    (result,) = tune([PROBLEM], make_bench=rest)
    assert result.entry is not None
    assert result.entry.measurements == len(rest.timed) == result.measurements


def test_changed_code_is_measured_again(cache: TuningCache, kernel: FakeKernel) -> None:
    interrupted(PROBLEM, after=10)
    registry.register(FakeKernel(source="changed"))
    rest = Impatient()
    (result,) = tune([PROBLEM], make_bench=rest, resume=True)
    assert result.entry is not None
    assert result.entry.measurements == len(rest.timed)


def test_a_new_kernel_is_measured_beside_what_counts(
    cache: TuningCache, kernel: FakeKernel, register: Callable[[Kernel], Kernel]
) -> None:
    interrupted(PROBLEM, after=8)
    register(FakeKernel("other", blocks=2, priority=500))
    rest = Impatient()
    tune([PROBLEM], make_bench=rest, resume=True)
    assert {item.kernel.name for item, _ in rest.timed[:2]} == {"other"}


def test_what_is_left_is_known(cache: TuningCache, kernel: FakeKernel) -> None:
    assert unfinished() == []
    interrupted(THIRD, PROBLEM, OTHER, after=30)
    assert unfinished() == [PROBLEM, OTHER]
    assert unfinished("cpu", TuningCache(cache.root / "other")) == []
    tune(unfinished(), make_bench=Impatient(), resume=True)
    assert unfinished() == []


def test_what_a_time_budget_left_out_is_left(cache: TuningCache, kernel: FakeKernel) -> None:
    tune([PROBLEM], make_bench=Impatient())
    tune([PROBLEM, OTHER], make_bench=Impatient(), time_budget=0.0)
    assert unfinished() == [OTHER]


def test_a_failed_problem_is_not_left(cache: TuningCache, kernel: FakeKernel) -> None:
    tune([PROBLEM], make_bench=FakeBench(lambda item: steady(1.0), wrong=lambda item: True))
    assert unfinished() == []


def test_a_forced_run_is_resumed_as_one(cache: TuningCache, kernel: FakeKernel) -> None:
    problems = [PROBLEM, OTHER, THIRD]
    whole = tune(problems, make_bench=Impatient())
    interrupted(*problems, after=whole[0].measurements + 10, force=True)
    assert unfinished() == [OTHER, THIRD]
    rest = Impatient()
    results = tune(problems, make_bench=rest, resume=True)
    assert [result.status for result in results] == ["warm", "tuned", "tuned"]
    assert len(rest.timed) == whole[1].measurements - 10 + whole[2].measurements
    assert [result.status for result in tune(problems, make_bench=rest, resume=True)] == ["warm"] * 3


def test_a_kill_after_the_winner_was_stored_leaves_nothing_to_do(
    cache: TuningCache, kernel: FakeKernel, cpu: DeviceProfile
) -> None:
    def killed(self: Pending, problem: AttentionProblem) -> None:
        raise KeyboardInterrupt

    for force in (False, True):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Pending, "done", killed)
            interrupted(PROBLEM, after=1000, force=force)
        assert [entry.key for entry in cache.entries()] == [PROBLEM.key()]
        assert unfinished() == [PROBLEM]
        tune(unfinished(), make_bench=Impatient(0), resume=True)  # nothing is measured again
        assert unfinished() == []
        assert journals(cache, cpu) == []


def test_a_cache_that_cannot_be_written_is_tuned_all_the_same(
    cache: TuningCache, kernel: FakeKernel, cpu: DeviceProfile, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    with monkeypatch.context() as read_only:
        read_only.setattr(files.os, "replace", refuse)
        assert [result.status for result in tune([PROBLEM, OTHER], make_bench=Impatient())] == ["tuned", "tuned"]
    assert unfinished() == []


def test_a_winner_that_cannot_be_stored_leaves_its_journal(
    cache: TuningCache, kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any) -> None:
        raise CacheError("no space")

    with monkeypatch.context() as full:
        full.setattr(TuningCache, "store", refuse)
        (result,) = tune([PROBLEM], make_bench=Impatient())
    assert result.message == "2.00x over the default; not stored: no space"
    (result,) = tune([PROBLEM], make_bench=Impatient(0), resume=True)
    assert (result.status, result.measurements) == ("tuned", 0)
    assert result.entry is not None and result.entry.path is not None


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"run": 2}', '{"run": 1}', '{"run": 1, "forced": 0, "problems": [{"x": 1}]}',
             '{"run": 1, "forced": false, "problems": 3}', "[" * 5000]
)  # fmt: skip
def test_a_spoilt_list_of_what_is_left_is_none(
    cache: TuningCache, kernel: FakeKernel, cpu: DeviceProfile, text: str
) -> None:
    path = cache.directory(cpu) / pending.FILE_NAME
    path.parent.mkdir(parents=True)
    path.write_text(text)
    assert unfinished() == []
    tune([PROBLEM], make_bench=Impatient(), resume=True)
    assert not path.exists()


def test_the_list_of_what_is_left_survives_its_file(tmp_path: Path) -> None:
    left = Pending(tmp_path / "device" / pending.FILE_NAME, [PROBLEM, THIRD], forced=True)
    left.save()
    assert pending.load(tmp_path / "device") == left
    assert json.loads(left.path.read_text())["run"] == pending.FORMAT
    left.done(PROBLEM)
    left.done(OTHER)
    assert pending.load(tmp_path / "device").problems == [THIRD]
    left.done(THIRD)
    assert not left.path.exists()


def test_journals_of_other_problems_are_not_touched(cache: TuningCache, kernel: FakeKernel, cpu: DeviceProfile) -> None:
    interrupted(PROBLEM, after=10)
    tune([OTHER], make_bench=Impatient(), resume=True)
    assert journals(cache, cpu) == [journal.path_of(cache.directory(cpu), PROBLEM.key())]
