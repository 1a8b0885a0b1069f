"""What our processes worked between two looks."""

from __future__ import annotations

from pathlib import Path

import pytest

from faops.daemon.gate.proc import Process, machine, processes, worked_between

MOST = 1000


def process(worked: int, reaped: int = 0, parent: int = 1, threads: int = 1, born: int = 7) -> Process:
    return Process(born=born, parent=parent, threads=threads, worked=worked, reaped=reaped)


def test_what_each_worked_and_reaped() -> None:
    before = {5: process(10, 100), 6: process(20)}
    assert worked_between(before, {5: process(13, 104), 6: process(20)}, MOST) == (7, 0)


def test_a_number_that_another_of_ours_got() -> None:
    before = {1: process(0), 5: process(500, threads=3)}
    after = {1: process(0, 502), 5: process(4, born=8)}
    assert worked_between(before, after, MOST) == (6, 0)
    assert worked_between(before, {5: process(4, born=8)}, MOST) == (4, 4)


def test_a_new_one_worked_no_more_than_all_cores_could() -> None:
    assert worked_between({}, {5: process(10, 20)}, MOST) == (30, 0)
    assert worked_between({}, {5: process(10_000)}, MOST) == (1000, 0)


def test_one_heir_is_credited_once_for_each() -> None:
    before = {1: process(0), 5: process(50), 6: process(50)}
    assert worked_between(before, {1: process(0, 103)}, MOST) == (3, 0)
    assert worked_between(before, {1: process(0, 60)}, MOST) == (10, 1)


def test_a_heir_must_have_been_known_before() -> None:
    before = {5: process(50, parent=2, threads=2)}
    assert worked_between(before, {2: process(0, 51)}, MOST) == (51, 2)


def test_processes_that_are_their_own_ancestors() -> None:
    before = {5: process(50, parent=6), 6: process(50, parent=5)}
    assert worked_between(before, {}, MOST) == (0, 2)


def test_names_may_hold_anything(tmp_path: Path) -> None:
    (tmp_path / "5").mkdir()
    fields = "R 4 5 5 0 -1 4194304 1 2 3 4 11 22 33 44 20 0 6 0 777 8 9"
    (tmp_path / "5" / "stat").write_bytes(b"5 (a) R 1 (\xff) x) " + fields.encode())
    found = processes([5, 6], tmp_path)
    assert found == {5: Process(born=777, parent=4, threads=6, worked=33, reaped=77)}
    assert found[5].total == 110


@pytest.mark.parametrize("text", ["", "cpu 1 2 3", "cpu a b c d e f g h", "intr 1 2 3 4 5 6 7 8"])
def test_a_machine_that_does_not_say(tmp_path: Path, text: str) -> None:
    (tmp_path / "stat").write_text(text)
    with pytest.raises(ValueError, match=r"stat|invalid"):
        machine(tmp_path)


def test_a_machine(tmp_path: Path) -> None:
    (tmp_path / "stat").write_text("cpu  1 20 300 4000 50000 600000 7000000 8 9 9\ncpu0 1\n")
    assert machine(tmp_path) == (7600321, 8)
