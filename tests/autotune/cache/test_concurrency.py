"""Sixteen processes at one cache: nothing is lost, nothing half is read, nobody waits, and the killed leave no mark."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import filelock
import pytest

from faops import files, registry
from faops.autotune.cache import TuningCache, lookup, stamp
from faops.autotune.cache.entry import Entry, Timing
from faops.autotune.cache.exchange import Offer, offers_of_directory, offers_of_text, standing, take
from faops.autotune.cache.exchange import export as exported
from faops.autotune.cache.pruning import prune, stale
from faops.device import known
from faops.errors import CacheError
from faops.problem import AttentionProblem
from faops.registry import Config

from ..support import PROBLEM, FakeKernel, make_entry

H200 = known("h200")
COUNT = 16
ENTRIES = 6
TURNS = 8
FAILED = 9  # exit code
PROCESSES = multiprocessing.get_context("fork")  # they only work on files: no need to import torch sixteen times


@pytest.fixture(autouse=True)
def loaded() -> None:
    """All kernels are imported here once, and not in every process."""
    registry.kernels()


def problem_of(writer: int, number: int) -> AttentionProblem:
    return replace(PROBLEM, dtype="bfloat16", heads_q=2 * (writer + 1), head_dim=8 * (number + 1))


def whole(writer: int, problem: AttentionProblem = PROBLEM) -> Entry:
    """An entry in which every part tells who wrote it."""
    config, seconds = Config(block=writer), 1.0 + writer
    timing = Timing("fake.forward", config, seconds, seconds, seconds, 0.01, 10, False)
    values: dict[str, Any] = {"config": config, "p50": seconds, "timings": (timing,), "faops_version": str(writer)}
    return make_entry(H200, problem, **values)


def is_whole(entry: Entry) -> bool:
    """Whether all parts of an entry are from the same writer."""
    expected = whole(entry.config.integer("block"), entry.attention_problem())
    return entry == replace(expected, environment=entry.environment)


def run(target: Callable[..., None], *arguments: Any) -> multiprocessing.process.BaseProcess:
    """Start a process in which any exception or warning is a failure."""

    def strictly() -> None:
        warnings.simplefilter("error")
        try:
            target(*arguments)
        except BaseException:
            import traceback

            traceback.print_exc()
            os._exit(FAILED)
        os._exit(0)

    process = PROCESSES.Process(target=strictly)
    process.start()
    return process


def finish(processes: list[multiprocessing.process.BaseProcess]) -> None:
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * len(processes)


# --- what each process does -------------------------------------------------------------------------------------------


def write(root: Path, writer: int) -> None:
    """Entries of its own, and one that all writers fight for."""
    cache = TuningCache(root)
    for number in range(ENTRIES):
        cache.store(H200, whole(writer, problem_of(writer, number)))
        cache.store(H200, whole(writer))


def read(root: Path, kernel: FakeKernel) -> None:
    for _ in range(TURNS):
        stamp()
        for problem in (PROBLEM, problem_of(0, 0), replace(PROBLEM, batch=2)):
            winner = lookup(problem, H200, [kernel], root)
            assert winner is None or winner.config["block"] in range(COUNT)
        assert all(is_whole(entry) for entry in TuningCache(root).entries())


def clear(root: Path, writer: int) -> None:
    for number in range(ENTRIES):
        TuningCache(root).clear(key=problem_of(writer, number).key())


def import_all(root: Path, source: Path) -> None:
    assert all(outcome.status != "refused" for outcome in take(TuningCache(root), offers_of_directory(source)))


def export_all(root: Path) -> None:
    cache = TuningCache(root)
    for _ in range(TURNS):
        assert all(offer.entry for offer in offers_of_text(exported(cache, cache.entries()), "export"))


def prune_all(root: Path) -> None:
    cache = TuningCache(root)
    for _ in range(TURNS):
        prune(cache, stale(cache))


# --- tests ------------------------------------------------------------------------------------------------------------


def test_sixteen_writers_lose_nothing(cache: TuningCache, kernel: FakeKernel) -> None:
    writers = [run(write, cache.root, number) for number in range(COUNT)]
    while any(process.is_alive() for process in writers):  # a reader meanwhile never sees half a file: that would warn
        assert all(is_whole(entry) for entry in cache.entries())
        winner = lookup(PROBLEM, H200, [kernel])
        assert winner is None or winner.config["block"] in range(COUNT)
    finish(writers)
    assert len(cache.entries()) == COUNT * ENTRIES + 1
    for writer in range(COUNT):
        for number in range(ENTRIES):
            assert cache.load(H200, problem_of(writer, number)) == whole(writer, problem_of(writer, number))
    assert not list(cache.root.rglob(f"*{files.TEMPORARY_SUFFIX}"))


def test_writers_readers_clearers_importers_and_pruners_at_once(
    cache: TuningCache, kernel: FakeKernel, tmp_path: Path
) -> None:
    """Sixteen of all kinds; who writes what nobody else clears finds it in the end."""
    source = TuningCache(tmp_path / "source")
    for number in range(ENTRIES):
        source.store(H200, whole(0, problem_of(20, number)))
    old = {"torch": "0.1"}
    cache.store(H200, replace(whole(0), environment=old))
    processes = [
        *(run(write, cache.root, writer) for writer in range(5)),
        *(run(read, cache.root, kernel) for _ in range(4)),
        *(run(import_all, cache.root, source.root) for _ in range(3)),
        run(clear, cache.root, 4),
        run(export_all, cache.root),
        *(run(prune_all, cache.root) for _ in range(2)),
    ]
    assert len(processes) == COUNT
    finish(processes)
    for writer in range(4):
        for number in range(ENTRIES):
            assert cache.load(H200, problem_of(writer, number)) == whole(writer, problem_of(writer, number))
    assert all(cache.load(H200, problem_of(20, number)) for number in range(ENTRIES))
    assert cache.load(H200, PROBLEM) is not None
    assert all(is_whole(entry) for entry in cache.entries())
    assert all(entry.environment != old for entry in cache.entries())
    assert not list(cache.root.rglob(f"*{files.TEMPORARY_SUFFIX}"))


def import_shuffled(root: Path, entries: list[Entry], seed: int) -> None:
    for entry in random.Random(seed).sample(entries, len(entries)):
        take(TuningCache(root), [Offer("entry", entry)])


def test_of_all_that_sixteen_importers_bring_the_best_stays(cache: TuningCache, kernel: FakeKernel) -> None:
    """Reading, comparing and writing by several at once would lose an update, if they did not wait for each other."""
    entries = [whole(number) for number in range(3)]
    finish([run(import_shuffled, cache.root, entries, seed) for seed in range(COUNT)])
    assert cache.entries() == [max(entries, key=standing)] == [whole(0)]


def come_and_go(root: Path, number: int) -> None:
    """Store entries of other software, while others remove the directory as soon as it is empty."""
    cache = TuningCache(root)
    for turn in range(TURNS):
        entry = replace(whole(number, problem_of(number, turn)), environment={"torch": "0.1"})
        cache.store(H200, entry)
        prune(cache, [item for item in stale(cache) if item.key == entry.key])


def test_directories_that_come_and_go(cache: TuningCache, kernel: FakeKernel) -> None:
    finish([run(come_and_go, cache.root, number) for number in range(4)])
    prune(cache, stale(cache))
    assert list((cache.base / H200.identity).iterdir()) == []


def test_a_directory_that_vanishes_while_it_is_looked_through_spoils_no_list(
    cache: TuningCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Path.glob does it, which lists directories that it has met before."""
    cache.store(H200, whole(0))
    glob, vanishing = Path.glob, [FileNotFoundError(2, "No such file or directory")]

    def hindered(self: Path, pattern: str) -> Iterator[Path]:
        if vanishing:
            raise vanishing.pop()
        return glob(self, pattern)

    monkeypatch.setattr(Path, "glob", hindered)
    assert len(cache.files()) == 1
    assert not vanishing


def test_a_look_up_waits_for_no_lock(cache: TuningCache, kernel: FakeKernel) -> None:
    """Ranks of a job with a warm cache would wait for one another, or for who measures or imports."""
    cache.store(H200, whole(3))
    names = (cache.base / H200.identity / "measuring.lock", cache.base / "import.lock")
    held = [filelock.FileLock(path) for path in names]
    for lock in held:
        lock.acquire()
    try:
        start = time.monotonic()
        finish([run(read, cache.root, kernel) for _ in range(4)])
        cache.store(H200, whole(4))  # nor does who stores a winner
        assert time.monotonic() - start < 30
    finally:
        for lock in held:
            lock.release()


def test_an_import_that_must_wait_too_long_says_so(cache: TuningCache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("faops.autotune.cache.exchange.LOCK_SECONDS", 0.05)
    cache.base.mkdir(parents=True)
    with filelock.FileLock(cache.base / "import.lock"), pytest.raises(CacheError, match="another import into"):
        take(cache, [Offer("entry", whole(1))])
    assert cache.entries() == []
    assert take(cache, [Offer("entry", whole(1))])[0].status == "imported"


def test_threads_of_one_process_share_what_was_read(cache: TuningCache, kernel: FakeKernel) -> None:
    """Servers plan in several threads; here they look up while entries come, change and go."""
    problems = [problem_of(0, number) for number in range(4)]
    failures: list[BaseException] = []
    done = threading.Event()

    def look() -> None:
        try:
            while not done.is_set():
                for problem in problems:
                    winner = lookup(problem, H200, [kernel])
                    assert winner is None or winner.config["block"] in range(COUNT)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=look) for _ in range(3)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for turn in range(6):
            for problem in problems:
                cache.store(H200, whole(turn, problem))
            if turn % 3 == 2:
                cache.clear()
    finally:
        done.set()
        for thread in threads:
            thread.join()
        sys.setswitchinterval(interval)
    assert failures == []


def die_while_writing(root: Path) -> None:
    files.os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment]
    TuningCache(root).store(H200, whole(5))


def test_a_killed_writer_leaves_the_old_entry(cache: TuningCache, kernel: FakeKernel) -> None:
    cache.store(H200, whole(3))
    process = PROCESSES.Process(target=die_while_writing, args=(cache.root,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    leftovers = list(cache.root.rglob(f"*{files.TEMPORARY_SUFFIX}"))
    assert len(leftovers) == 1
    winner = lookup(PROBLEM, H200, [kernel])
    assert winner is not None
    assert winner.config == Config(block=3)
    assert len(cache.entries()) == 1
    cache.clear()
    assert not leftovers[0].exists()


def die_while_importing(root: Path, entries: list[Entry], at: int) -> None:
    """Be killed at the ``at``-th rename."""
    original, done = os.replace, []

    def replace_or_die(*arguments: Any) -> None:
        if len(done) == at:
            os.kill(os.getpid(), signal.SIGKILL)
        done.append(True)
        original(*arguments)

    files.os.replace = replace_or_die  # type: ignore[assignment]
    take(TuningCache(root), [Offer("entry", entry) for entry in entries])


def test_a_killed_import_is_finished_by_the_next(cache: TuningCache, kernel: FakeKernel) -> None:
    entries = [whole(1, problem_of(1, number)) for number in range(5)]
    for at in range(5):
        process = PROCESSES.Process(target=die_while_importing, args=(cache.root, entries, at))
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert all(is_whole(entry) for entry in cache.entries())
        assert len(cache.entries()) == at
        cache.clear()
    assert [outcome.status for outcome in take(cache, [Offer("x", entry) for entry in entries])] == ["imported"] * 5
    assert sorted(entry.key for entry in cache.entries()) == sorted(entry.key for entry in entries)
