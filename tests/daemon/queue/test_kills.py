"""kill -9 at any moment: nothing that was acknowledged is lost, and nothing finished is done again.

One process imports the queue once and forks a writer for every kill; this one looks at the file in between.
"""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from faops.daemon.queue import Queue
from tests.daemon.queue.support import task

PART = 4  # tasks of one change, which is there as a whole or not at all

WRITER = """
import itertools, os, random, signal, sys, time
from pathlib import Path
from faops.daemon.jobs import Task
from faops.daemon.queue import Queue

def tell(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())

def task(key):
    return Task("gpu", "torch2", "cuda:0", 0, key, {"op": "attention"}, key, 1e-3, 20.0)

def write(path, name, seed):
    tell("open")
    chance, queue = random.Random(seed), Queue(path)
    tell("opened")
    for step in itertools.count():
        action = chance.choice("missed submit hits next next next next".split())
        key = f"{name}.{step}"
        tell("begins", key)
        if action == "missed":
            queue.missed([(task(f"{key}/{part}"), 1) for part in range(PART)])
            tell("batch", key)
        elif action == "submit":
            submission = queue.submit({"shapes": [key]})
            tell("submitted", submission.id)
            queue.expanded(submission.id, [task(f"{key}/{part}") for part in range(PART)])
            tell("expanded", submission.id)
            tell("batch", key)
        elif (job := queue.next()) is None:
            continue
        elif action == "hits":
            queue.hits(job.task.mark, job.hits + 5)
            tell("hits", job.id, job.hits + 5)
        else:
            queue.begin(job.id)
            tell("state", job.id, "running")
            end = chance.choice("finish finish fail release cancel".split())
            if end == "finish":
                job = queue.finish(job.id, {"status": "tuned", "kernel": "k", "seconds": 1.0})
            elif end == "fail":
                job = queue.fail(job.id, "it crashed")
            else:
                job = getattr(queue, end)(job.id)
            tell("state", job.id, job.state)

for line in sys.stdin:
    path, name, seed, lines, wait = line.split()
    reading, writing = os.pipe()
    writer = os.fork()
    if writer == 0:
        os.dup2(writing, 1)
        os.close(reading)
        write(Path(path), name, int(seed))
    os.close(writing)
    with open(reading, "rb", buffering=0) as acknowledged:
        told = b""
        while told.count(b"\\n") < int(lines):
            told += acknowledged.read(1)
        time.sleep(float(wait))
        os.kill(writer, signal.SIGKILL)
        os.waitpid(writer, 0)
        told += acknowledged.read()
    print(told.decode() + "killed", flush=True)
""".replace("PART", str(PART))


@contextmanager
def killer() -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", WRITER]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            assert process.stdin is not None
            process.stdin.close()


class Record:
    """What the writers of one file have acknowledged."""

    def __init__(self) -> None:
        self.batches: set[str] = set()
        self.tried: set[str] = set()
        self.submissions: dict[int, str] = {}
        self.states: dict[int, str] = {}
        self.hits: dict[int, int] = {}

    def read(self, lines: list[str]) -> None:
        for line in lines:
            match line.split():
                case ["begins", key]:
                    self.tried.add(key)
                case ["batch", key]:
                    self.batches.add(key)
                case ["submitted", number]:
                    self.submissions[int(number)] = "waiting"
                case ["expanded", number]:
                    self.submissions[int(number)] = "expanded"
                case ["hits", number, hits]:
                    self.hits[int(number)] = int(hits)
                case ["state", number, state]:
                    self.states[int(number)] = state

    def check(self, queue: Queue) -> None:
        """Compare with the file: at most one change is in it that was not acknowledged."""
        ahead = self._ahead_in_batches(queue) + self._ahead_in_submissions(queue) + self._ahead_in_states(queue)
        assert ahead <= 1
        done = queue.counts()["done"]
        assert (queue.totals()["tuned"], queue.totals()["seconds_tuning"]) == (done, done)
        for number, hits in self.hits.items():
            assert queue.job(number).hits >= hits
        self.states = {job.id: job.state for job in queue.jobs(limit=10**6)}

    def _ahead_in_batches(self, queue: Queue) -> int:
        found = {
            key: sum(queue.find(task(f"{key}/{part}").mark) is not None for part in range(PART)) for key in self.tried
        }
        assert set(found.values()) <= {0, PART}, "a change is whole or not there"
        there = {key for key, count in found.items() if count}
        assert there >= self.batches
        new, self.batches = there - self.batches, there
        return len(new)

    def _ahead_in_submissions(self, queue: Queue) -> int:
        found = {submission.id: submission.state for submission in queue.submissions(10**6)}
        # One that is expanded has its jobs in the same change, which is counted there.
        new = len(found.keys() - self.submissions.keys())
        for number, state in self.submissions.items():
            assert found[number] in (state, "expanded")
        self.submissions = dict(found)
        return new

    def _ahead_in_states(self, queue: Queue) -> int:
        after = {"waiting": {"running"}, "running": {"done", "waiting", "cancelled", "quarantined"}}
        ahead = 0
        for number, state in self.states.items():
            found = queue.job(number).state
            if found != state:
                assert found in after.get(state, set()), f"job {number} was {state} and is {found}"
                ahead += 1
        return ahead


@pytest.mark.parametrize("kills", [25, pytest.param(100, marks=pytest.mark.full)])
def test_nothing_acknowledged_is_lost(tmp_path: Path, kills: int) -> None:
    records: dict[Path, Record] = {}
    steps = 0
    with killer() as process:
        assert process.stdin is not None and process.stdout is not None
        for kill in range(kills):
            # Every fifth writer begins a new file, and is killed while it does.
            path = tmp_path / f"{kill - kill % 5}.sqlite"
            lines, wait = (
                (1, random.uniform(0, 0.02)) if kill % 5 == 0 else (random.randint(1, 60), random.uniform(0, 2e-3))
            )
            seed = random.randrange(2**31)
            process.stdin.write(f"{path} {kill} {seed} {lines} {wait}\n")
            process.stdin.flush()
            told = list(iter(process.stdout.readline, "killed\n"))
            record = records.setdefault(path, Record())
            record.read(told)
            steps += len(told)
            with Queue(path) as queue:
                assert queue.broken is None
                record.check(queue)
                running = queue.counts()["running"]
                assert queue.recover() == running <= 1
                record.states = {job.id: job.state for job in queue.jobs(limit=10**6)}
    assert steps > 5 * kills
