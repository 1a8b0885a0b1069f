"""Tuning one problem for the daemon: events, the result, and what is left behind."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from faops.autotune.cache import TuningCache, environment
from faops.autotune.measurement.conditions import Conditions
from faops.autotune.tuner.benches import Benches
from faops.daemon.jobs import Task
from faops.daemon.worker import tuning as tuning_module
from faops.daemon.worker.tuning import Tuning
from faops.device import detect
from faops.errors import DaemonError
from faops.problem import AttentionProblem
from faops.registry import Config

from ..autotune.conftest import kernel, only_fakes, register  # noqa: F401
from ..autotune.support import PROBLEM, FakeBench, missed, steady, untuned

pytestmark = pytest.mark.usefixtures("only_fakes", "idle_machine", "kernel")


class Bench(FakeBench):
    """Block 3 is twice as fast as all others."""

    def __init__(self) -> None:
        super().__init__(lambda item: steady(0.5 if item.config == Config(block=3) else 1.0))
        self.conditions = Conditions(rejected=4)


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    """What stands for the device."""
    made = Bench()
    monkeypatch.setattr(
        tuning_module, "Benches", lambda device, profile, make, isolate: Benches(device, profile, made, isolate)
    )
    return made


@pytest.fixture(autouse=True)
def threads() -> Iterator[int]:
    """Tests may change how many there are."""
    before = torch.get_num_threads()
    yield before
    torch.set_num_threads(before)


def task(asked: AttentionProblem, **changes: Any) -> dict[str, Any]:
    cpu = detect("cpu")
    values: dict[str, Any] = {
        "identity": cpu.identity, "environment": environment.directory_name(), "device": "cpu", "threads": cpu.threads,
        "key": asked.key(), "problem": asked.as_dict(), "words": str(asked), "call_seconds": 1.0,
        "tuning_seconds": 9.0,
    }  # fmt: skip
    return Task(**{**values, **changes}).as_dict()


class Told:
    """What the daemon is told."""

    def __init__(self, leave: Callable[[], None] = lambda: None) -> None:
        self.events: list[dict[str, Any]] = []
        self.tuning = Tuning(lambda event: self.events.append(json.loads(json.dumps(event))), leave)

    def tune(self, asked: AttentionProblem = PROBLEM, forced: bool = False, **changes: Any) -> dict[str, Any]:
        return dict(json.loads(json.dumps(self.tuning.tune(task(asked, **changes), forced))))

    def kinds(self) -> list[str]:
        return [event["kind"] for event in self.events]


def test_a_problem_is_tuned(bench: Bench) -> None:
    told = Told()
    untuned(PROBLEM, detect("cpu"))
    untuned(replace(PROBLEM, head_dim=96), detect("cpu"))
    result = told.tune()
    heat_map, path = result.pop("heat_map"), Path(result.pop("path"))
    assert 0 < result.pop("seconds") < 100
    assert result == {
        "status": "tuned", "message": "2.00x over the default", "measurements": len(bench.timed),
        "kernel": "fake.forward", "config": {"block": 3}, "p50": 0.5,
        "default_kernel": "fake.forward", "default_config": {"block": 0}, "default_p50": 1.0,
        "speedup": 2.0, "is_default": False, "rejected": 4,
    }  # fmt: skip
    assert path.is_file()
    assert "Tile space of fake.forward" in heat_map
    measured = [event for event in told.events if event["kind"] == "measured"]
    assert measured[-1]["done"] == measured[-1]["planned"] == result["measurements"]
    assert measured[-1]["best"] == 0.5
    assert measured[-1]["problem"] == str(PROBLEM)
    assert told.kinds()[0] == "problem_started"
    assert told.kinds()[-1] == "problem_done"
    (left,) = missed(TuningCache())  # the spool has forgotten the one that is tuned
    assert "d96" in json.loads(left.read_text())["key"]


def test_what_is_tuned_is_warm_unless_it_is_forced(bench: Bench) -> None:
    told = Told()
    first = told.tune()
    before = len(bench.timed)
    untuned(PROBLEM, detect("cpu"))
    warm = told.tune()
    assert len(bench.timed) == before
    assert (warm["status"], warm["measurements"], warm["message"]) == ("warm", 0, "tuned before")
    same = ("kernel", "config", "p50", "speedup", "path", "heat_map", "rejected")
    assert {name: warm[name] for name in same} == {name: first[name] for name in same}
    assert missed(TuningCache()) == []
    forced = told.tune(forced=True)
    assert (forced["status"], forced["measurements"]) == ("tuned", before)


def test_a_failure_is_told(bench: Bench) -> None:
    bench.samples = lambda item: 1 // 0  # type: ignore[assignment, return-value]
    told = Told()
    result = told.tune()
    assert result["status"] == "failed"
    assert "ZeroDivisionError" in result["message"]
    assert (result["kernel"], result["speedup"], result["path"], result["heat_map"]) == ("", None, "", "")
    assert told.kinds().count("dropped") == 8


def test_a_winner_that_is_not_stored_is_a_failure(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """It helps no program, and the next try finds its timings in the journal."""
    untuned(PROBLEM, detect("cpu"))
    told = Told()
    with monkeypatch.context() as full:
        full.setattr("faops.autotune.cache.write_whole", refuse)
        result = told.tune()
    assert result["status"] == "failed"
    assert "not stored" in result["message"]
    assert (result["speedup"], result["path"]) == (2.0, "")
    assert len(missed(TuningCache())) == 1
    before = len(bench.timed)
    assert told.tune()["status"] == "tuned"
    assert len(bench.timed) == before


def refuse(*arguments: Any) -> bool:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"environment": "torch-1"}, r"^it is of other software \(torch-1\)"),
        ({"identity": "cpu_z80"}, r"^cpu is cpu_.*, and the problem is one of cpu_z80$"),
        ({"problem": {**PROBLEM.as_dict(), "dtype": "int3"}}, "no call can ask its problem"),
    ],
)
def test_a_task_of_something_else_is_refused(bench: Bench, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DaemonError, match=message):
        Told().tune(**changes)
    assert bench.timed == []


def test_a_cpu_computes_with_the_threads_of_the_task(bench: Bench, threads: int) -> None:
    other = replace(detect("cpu"), threads=threads + 1)
    result = Told().tune(identity=other.identity, threads=threads + 1)
    assert result["status"] == "tuned"
    assert torch.get_num_threads() == threads + 1
    assert Path(result["path"]).parents[2].name == other.identity


def test_one_process_serves_the_problems_of_a_device(monkeypatch: pytest.MonkeyPatch, threads: int) -> None:
    made: list[Benches] = []
    closed: list[Benches] = []

    def make(device: torch.device, profile: Any, make_bench: None, isolate: bool) -> Benches:
        assert make_bench is None and isolate
        made.append(Benches(device, profile, Bench(), isolate))
        return made[-1]

    monkeypatch.setattr(tuning_module, "Benches", make)
    monkeypatch.setattr(Benches, "close", lambda self: closed.append(self))
    told = Told()
    told.tune()
    told.tune(replace(PROBLEM, head_dim=96))
    assert (len(made), closed) == (1, [])
    other = replace(detect("cpu"), threads=threads + 1)
    told.tune(identity=other.identity, threads=threads + 1)
    assert len(made) == 2
    assert closed == made[:1]


def test_waiting_counts_to_no_time(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    def leave() -> None:
        nonlocal now
        now += 1000.0

    def samples(item: Any) -> list[float]:
        nonlocal now
        now += 1.0
        return steady(1.0)

    monkeypatch.setattr(tuning_module.time, "monotonic", lambda: now)
    bench.samples = samples
    result = Told(leave).tune()
    assert result["seconds"] == result["measurements"]


def test_what_ends_the_wait_leaves_a_journal(bench: Bench) -> None:
    turns = iter(range(9))

    def leave() -> None:
        if next(turns, None) is None:
            raise SystemExit(0)

    with pytest.raises(SystemExit):
        Told(leave).tune()
    assert len(bench.timed) == 8
    assert list(TuningCache().root.rglob("run.json")) == []  # that is for what people begin
    told = Told()
    result = told.tune()
    assert "resumed" in told.kinds()
    assert len(bench.timed) == 8 + result["measurements"]


def test_a_heat_map_is_bounded(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    told = Told()
    size = len(told.tune()["heat_map"].encode())
    monkeypatch.setattr(tuning_module, "LARGEST_HEAT_MAP", size)
    assert len(told.tune()["heat_map"].encode()) == size
    monkeypatch.setattr(tuning_module, "LARGEST_HEAT_MAP", size - 1)
    assert told.tune()["heat_map"] == ""
