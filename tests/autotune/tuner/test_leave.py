"""Runs that ask for leave before they measure, that note no list of what is left, and that share their processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from faops.autotune import effort
from faops.autotune.cache import TuningCache
from faops.autotune.effort import Budget
from faops.autotune.measurement.conditions import Conditions
from faops.autotune.search.candidates import Candidate
from faops.autotune.tuner import estimate, tune, unfinished
from faops.autotune.tuner.benches import Benches, Patient
from faops.autotune.tuner.events import Event
from faops.device import DeviceProfile
from faops.footprint import Resources
from faops.problem import AttentionProblem

from ..support import PROBLEM, FakeBench, FakeKernel, steady
from .test_resume import THIRD, Impatient, interrupted, journals
from .test_tuner import OTHER

pytestmark = pytest.mark.usefixtures("only_fakes")


class Told(FakeBench):
    """Writes down in ``diary`` when it is asked."""

    def __init__(self, diary: list[str]) -> None:
        super().__init__(lambda item: steady(1.0))
        self.diary = diary

    def sample(self, candidate: Candidate, budget: Budget) -> list[float]:
        self.diary.append("sample")
        return super().sample(candidate, budget)

    def check(self, candidate: Candidate) -> None:
        self.diary.append("check")
        super().check(candidate)

    def __call__(self, *arguments: Any) -> Told:
        self.diary.append("open")
        return self


def test_leave_is_asked_for_before_whatever_takes_the_time_of_the_device(
    cache: TuningCache, kernel: FakeKernel
) -> None:
    diary: list[str] = []
    (result,) = tune([PROBLEM], make_bench=Told(diary), before_measuring=lambda: diary.append("leave"))
    assert diary[::2] == ["leave"] * (len(diary) // 2)
    assert diary[1] == "open"
    assert diary[3::2].count("sample") == result.measurements
    assert diary[3::2].count("check") == effort.FINALISTS
    diary.clear()
    tune([PROBLEM], make_bench=Told(diary), before_measuring=lambda: diary.append("leave"))
    assert diary == []  # warm: nothing is measured


def test_leave_is_not_asked_for_what_is_remembered(cache: TuningCache, kernel: FakeKernel) -> None:
    interrupted(PROBLEM, after=10)
    asked: list[int] = []
    (result,) = tune([PROBLEM], make_bench=Impatient(), resume=True, before_measuring=lambda: asked.append(1))
    assert len(asked) == 1 + result.measurements + effort.FINALISTS


def test_leave_is_asked_for_while_others_compile(
    cache: TuningCache, kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where one after the other does not compile, and nothing is timed in between."""
    from faops.autotune.search.ahead import Ahead

    class Pool:
        def compiled(self, problem: Any, profile: Any, candidates: Any) -> Iterator[tuple[Candidate, Resources | None]]:
            yield from ((candidate, None) for candidate in candidates)

    diary: list[str] = []
    monkeypatch.setattr(Benches, "feed", lambda self, problem, space: Ahead(Pool(), problem, self.profile))
    tune(
        [PROBLEM],
        make_bench=Told(diary),
        before_measuring=lambda: diary.append("leave"),
        on_event=lambda event: diary.append(event.kind),
    )
    compiling = [index for index, word in enumerate(diary) if word == "compiling"]
    assert compiling
    assert all(diary[index - 1] == "leave" for index in compiling)


def test_what_waiting_raises_ends_the_run_with_its_journal(
    cache: TuningCache, kernel: FakeKernel, cpu: DeviceProfile
) -> None:
    left = iter([None] * 11)

    def leave() -> None:
        if next(left, "none") == "none":
            raise SystemExit(0)

    bench = Impatient()
    with pytest.raises(SystemExit):
        tune([PROBLEM], make_bench=bench, before_measuring=leave, resume=True, listed=False)
    assert len(bench.timed) == 10
    assert len(journals(cache, cpu)) == 1
    rest = Impatient()
    (result,) = tune([PROBLEM], make_bench=rest, resume=True, listed=False)
    assert result.entry is not None
    assert result.measurements + 10 == result.entry.measurements
    assert len(rest.timed) == result.measurements


def test_waiting_counts_to_no_budget(cache: TuningCache, kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    def leave() -> None:
        nonlocal now
        now += 100.0

    def samples(item: Candidate) -> list[float]:
        nonlocal now
        now += 1.0
        return steady(1.0)

    monkeypatch.setattr("faops.autotune.tuner.pace.monotonic", lambda: now)
    events: list[Event] = []
    options: dict[str, Any] = {"make_bench": FakeBench(samples), "before_measuring": leave}
    (result,) = tune([PROBLEM], time_budget=50.0, on_event=events.append, **options)
    assert result.status == "tuned"
    assert events[-1].elapsed == result.measurements  # one second each
    left = [event.remaining for event in events if event.kind == "measured"]
    assert all(seconds is not None and seconds < 50 for seconds in left)


def test_a_run_without_a_list_leaves_that_of_another_alone(
    cache: TuningCache, kernel: FakeKernel, cpu: DeviceProfile
) -> None:
    interrupted(PROBLEM, OTHER, after=10, force=True)
    (third,) = tune([THIRD], make_bench=Impatient(), resume=True, listed=False)
    assert third.status == "tuned"
    assert unfinished() == [PROBLEM, OTHER]
    (first,) = tune([PROBLEM], make_bench=Impatient(), resume=True, listed=False)
    assert first.entry is not None
    assert first.measurements + 10 == first.entry.measurements  # the journal counts
    bench = Impatient()
    (again,) = tune([PROBLEM], make_bench=bench, resume=True, listed=False)
    assert again.status == "warm"  # although the list says that it was to be forced
    assert unfinished() == [PROBLEM, OTHER]


def test_benches_that_are_given_stay_open(
    cache: TuningCache, kernel: FakeKernel, cpu: DeviceProfile, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[Benches] = []
    monkeypatch.setattr(Benches, "close", lambda self: closed.append(self))
    benches = Benches(torch.device("cpu"), cpu, Impatient(), isolate=True)
    for problem in (PROBLEM, OTHER):
        (result,) = tune([problem], benches=benches)
        assert result.status == "tuned"
    assert closed == []
    tune([THIRD], make_bench=Impatient())
    assert len(closed) == 1


def test_a_patient_bench_has_the_conditions_of_the_other() -> None:
    bench = FakeBench(lambda item: steady(1.0))
    assert Patient(bench, lambda: None).conditions == Conditions()
    conditions = Conditions(rejected=3)
    bench.conditions = conditions  # type: ignore[attr-defined]
    assert Patient(bench, lambda: None).conditions is conditions


def test_a_rough_estimate_asks_no_model(
    cache: TuningCache, kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    (exact,) = estimate([PROBLEM])
    asked: list[AttentionProblem] = []
    refuse: Callable[..., Any] = lambda candidates, problem, *rest: asked.append(problem)  # noqa: E731
    monkeypatch.setattr("faops.autotune.search.candidates.model.rank", refuse)
    (rough,) = estimate([PROBLEM], rough=True)
    assert asked == []
    assert rough == {**exact, "pruned": 0}
    kernel.reasons = ("no",)
    (refused,) = estimate([replace(PROBLEM, head_dim=72)], rough=True)
    assert refused["status"] == "failed"
