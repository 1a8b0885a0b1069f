"""Whether a CPU is idle where there is no /proc."""

from __future__ import annotations

import os

import pytest

from faops.daemon.config import Config
from faops.daemon.gate.load import Load


def at(monkeypatch: pytest.MonkeyPatch, load: float) -> None:
    monkeypatch.setattr("os.getloadavg", lambda: (load, 9.0, 9.0))
    monkeypatch.setattr("os.cpu_count", lambda: 4)


def test_the_load_of_the_last_minute_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    sensor = Load()
    at(monkeypatch, 0.5)
    assert sensor.read({os.getpid()}, Config()).busy == ""
    at(monkeypatch, 1.25)
    found = sensor.read((), Config())
    assert found.busy == "the load of the last minute was 1.2 of 4 cores"
    assert found.figures == {"busy_cores": 1.25}
    assert sensor.read((), Config(busy_cores=1.25)).busy == ""


def test_while_a_child_lives_nothing_new_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    sensor, own = Load(), {os.getpid(), 4711}
    assert sensor.read(own, Config()).busy == "begins to watch the load"
    at(monkeypatch, 0.0)
    sensor.read({os.getpid()}, Config())
    at(monkeypatch, 4.0)
    assert sensor.read(own, Config()).busy == ""
    assert sensor.read({os.getpid()}, Config()).busy
    at(monkeypatch, 0.0)
    assert sensor.read(own, Config()).busy
    sensor.close()


def test_a_load_that_nobody_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown() -> tuple[float, float, float]:
        raise OSError("no load")

    monkeypatch.setattr("os.getloadavg", unknown)
    assert Load().read((), Config()).busy == "the load cannot be read: no load"
