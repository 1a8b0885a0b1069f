"""Whether a CPU is idle: on a made-up machine, and on this one."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from faops.daemon.config import Config
from faops.daemon.gate import cpu
from faops.daemon.gate.cpu import PROC, Cpu
from faops.daemon.gate.gate import Reading

from .machine import Machine

DAEMON, WORKER, CHILD, OTHER = 10, 20, 30, 40


class Watched(Machine):
    """A machine of 8 cores with a daemon on it, and the sensor that watches it."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.start(DAEMON)
        self.own = {DAEMON}
        self.config = Config(busy_cores=0.5)
        self.sensor = Cpu(self.root, self.clock)
        self.sensor._cores = 8

    def look(self, after: float = 0.25) -> Reading:
        self.clock.pass_by(after)
        return self.sensor.read(self.own, self.config)

    def figure(self, name: str, after: float = 0.25) -> float:
        return self.look(after).figures[name]


@pytest.fixture
def machine(tmp_path: Path) -> Watched:
    found = Watched(tmp_path)
    assert found.look().busy == "begins to watch the processors"
    return found


def test_nothing_at_work(machine: Watched) -> None:
    assert machine.look() == Reading("", {"busy_cores": 0.0, "own_cores": 0.0, "stolen_cores": 0.0})


def test_work_that_arrives_shows_in_the_first_look(machine: Watched) -> None:
    assert machine.look().busy == ""
    machine.work(0, 0.25)
    found = machine.look()
    assert found.busy == "other programs use 1.0 of 8 cores"
    assert found.figures["busy_cores"] == pytest.approx(1.0)


def test_a_short_burst_does_not_count(machine: Watched) -> None:
    machine.work(0, 0.05)
    assert machine.look().busy == ""
    machine.work(0, 0.10)
    assert machine.look().busy == ""
    machine.work(0, 0.15)
    assert machine.look().busy == "other programs use 0.6 of 8 cores"


def test_as_much_as_is_allowed_does_not_count(machine: Watched) -> None:
    machine.work(0, 0.5)
    assert machine.look(1.0).busy == ""
    machine.work(0, 0.52)
    assert machine.look(1.0).busy
    machine.config = Config(busy_cores=2.0)
    machine.work(0, 2.0)
    assert machine.look(1.0).busy == ""


def test_waiting_for_disks_and_what_other_machines_took_is_no_work(machine: Watched) -> None:
    machine.waiting += 4.0
    machine.stolen += 2.0
    machine.work(0, 0.0)
    found = machine.look(1.0)
    assert found == Reading("", {"busy_cores": 0.0, "own_cores": 0.0, "stolen_cores": 2.0})


def test_own_work_does_not_count(machine: Watched) -> None:
    machine.start(WORKER, DAEMON, threads=8)
    machine.own = {DAEMON, WORKER}
    for _ in range(12):
        machine.work(WORKER, 1.9)
        machine.work(DAEMON, 0.1)
        found = machine.look()
        assert found.busy == ""
        assert found.figures["own_cores"] == pytest.approx(8.0)


@pytest.mark.parametrize("fate", ["listed at its start", "older"])
def test_the_work_of_a_process_that_is_listed_for_the_first_time(machine: Watched, fate: str) -> None:
    machine.start(WORKER, DAEMON, threads=2)
    if fate == "older":
        machine.work(WORKER, 50.0)
        machine.look()
        machine.look(1.0)
    machine.own = {DAEMON, WORKER}
    machine.work(WORKER, 0.5)
    assert machine.look().busy == ""
    machine.work(WORKER, 0.5)
    assert machine.look().busy == ""
    machine.work(0, 0.5)
    assert machine.look().busy == "other programs use 2.0 of 8 cores"


def test_work_beside_ours_is_seen(machine: Watched) -> None:
    machine.start(WORKER, DAEMON)
    machine.own = {DAEMON, WORKER}
    machine.look()
    machine.work(WORKER, 0.5)
    machine.work(0, 0.25)
    assert machine.look().busy == "other programs use 1.0 of 8 cores"


def test_little_work_beside_ours_on_many_cores_is_seen_within_a_second(machine: Watched) -> None:
    machine.start(WORKER, DAEMON, threads=32)
    machine.own, machine.sensor._cores = {DAEMON, WORKER}, 32
    for _ in range(5):
        machine.work(WORKER, 8.0)
        assert machine.look().busy == ""
    looks = 0
    while not machine.look().busy:
        machine.work(WORKER, 7.75)
        machine.work(0, 0.25)
        looks += 1
        assert looks <= 5
    assert looks > 1


def test_ticks_that_are_told_late_are_not_others(machine: Watched) -> None:
    """Each of our 32 cores tells one tick more than we know of."""
    machine.start(WORKER, DAEMON, threads=32)
    machine.own, machine.sensor._cores = {DAEMON, WORKER}, 32
    machine.look()
    machine.work(WORKER, 8.0)
    machine.work(0, 32 * 0.01)
    found = machine.look()
    assert found.figures["busy_cores"] > 1.0
    assert found.busy == ""


def test_a_slow_reading_blurs_what_is_ours(machine: Watched) -> None:
    machine.start(WORKER, DAEMON, threads=8)
    machine.own = {DAEMON, WORKER}
    machine.look()
    real = cpu.proc.machine

    def slowly(root: Path) -> tuple[int, int]:
        machine.clock.pass_by(0.05)
        machine.work(0, 0.4)  # which is ours: each of our 8 cores worked on, in the 0.05 s
        return real(root)

    machine.work(WORKER, 2.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu.proc, "machine", slowly)
        assert machine.look().busy == ""
    machine.work(0, 0.4)
    assert machine.look().busy


def test_a_child_that_ends_leaves_its_time_to_us(machine: Watched) -> None:
    machine.start(WORKER, DAEMON)
    machine.start(CHILD, WORKER, threads=8)
    machine.own = {DAEMON, WORKER, CHILD}
    machine.work(CHILD, 100.0)
    machine.look(20.0)
    machine.work(CHILD, 2.0)
    machine.end(CHILD, by=WORKER)
    machine.own = {DAEMON, WORKER}
    found = machine.look()
    assert (found.busy, found.figures["own_cores"]) == ("", pytest.approx(8.0))
    machine.end(WORKER, by=DAEMON)
    machine.own = {DAEMON}
    assert machine.figure("busy_cores") == 0.0
    machine.work(0, 0.25)
    assert machine.look().busy == "other programs use 1.0 of 8 cores"


def test_others_are_seen_though_a_child_ends(machine: Watched) -> None:
    machine.start(WORKER, DAEMON, threads=8)
    machine.own = {DAEMON, WORKER}
    machine.work(WORKER, 100.0)
    machine.look(20.0)
    machine.work(WORKER, 0.1)
    machine.work(0, 0.5)
    machine.end(WORKER, by=DAEMON)
    machine.own = {DAEMON}
    assert machine.look().busy == "other programs use 2.0 of 8 cores"


def test_a_family_that_ends_between_two_looks(machine: Watched) -> None:
    machine.start(WORKER, DAEMON)
    machine.start(CHILD, WORKER, threads=8)
    machine.own = {DAEMON, WORKER, CHILD}
    machine.work(CHILD, 50.0)
    machine.work(WORKER, 5.0)
    machine.look(20.0)
    machine.work(CHILD, 1.0)
    machine.end(CHILD, by=WORKER)
    machine.end(WORKER, by=DAEMON)
    machine.own = {DAEMON}
    found = machine.look()
    assert (found.busy, found.figures["own_cores"]) == ("", pytest.approx(4.0))
    machine.work(0, 0.25)
    assert machine.look().busy


def test_a_child_for_which_nobody_of_ours_waited(machine: Watched) -> None:
    """What it did since the last look may be its, so that one look decides nothing; the next one does."""
    machine.start(WORKER, DAEMON)
    machine.start(CHILD, WORKER, threads=4)
    machine.own = {DAEMON, WORKER, CHILD}
    machine.work(CHILD, 50.0)
    machine.look(20.0)
    machine.work(CHILD, 1.0)
    machine.end(WORKER, by=DAEMON)
    machine.end(CHILD)
    machine.own = {DAEMON}
    assert machine.look().busy == ""
    assert machine.look().busy == ""
    machine.work(0, 0.25)
    assert machine.look().busy


def test_it_hides_no_more_than_it_could_have_done(machine: Watched) -> None:
    machine.start(CHILD, DAEMON, threads=2)
    machine.own = {DAEMON, CHILD}
    machine.look()
    machine.work(CHILD, 0.5)
    machine.work(0, 1.0)
    machine.end(CHILD)
    machine.own = {DAEMON}
    assert machine.look().busy.startswith("other programs use")


def test_a_number_that_another_process_got_is_not_ours(machine: Watched) -> None:
    machine.start(CHILD, DAEMON)
    machine.own = {DAEMON, CHILD}
    machine.work(CHILD, 5.0)
    machine.look(20.0)
    machine.end(CHILD, by=DAEMON)
    machine.own = {DAEMON}
    machine.look()
    machine.start(CHILD)
    machine.work(CHILD, 0.25)
    assert machine.look().busy == "other programs use 1.0 of 8 cores"


def test_a_process_that_is_no_longer_listed_is_followed_once_more(machine: Watched) -> None:
    machine.start(WORKER, DAEMON)
    machine.own = {DAEMON, WORKER}
    machine.look()
    machine.own = {DAEMON}
    machine.work(WORKER, 0.25)
    assert machine.look().busy == ""  # it is just ending, and not yet waited for
    machine.work(WORKER, 0.25)
    machine.look()
    machine.work(WORKER, 0.25)
    assert machine.look().busy == "other programs use 1.0 of 8 cores"


def test_looks_in_a_row_are_one(machine: Watched) -> None:
    machine.work(0, 0.25)
    first = machine.look()
    assert first.busy
    machine.work(0, 0.01)
    assert machine.look(0.001) is not first
    assert machine.look(0.001) == first


def test_what_cannot_be_read_is_no_idleness(machine: Watched) -> None:
    machine.look()
    (machine.root / "stat").write_text("intr 1 2 3\n")
    assert "begins with 'intr 1 2 3'" in machine.look().busy
    (machine.root / "stat").unlink()
    assert machine.look().busy.startswith("how busy the processors are cannot be read: ")
    machine.work(0, 0.0)
    assert machine.look().busy == "begins to watch the processors"
    assert machine.look().busy == ""


def test_processes_that_are_not_there_or_broken(machine: Watched) -> None:
    (machine.root / "77").mkdir()
    (machine.root / "77" / "stat").write_text("77 (x) R 1\n")
    (machine.root / "78").mkdir()
    (machine.root / "78" / "stat").write_text("nothing")
    machine.own = {DAEMON, 77, 78, 79}
    machine.look()
    machine.work(0, 0.25)
    assert machine.look().busy


@pytest.mark.skipif(not (PROC / "stat").exists(), reason="only Linux has /proc/stat")
def test_on_this_machine_own_work_is_not_others_and_others_work_is() -> None:
    """What else runs beside the tests only adds to it."""
    program = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        ours, others = Cpu(), Cpu()
        worked = difference = 0.0  # summed up, since little may be left for it
        deadline = time.monotonic() + 60
        while worked < 0.5:
            assert time.monotonic() < deadline, (worked, difference)
            known = ours.read({os.getpid(), program.pid}, Config()).figures
            found = others.read({os.getpid()}, Config(busy_cores=0.0))
            if known and found.figures:
                worked += known["own_cores"]
                difference += found.figures["busy_cores"] - known["busy_cores"]
            time.sleep(0.25)
        assert difference > 0.5 * worked
    finally:
        program.kill()
        program.wait()
