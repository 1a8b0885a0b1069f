"""Tuning from problems to stored winners, with made-up times, and once with the real thing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import filelock
import pytest
import torch

from faops import dispatch, registry
from faops.autotune import effort
from faops.autotune.cache import TuningCache
from faops.autotune.search.candidates import Candidate
from faops.autotune.tuner import Event, distinct, estimate, tune
from faops.device import DeviceProfile, detect
from faops.errors import CrashedError, TuningError
from faops.problem import AttentionProblem, Band
from faops.registry import Config

from ..support import PROBLEM, FakeBench, FakeKernel, make_entry, steady

OTHER = replace(PROBLEM, head_dim=128)


pytestmark = pytest.mark.usefixtures("only_fakes")


def bench() -> FakeBench:
    """Block 3 is twice as fast as all others."""
    return FakeBench(lambda item: steady(0.5 if item.config == Config(block=3) else 1.0))


def test_a_winner_is_stored_and_dispatched(cache: TuningCache, kernel: FakeKernel, cpu: DeviceProfile) -> None:
    assert dispatch.plan(PROBLEM, cpu).source == "default"
    (result,) = tune([PROBLEM], make_bench=bench())
    assert (result.status, result.message) == ("tuned", "2.00x over the default")
    assert result.measurements == 8 + 4 + effort.FINALISTS * effort.FINAL_ROUNDS
    entry = result.entry
    assert entry is not None
    assert (entry.kernel, entry.config, entry.default_config) == ("fake.forward", Config(block=3), Config(block=0))
    assert entry.speedup == pytest.approx(2.0)
    assert entry.measurements == result.measurements
    assert {timing.config for timing in entry.timings} == set(kernel.configs(PROBLEM, cpu))
    assert cache.load(cpu, PROBLEM) == entry
    plan = dispatch.plan(PROBLEM, cpu)  # at once, in this very process
    assert (plan.source, plan.config) == ("tuned", Config(block=3))


def test_a_warm_start_measures_nothing(cache: TuningCache, kernel: FakeKernel) -> None:
    tune([PROBLEM], make_bench=bench())
    again = bench()
    (result,) = tune([PROBLEM, replace(PROBLEM, seqlen_q=100)], make_bench=again)
    assert (result.status, result.measurements) == ("warm", 0)
    assert result.entry is not None
    assert again.timed == []
    (forced,) = tune([PROBLEM], force=True, make_bench=again)
    assert forced.status == "tuned"
    assert len(again.timed) == forced.measurements > 0


def test_changed_code_is_tuned_again(cache: TuningCache, kernel: FakeKernel) -> None:
    tune([PROBLEM], make_bench=bench())
    registry.register(FakeKernel(source="changed"))
    (result,) = tune([PROBLEM], make_bench=bench())
    assert result.status == "tuned"
    assert result.entry is not None
    assert result.entry.source_hash == "changed"


def test_problems_of_one_key_are_tuned_once() -> None:
    long_window = replace(PROBLEM, band=Band(500, 0))  # hides nothing more than causal does
    causal = replace(PROBLEM, band=Band(-1, 0))
    assert distinct([causal, long_window, replace(causal, seqlen_q=65), PROBLEM]) == [causal, PROBLEM]


def test_events_tell_the_whole_story(cache: TuningCache, kernel: FakeKernel) -> None:
    events: list[Event] = []
    tune([PROBLEM], make_bench=bench())
    (_, result) = tune([PROBLEM, OTHER], on_event=events.append, make_bench=bench())
    finals = effort.FINALISTS * effort.FINAL_ROUNDS
    assert [event.kind for event in events] == [
        "warm", "problem_started", *["measured"] * (result.measurements - finals), *["checking"] * effort.FINALISTS,
        *["measured"] * finals, "problem_done"
    ]  # fmt: skip
    assert [(event.index, event.total) for event in events[:2]] == [(0, 2), (1, 2)]
    measured = [event for event in events if event.kind == "measured"]
    assert [event.done for event in measured] == list(range(1, result.measurements + 1))
    assert {event.planned for event in measured} == {result.measurements}
    best = [event.best for event in measured]
    assert best[0] == pytest.approx(1.0)
    assert best[-1] == pytest.approx(0.5)
    assert best == sorted(best, reverse=True)
    assert events[-1].message == "2.00x over the default"
    elapsed = [event.elapsed for event in events]
    assert elapsed == sorted(elapsed)
    assert events[1].remaining is None  # nothing is known yet
    assert all(event.remaining is not None and event.remaining >= 0 for event in measured)
    assert measured[-1].remaining == pytest.approx(0)


def test_failures_and_the_fallback_are_told(cache: TuningCache, kernel: FakeKernel) -> None:
    def samples(item: Candidate) -> list[float]:
        if item.config == Config(block=2):
            raise RuntimeError("no such instruction")
        if item.config == Config(block=3):
            raise CrashedError("SIGSEGV")
        return steady(1.0)

    events: list[Event] = []
    tune([PROBLEM], make_bench=FakeBench(samples), on_event=events.append)
    told = [(event.kind, event.message) for event in events if event.kind in ("dropped", "quarantined", "unisolated")]
    assert told == [
        ("dropped", "fake.forward [block=2]: RuntimeError: no such instruction"),
        ("quarantined", "fake.forward [block=3]: CrashedError: SIGSEGV"),
    ]


def test_a_budget_spent_half_way_ends_in_finals(
    cache: TuningCache, kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0

    def samples(item: Candidate) -> list[float]:
        nonlocal now
        now += 1.0
        return steady(0.5 if item in [timed for timed, _ in made.timed[1:2]] else 1.0)

    monkeypatch.setattr("faops.autotune.tuner.pace.monotonic", lambda: now)
    made = FakeBench(samples)
    events: list[Event] = []
    first, second = tune([PROBLEM, OTHER], time_budget=3.0, make_bench=made, on_event=events.append)
    assert (first.status, second.status) == ("tuned", "skipped")
    assert first.entry is not None
    assert first.entry.config == made.timed[1][0].config
    assert first.measurements == 3 + effort.HURRIED_FINALISTS * effort.FINAL_ROUNDS
    assert len(made.checked) == effort.HURRIED_FINALISTS
    remaining = [event.remaining for event in events if event.kind == "measured"]
    assert all(left is not None and left <= 3.0 for left in remaining)


def test_a_spent_budget_skips_the_rest(cache: TuningCache, kernel: FakeKernel) -> None:
    tune([PROBLEM], make_bench=bench())
    late = bench()
    results = tune([PROBLEM, OTHER], time_budget=0.0, make_bench=late)
    assert [(result.status, result.measurements) for result in results] == [("warm", 0), ("skipped", 0)]
    assert "time budget of 0 s" in results[1].message
    assert late.timed == []
    assert len(cache.entries()) == 1


def test_an_interrupt_keeps_what_is_finished(cache: TuningCache, kernel: FakeKernel, cpu: DeviceProfile) -> None:
    made = bench()

    def interrupted(problem: AttentionProblem, *place: Any) -> FakeBench:
        if problem == OTHER:
            raise KeyboardInterrupt
        return made

    with pytest.raises(KeyboardInterrupt):
        tune([PROBLEM, OTHER], make_bench=interrupted)
    assert [entry.key for entry in cache.entries()] == [PROBLEM.key()]
    first, second = tune([PROBLEM, OTHER], make_bench=bench())
    assert (first.status, second.status) == ("warm", "tuned")


def test_a_problem_that_fails_is_told_and_the_rest_goes_on(cache: TuningCache, kernel: FakeKernel) -> None:
    def failing(problem: AttentionProblem, *place: Any) -> FakeBench:
        return FakeBench(lambda item: steady(1.0), wrong=lambda item: problem == PROBLEM)

    first, second = tune([PROBLEM, OTHER], make_bench=failing)
    assert (first.status, first.entry) == ("failed", None)
    assert "wrong result" in first.message
    assert second.status == "tuned"
    kernel.reasons = ("needs more cores",)
    (refused,) = tune([PROBLEM], make_bench=bench())
    assert refused.status == "failed"
    assert "fake.forward: needs more cores" in refused.message
    (row,) = estimate([PROBLEM])
    assert (row["status"], row["configs"]) == ("failed", 0)
    assert "needs more cores" in row["message"]


def test_a_root_that_is_a_file(tmp_path: Any, kernel: FakeKernel) -> None:
    root = tmp_path / "file"
    root.write_text("")
    (result,) = tune([PROBLEM], cache=TuningCache(root), make_bench=bench())
    assert result.status == "tuned"
    assert "not stored" in result.message


def test_two_processes_do_not_measure_at_once(
    cache: TuningCache, kernel: FakeKernel, cpu: DeviceProfile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(effort, "LOCK_TIMEOUT_SECONDS", 0.05)
    monkeypatch.setattr(effort, "LOCK_POLL_SECONDS", 0.01)
    tune([OTHER], make_bench=bench())
    path = cache.directory(cpu).parent / "measuring.lock"
    events: list[Event] = []
    blocked = bench()
    with filelock.FileLock(path), pytest.raises(TuningError, match="another process has been measuring"):
        tune([PROBLEM], on_event=events.append, make_bench=blocked)
    assert blocked.timed == []
    assert [event.kind for event in events] == ["waiting"]
    with filelock.FileLock(path):  # what is warm needs no lock
        assert [result.status for result in tune([OTHER], make_bench=bench())] == ["warm"]
    assert [result.status for result in tune([PROBLEM], make_bench=bench())] == ["tuned"]


def test_what_the_other_process_tuned_meanwhile_is_not_measured(
    cache: TuningCache, kernel: FakeKernel, cpu: DeviceProfile, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = filelock.FileLock(cache.directory(cpu).parent / "measuring.lock")
    cache.directory(cpu).mkdir(parents=True)
    lock.acquire()

    def other_process_finishes(event: Event) -> None:
        if event.kind == "waiting":
            cache.store(cpu, make_entry(cpu))
            lock.release()

    idle = bench()
    (result,) = tune([PROBLEM], on_event=other_process_finishes, make_bench=idle)
    assert result.status == "warm"
    assert idle.timed == []


def test_an_estimate_measures_nothing(cache: TuningCache, kernel: FakeKernel) -> None:
    tune([PROBLEM], make_bench=bench())
    longer = replace(OTHER, seqlen_q=4096, seqlen_k=4096, heads_q=64)
    rows = estimate([PROBLEM, OTHER, longer])
    assert [row["status"] for row in rows] == ["warm", "to tune", "to tune"]
    assert [row["configs"] for row in rows] == [0, 8, 8]
    assert [(row["legal"], row["pruned"]) for row in rows] == [(0, 0), (8, 0), (8, 0)]
    assert rows[0]["seconds"] == 0
    assert 0 < rows[1]["seconds"] < rows[2]["seconds"]
    assert estimate([PROBLEM], force=True)[0]["configs"] == 8
    assert len(cache.entries()) == 1


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Real timings, but as few as there can be."""
    monkeypatch.setattr(effort, "WARMUP_SECONDS", 0.0)
    for name in ("QUICK", "HALVING", "FINAL"):
        monkeypatch.setattr(effort, name, effort.Budget(warmup=0.0, time_cap=0.001, min_samples=1))


@pytest.mark.parametrize(
    "problem",
    [
        AttentionProblem(dtype="float32", seqlen_q=32, seqlen_k=48, heads_q=4, heads_kv=2, head_dim=16, head_dim_v=16,
                         band=Band(-1, 0)),
        AttentionProblem(op="backward", dtype="float32", seqlen_q=32, seqlen_k=32, heads_q=2, heads_kv=2, head_dim=16,
                         head_dim_v=16, need_lse=True),
        AttentionProblem(op="decode", dtype="bfloat16", seqlen_k=64, heads_q=4, heads_kv=2, head_dim=16, head_dim_v=16,
                         append=True),
    ],
    ids=lambda problem: problem.op,
)  # fmt: skip
def test_the_real_thing(cache: TuningCache, hasty: None, cpu: DeviceProfile, problem: AttentionProblem) -> None:
    (result,) = tune([problem], torch.device("cpu"), isolate=False)
    assert result.status == "tuned", result.message
    entry = result.entry
    assert entry is not None
    assert entry.dropped == ()
    assert entry.p50 > 0
    kernel = registry.get(entry.kernel)
    assert kernel is not None
    assert {timing.kernel for timing in entry.timings} == {
        kernel.id for kernel in registry.kernels(problem.op) if kernel.check(problem, cpu)
    }
    plan = dispatch.plan(problem, cpu)
    assert (plan.source, plan.kernel) == ("tuned", kernel)
    (again,) = tune([problem])
    assert (again.status, again.measurements) == ("warm", 0)


def test_tuning_needs_no_real_device_to_be_simulated(cache: TuningCache, kernel: FakeKernel) -> None:
    seen: list[tuple[Any, ...]] = []

    def make(problem: AttentionProblem, device: torch.device, profile: DeviceProfile) -> FakeBench:
        seen.append((problem, device, profile))
        return FakeBench(lambda item: steady(1.0))

    (result,) = tune([PROBLEM], "cpu", make_bench=make)
    assert seen == [(PROBLEM, torch.device("cpu"), detect("cpu"))]
    assert result.message == "the default stays"
    assert result.entry is not None
    assert result.entry.is_default
