"""Other programs' use of the CPU, from made-up and real statistics."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from faops.autotune import tuner
from faops.autotune.cache import TuningCache
from faops.autotune.measurement import load
from faops.autotune.tuner import Event

from ..support import PROBLEM, FakeBench, FakeKernel, steady


def statistics(path: Path, user: int, idle: int) -> Path:
    path.write_text(f"cpu  {user} 0 0 {idle} 0 0 0 0 0 0\ncpu0 1 2 3 4 5 6 7 8 9 10\n")
    return path


def test_counts_the_ticks_that_others_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = statistics(tmp_path / "stat", user=1000, idle=5000)
    monkeypatch.setattr(load.os, "sysconf", lambda name: 100)
    monkeypatch.setattr(load.time, "process_time", lambda: 7.0)
    # While the function sleeps, 150 ticks of work pass: 1.5 s of 100 ticks each, in one second.
    monkeypatch.setattr(load.time, "sleep", lambda seconds: statistics(path, user=1150, idle=5010))
    assert load.foreign_cores(1.0, path) == pytest.approx(1.5)


def test_own_work_is_not_foreign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = statistics(tmp_path / "stat", user=1000, idle=5000)
    own = iter([7.0, 8.0])
    monkeypatch.setattr(load.os, "sysconf", lambda name: 100)
    monkeypatch.setattr(load.time, "process_time", lambda: next(own))
    monkeypatch.setattr(load.time, "sleep", lambda seconds: statistics(path, user=1100, idle=5100))
    assert load.foreign_cores(1.0, path) == pytest.approx(0.0)


@pytest.mark.parametrize("text", ["", "intr 1 2 3", "cpu  a b c d"], ids=["empty", "other", "words"])
def test_unknown_where_the_system_does_not_say(tmp_path: Path, text: str) -> None:
    path = tmp_path / "stat"
    path.write_text(text)
    assert load.foreign_cores(0.0, path) is None
    assert load.foreign_cores(0.0, tmp_path / "missing") is None


@pytest.mark.skipif(not load.STATISTICS.exists(), reason="only Linux has /proc/stat")
def test_sees_a_real_program() -> None:
    worker = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        time.sleep(0.2)
        found = load.foreign_cores(0.5)
    finally:
        worker.kill()
        worker.wait()
    assert found is not None
    assert found > 0.2


@pytest.mark.parametrize(("cores", "warned"), [(1.6, True), (0.1, False), (None, False)])
def test_tuning_warns_of_a_busy_machine(
    monkeypatch: pytest.MonkeyPatch, cache: TuningCache, kernel: FakeKernel, cores: float | None, warned: bool
) -> None:
    monkeypatch.setattr(tuner, "foreign_cores", lambda seconds: cores)
    events: list[Event] = []
    bench = FakeBench(lambda candidate: steady(1.0))
    tuner.tune([PROBLEM], cache=cache, make_bench=bench, on_event=events.append)
    busy = [event.message for event in events if event.kind == "busy"]
    assert len(busy) == (1 if warned else 0)
    assert not warned or "1.6 of" in busy[0]
