"""When the gate opens and closes, whatever the device is."""

from __future__ import annotations

import time
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from faops.daemon.config import Config
from faops.daemon.gate import gate_of
from faops.daemon.gate.cpu import Cpu
from faops.daemon.gate.gate import IdleGate, slept_seconds
from faops.daemon.gate.load import Load
from faops.daemon.gate.npu import Npu
from faops.daemon.gate.nvidia import Nvidia
from faops.daemon.gate.unknown import Unknown
from faops.daemon.gate.window import Window

from .support import Bench, Told


def test_it_opens_when_the_device_was_idle_for_long_enough() -> None:
    bench = Bench()
    assert bench.look(4) == (False, "idle for 4 of 10 s")
    assert bench.look(5.9) == (False, "idle for 9 of 10 s")
    assert bench.look(0.1) == (True, "idle for 10 s")
    assert bench.look(20) == (True, "idle for 30 s")


def test_it_closes_at_the_first_look_that_sees_work() -> None:
    bench = Bench()
    assert bench.look(30)[0]
    assert bench.look(0.25, busy="pid 4711 uses 84 % of the GPU") == (False, "pid 4711 uses 84 % of the GPU")
    assert bench.look(9) == (False, "idle for 9 of 10 s")
    assert bench.look(0.5, busy="again") == (False, "again")
    assert bench.look(9.5) == (False, "idle for 9 of 10 s")
    assert bench.look(0.5)[0]


def test_what_the_sensor_is_asked_and_tells() -> None:
    bench = Bench()
    bench.look(busy="x")
    state = bench.gate.look([3])
    assert (state.figures, state.idle_seconds) == ({"busy_cores": 1.5}, 0.0)
    assert bench.sensor.asked == [({1, 2}, bench.gate.config), ({3}, bench.gate.config)]
    bench.clock.pass_by(3.0)
    bench.sensor.busy = ""
    assert bench.gate.look(()).idle_seconds == 3.0
    bench.gate.close()
    assert bench.sensor.closed


def test_nothing_to_wait_for() -> None:
    bench = Bench(Config(idle_seconds=0.0))
    assert bench.look(0.0)[0]
    assert not bench.look(busy="x")[0]
    assert bench.look(0.0)[0]


def test_the_clock_on_the_wall_may_be_set() -> None:
    bench = Bench()
    bench.look(5)
    for jump in (-1e9, 1e9, 86400.0):
        bench.wall.pass_by(jump)
        assert bench.look(1)[1].startswith("idle for")
    assert bench.look(2)[0]


@pytest.mark.parametrize("way", ["suspended", "not looked at"])
def test_after_a_time_that_nobody_saw_idleness_begins_anew(way: str) -> None:
    bench = Bench()
    assert bench.look(30)[0]
    if way == "suspended":
        bench.slept.pass_by(3600.0)
    assert bench.look(1.0 if way == "suspended" else 61.0) == (False, "idle for 0 of 10 s")
    assert bench.look(10)[0]


def test_looks_may_be_far_apart_while_a_child_starts() -> None:
    bench = Bench()
    assert bench.look(10)[0]
    assert bench.look(45)[0]


def test_clocks_that_are_read_one_after_the_other_are_no_suspend() -> None:
    bench = Bench()
    bench.look(5)
    bench.slept.pass_by(0.01)
    assert bench.look(5)[0]


def test_the_time_asleep_is_told_or_nil(monkeypatch: pytest.MonkeyPatch) -> None:
    assert slept_seconds() >= -0.01
    monkeypatch.delattr(time, "CLOCK_BOOTTIME", raising=False)
    assert slept_seconds() == 0.0


def test_outside_its_hours_it_is_closed() -> None:
    bench = Bench(Config(idle_seconds=10.0, window=Window.parse("22:00-06:00")))
    bench.wall.seconds = datetime(2026, 3, 3, 21, 59).timestamp()
    assert bench.look(30) == (False, "outside 22:00-06:00")
    assert bench.look(30) == (True, "idle for 60 s")  # it has gone on counting
    bench.wall.seconds = datetime(2026, 3, 4, 6, 0).timestamp()
    assert bench.look(1) == (False, "outside 22:00-06:00")


def test_without_the_idle_gate_only_the_hours_count() -> None:
    bench = Bench(Config(idle_gate=False, window=Window.parse("01:00-02:00")))
    bench.wall.seconds = datetime(2026, 3, 3, 1, 30).timestamp()
    assert bench.look(1, busy="others") == (True, "tunes on busy devices too, as set")
    bench.wall.seconds = datetime(2026, 3, 3, 3, 0).timestamp()
    assert bench.look(1)[1] == "outside 01:00-02:00"


def test_other_settings_keep_idleness() -> None:
    bench = Bench()
    bench.look(9)
    bench.gate.configure(Config(idle_seconds=20.0, busy_cores=7.0))
    assert bench.look(5) == (False, "idle for 14 of 20 s")
    assert bench.sensor.asked[-1][1].busy_cores == 7.0
    bench.gate.configure(Config(idle_seconds=2.5))
    assert bench.look(0)[0]


@settings(max_examples=50)
@given(st.lists(st.tuples(st.floats(0.0, 20.0), st.booleans()), min_size=1, max_size=30), st.floats(0.0, 30.0))
def test_it_is_open_exactly_when_nothing_was_seen_for_so_long(looks: list[tuple[float, bool]], needed: float) -> None:
    bench = Bench(Config(idle_seconds=needed))
    idle_since = bench.clock()
    for after, busy in looks:
        state = bench.look(after, "others" if busy else "")[0]
        idle_since = bench.clock() if busy else idle_since
        assert state == (not busy and bench.clock() - idle_since >= needed)


@pytest.mark.parametrize(
    ("device", "sensor"),
    [
        ({"device": "cpu", "vendor": "cpu", "uuid": ""}, Cpu),
        ({"device": "cuda:1", "vendor": "nvidia", "uuid": "GPU-1"}, Nvidia),
        ({"device": "npu:3", "vendor": "ascend", "uuid": ""}, Npu),
        ({"device": "cuda:0", "vendor": "amd", "uuid": ""}, Unknown),
        ({"device": "mps", "vendor": "apple", "uuid": ""}, Unknown),
    ],
)
def test_every_device_has_its_gate(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, device: dict[str, Any], sensor: type
) -> None:
    monkeypatch.setattr("faops.daemon.gate.PROC", tmp_path)
    found = gate_of(device, Config())
    assert isinstance(found, IdleGate)
    assert isinstance(found.sensor, Load if sensor is Cpu else sensor)
    (tmp_path / "stat").write_text("")
    found = gate_of(device, Config())
    assert isinstance(found, IdleGate)
    assert isinstance(found.sensor, sensor)


def test_what_the_gates_are_of() -> None:
    gpu = gate_of({"device": "cuda:1", "vendor": "nvidia", "uuid": "GPU-1"}, Config())
    npu = gate_of({"device": "npu:3", "vendor": "ascend", "uuid": ""}, Config())
    assert isinstance(gpu, IdleGate) and isinstance(gpu.sensor, Nvidia) and gpu.sensor.uuid == "GPU-1"
    assert isinstance(npu, IdleGate) and isinstance(npu.sensor, Npu) and npu.sensor.index == 3


def test_a_device_of_which_nobody_tells_is_never_idle() -> None:
    gate = gate_of({"device": "cuda:0", "vendor": "amd", "uuid": ""}, Config(idle_seconds=0.0))
    state = gate.look(())
    assert not state.open
    assert state.reason == (
        "nobody tells how busy cuda:0 is (vendor amd); daemon_idle_gate: 0 in faops.yaml tunes regardless"
    )
    gate.configure(Config(idle_gate=False))
    assert gate.look(()).open
    gate.close()


def test_a_sensor_can_be_anything_that_reads() -> None:
    assert IdleGate(Told(), Config(idle_seconds=0.0)).look(()).open
