"""Several processes at one cache: nothing is lost, and a killed writer leaves nothing that is read."""

from __future__ import annotations

import multiprocessing
import os
import signal
from dataclasses import replace
from pathlib import Path

from faops.autotune import files
from faops.autotune.cache import TuningCache, lookup
from faops.device import known
from faops.problem import AttentionProblem
from faops.registry import Config

from .support import PROBLEM, FakeKernel, make_entry

H200 = known("h200")
WRITERS = 8
ENTRIES = 20
PROCESSES = multiprocessing.get_context("fork")  # the writers only write files: no need to import torch eight times


def problem_of(writer: int, number: int) -> AttentionProblem:
    return replace(PROBLEM, dtype="bfloat16", heads_q=2 * (writer + 1), head_dim=8 * (number + 1))


def write(root: Path, writer: int) -> None:
    cache = TuningCache(root)
    for number in range(ENTRIES):
        cache.store(H200, make_entry(H200, problem_of(writer, number), config=Config(block=writer)))
        cache.store(H200, make_entry(H200, config=Config(block=writer)))  # one entry that all of them fight for


def test_eight_writers_lose_nothing(cache: TuningCache, kernel: FakeKernel) -> None:
    writers = [PROCESSES.Process(target=write, args=(cache.root, number)) for number in range(WRITERS)]
    for process in writers:
        process.start()
    while any(process.is_alive() for process in writers):  # a reader meanwhile never sees half a file: that would warn
        cache.entries()
        winner = lookup(PROBLEM, H200, [kernel])
        assert winner is None or winner.config["block"] in range(WRITERS)
    for process in writers:
        process.join()
        assert process.exitcode == 0
    assert len(cache.entries()) == WRITERS * ENTRIES + 1
    for writer in range(WRITERS):
        for number in range(ENTRIES):
            entry = cache.load(H200, problem_of(writer, number))
            assert entry is not None
            assert entry.config == Config(block=writer)
    assert not list(cache.root.rglob(f"*{files.TEMPORARY_SUFFIX}"))


def die_while_writing(root: Path) -> None:
    files.os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment]
    TuningCache(root).store(H200, make_entry(H200, config=Config(block=5)))


def test_a_killed_writer_leaves_the_old_entry(cache: TuningCache, kernel: FakeKernel) -> None:
    cache.store(H200, make_entry(H200))
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
