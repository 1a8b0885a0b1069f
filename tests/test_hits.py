"""Counting untuned calls: what stands in the file, however many threads and processes count; broken files and disks."""

from __future__ import annotations

import errno
import multiprocessing
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from faops import hits
from faops.hits import Tally


@pytest.fixture
def miss(tmp_path: Path) -> Path:
    """The file of a miss, which says nothing here."""
    path = tmp_path / "environment" / "misses" / "abc.json"
    path.parent.mkdir(parents=True)
    path.write_text("{}")
    return path


def counts(miss: Path) -> list[int]:
    """The numbers in the file of hits."""
    path = hits.place(miss)
    return [int(word) for word in path.read_text().split()] if path.exists() else []


# --- the tally --------------------------------------------------------------------------------------------------------


def test_writes_are_few_and_the_file_is_never_far_behind(miss: Path) -> None:
    tally = Tally(miss)
    for calls in range(1, 2050):
        tally.count()
        assert 1 + calls / 2 < hits.read(miss) <= 1 + calls
    assert counts(miss) == [1, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024]


def test_the_process_that_wrote_the_miss_has_told_its_first_call(miss: Path) -> None:
    tally = Tally(miss, written=1)
    assert hits.read(miss) == 1
    for calls in range(2, 100):
        tally.count()
        assert calls / 2 < hits.read(miss) <= calls
    assert counts(miss) == [1, 2, 4, 8, 16, 32]


def test_the_short_form_counts_the_same(miss: Path) -> None:
    tally = Tally(miss)
    for _ in range(100):
        if next(tally.ticks, True):
            tally.write()
    assert counts(miss) == [1, 1, 2, 4, 8, 16, 32]


def test_one_tally_a_miss(miss: Path) -> None:
    assert hits.tally(miss) is hits.tally(miss, written=1)
    assert hits.tally(miss).written == 0
    assert hits.tally(miss.with_name("other.json"), written=1).written == 1


def test_threads_lose_next_to_nothing(miss: Path) -> None:
    tally, start = Tally(miss), threading.Barrier(8)

    def work() -> None:
        start.wait()
        for _ in range(5000):
            tally.count()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 40_000 / 4 < hits.read(miss) < 2 * 40_000


FORK = multiprocessing.get_context("fork")


def test_a_child_process_counts_its_own_calls(miss: Path) -> None:
    tally = hits.tally(miss)
    for _ in range(1000):  # 512 of them are told
        tally.count()
    before = counts(miss)

    def work() -> None:
        for _ in range(30):
            tally.count()

    child = FORK.Process(target=work)
    child.start()
    child.join()
    assert child.exitcode == 0
    assert counts(miss) == [*before, 1, 1, 2, 4, 8]
    for _ in range(24):  # the parent goes on where it was
        tally.count()
    assert counts(miss)[-1] == 512


def test_many_processes_add_up(miss: Path) -> None:
    def work() -> None:
        for _ in range(64):
            tally.count()

    tally = hits.tally(miss)
    children = [FORK.Process(target=work) for _ in range(8)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert hits.read(miss) == 1 + 8 * 64


@pytest.mark.parametrize(
    ("variable", "value"), [("FAOPS_RECORD_MISSES", "0"), ("FAOPS_TUNING", "0"), ("FAOPS_EMULATE", "1")]
)
def test_switched_off_nothing_is_written(
    miss: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    tally = Tally(miss)
    monkeypatch.setenv(variable, value)
    for _ in range(8):
        tally.count()
    assert counts(miss) == []
    monkeypatch.delenv(variable)
    for _ in range(8):
        tally.count()
    assert counts(miss) == [8]


def test_a_setting_that_makes_no_sense_is_no_matter_of_the_call(miss: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAOPS_TUNING", "perhaps")
    Tally(miss).count()
    assert counts(miss) == []


# --- files ------------------------------------------------------------------------------------------------------------


def test_no_hits_without_their_miss(miss: Path) -> None:
    tally = Tally(miss)
    for _ in range(4):
        tally.count()
    miss.unlink()
    hits.remove(miss)
    for _ in range(100):
        tally.count()
    assert not hits.place(miss).exists()
    miss.write_text("{}")  # it is back, and so are the hits
    for _ in range(100):
        tally.count()
    assert hits.read(miss) == 1 + 64


@settings(max_examples=25, deadline=None)
@given(numbers=st.lists(st.integers(1, 10**9), max_size=40), junk=st.binary(max_size=30))
def test_the_sum_of_what_was_added(tmp_path_factory: pytest.TempPathFactory, numbers: list[int], junk: bytes) -> None:
    miss = tmp_path_factory.mktemp("sum") / "misses" / "abc.json"
    miss.parent.mkdir()
    miss.write_text("{}")
    for number in numbers:
        hits.add(miss, number)
    assert hits.read(miss) == 1 + sum(numbers)
    hits.place(miss).parent.mkdir(exist_ok=True)
    hits.place(miss).write_bytes(junk)
    assert 1 <= hits.read(miss) <= hits.MOST
    hits.add(miss, 7)
    assert 1 <= hits.read(miss) <= hits.MOST


def test_a_number_cut_short_joins_no_other(miss: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda descriptor, content: write(descriptor, content[:3]))
        hits.add(miss, 1024)
    hits.add(miss, 4096)
    assert hits.read(miss) == 1 + 10 + 4096


@pytest.mark.parametrize("content", ["-5", "1e9", "9" * 40, "²", "0x10", "nan", "1_0", "\x00", "1 " * 20_000])
def test_what_is_no_number_counts_as_nothing(miss: Path, content: str) -> None:
    hits.place(miss).parent.mkdir()
    hits.place(miss).write_text(content)
    assert hits.read(miss) == 1
    hits.add(miss, 3)
    assert hits.read(miss) in (1, 4)


def test_a_sum_stays_a_sensible_number(miss: Path) -> None:
    hits.place(miss).parent.mkdir()
    hits.place(miss).write_text(f"{hits.MOST}\n" * 5)
    assert hits.read(miss) == hits.MOST


def test_a_file_stays_small_and_keeps_its_sum(miss: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert hits.FULL == 4096
    monkeypatch.setattr(hits, "FULL", 100)
    for _ in range(500):
        hits.add(miss, 1)
        assert hits.place(miss).stat().st_size <= 100
    assert hits.read(miss) == 1 + 500
    assert [path.name for path in hits.place(miss).parent.iterdir()] == ["abc.txt"]


def test_a_file_of_somebody_else_is_replaced(miss: Path) -> None:
    hits.place(miss).parent.mkdir()
    hits.place(miss).write_bytes(bytes(10_000_000))
    hits.add(miss, 3)
    assert hits.place(miss).stat().st_size < 10


def put(path: Path, thing: str) -> None:
    path.parent.mkdir(exist_ok=True)
    if thing == "pipe":
        os.mkfifo(path)
    elif thing == "folder":
        path.mkdir()
    elif thing == "link":
        path.symlink_to(path.with_name("elsewhere"))
    elif thing == "loop":
        path.symlink_to(path)
    elif thing == "file in the way":
        path.parent.rmdir()
        path.parent.write_text("mine")


@pytest.mark.parametrize("thing", ["pipe", "folder", "link", "loop", "file in the way"])
def test_what_is_no_file_is_left_and_blocks_nobody(miss: Path, thing: str) -> None:
    path = hits.place(miss)
    put(path, thing)
    tally = Tally(miss)
    for _ in range(8):
        tally.count()
    assert hits.read(miss) == 1
    assert not path.with_name("elsewhere").exists()


@pytest.mark.parametrize("name", ["open", "write", "fstat", "mkdir"])
def test_a_disk_that_fails_is_asked_once(miss: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    tries: list[int] = []

    def fail(*_: Any, **__: Any) -> Any:
        tries.append(1)
        raise OSError(errno.ENOSPC, "no space")

    tally = Tally(miss)
    with monkeypatch.context() as patch:
        patch.setattr(os, name, fail)
        for _ in range(100):
            tally.count()
    assert len(tries) == 1
    for _ in range(100):
        tally.count()
    assert sum(counts(miss)) <= 1


def test_removing_what_is_not_there(miss: Path) -> None:
    hits.remove(miss)
    hits.add(miss, 1)
    hits.remove(miss)
    assert hits.read(miss) == 1
