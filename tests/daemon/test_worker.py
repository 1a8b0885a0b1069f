"""The real worker: a process that imports torch, measures in another one, pauses, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from faops import processes, settings
from faops.daemon import worker as worker_module
from faops.daemon.child import WorkerChild, WorkerError, WorkerGoneError
from faops.daemon.jobs import Job, Task

pytestmark = pytest.mark.full

LIMIT = 120.0  # of a test, on a busy machine too
REST_SECONDS = 0.3  # in which a process that is not paused would take some timings
SHAPE = "b=1,sq=64,h=2,d=32,dtype=float32"
FORWARD = "b=1,sq=256,h=4,d=64,dtype=float32,causal=1"  # with many configs


@contextlib.asynccontextmanager
async def started() -> AsyncIterator[WorkerChild]:
    child = await WorkerChild.start()
    try:
        yield child
    finally:
        await child.stop(0.0)


async def job_of(child: WorkerChild, shape: str = SHAPE) -> Job:
    found = await child.ask("expand", request={"shapes": [shape]})
    return Job(1, Task.from_dict(found["tasks"][0]), "submission", "running")


async def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


def run(test: Callable[[], Any]) -> None:
    asyncio.run(asyncio.wait_for(test(), LIMIT))


def ticks(pid: int) -> int:
    """Time of processors that a process has taken."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def kept() -> int:
    """Timings and checks in the journals."""
    files = settings.cache_root().rglob("journal/*.jsonl")
    return sum(len(path.read_text().splitlines()) - 1 for path in files)


def stored() -> list[Path]:
    return list(settings.cache_root().rglob("entries/*.json"))


class Listener:
    """Events of a job; ``measured`` are those of timings."""

    def __init__(self, then: Callable[[int], None] = lambda measured: None) -> None:
        self.events: list[dict[str, Any]] = []
        self.then = then

    def __call__(self, event: dict[str, Any]) -> None:
        self.events.append(event)
        if event["kind"] == "measured":
            self.then(self.measured)

    @property
    def measured(self) -> int:
        return sum(event["kind"] == "measured" for event in self.events)


def test_a_worker_pauses_between_measurements_and_ends_with_a_journal() -> None:
    async def test() -> None:
        async with started() as child:
            os.kill(child.pid, signal.SIGTERM)  # as whoever ends the service may do; the daemon ends it
            assert os.getsid(child.pid) == child.pid
            assert os.getpriority(os.PRIO_PROCESS, child.pid) >= min(19, worker_module.NICENESS)
            job = await job_of(child)
            listener = Listener(lambda measured: child.pause() if measured == 3 else None)
            tuning = asyncio.ensure_future(child.tune(job, listener))
            await until(lambda: listener.measured >= 3)
            await asyncio.sleep(REST_SECONDS)  # one that had begun is finished
            _, measuring = child.pids()
            before = listener.measured, ticks(measuring)
            assert os.getpriority(os.PRIO_PROCESS, measuring) >= min(19, worker_module.NICENESS)
            os.kill(measuring, signal.SIGTERM)
            await asyncio.sleep(REST_SECONDS)
            assert (listener.measured, ticks(measuring)) == before
            assert not tuning.done()
            child.go()
            await until(lambda: listener.measured >= before[0] + 3)
            await child.stop(LIMIT)
            with pytest.raises(WorkerGoneError, match="told to end"):
                await tuning
            assert not processes.alive(measuring)
            assert kept() >= before[0] + 3
            assert stored() == []

    run(test)


async def interrupt(shape: str, end: float | signal.Signals) -> None:
    """Let a worker take four more timings, and end it: by a signal, or with so many seconds of grace."""
    before, listener = kept(), Listener()
    async with started() as child:
        tuning = asyncio.ensure_future(child.tune(await job_of(child, shape), listener))
        await until(lambda: listener.measured >= before + 4)
        pids = child.pids()
        if isinstance(end, signal.Signals):
            os.kill(child.pid, end)
        else:
            await child.stop(end)
        with pytest.raises(WorkerGoneError):
            await tuning
        await until(lambda: not any(map(processes.alive, pids)))
    assert kept() >= before + 4


def test_a_problem_is_gone_on_with_whatever_ended_the_worker() -> None:
    async def test() -> None:
        for end in (0.0, LIMIT, signal.SIGKILL):
            await interrupt(FORWARD, end)
        async with started() as child:
            had, job, listener = kept(), await job_of(child, FORWARD), Listener()
            result = await child.tune(job, listener)
            (resumed,) = [event for event in listener.events if event["kind"] == "resumed"]
            assert resumed["message"] == f"{had} timings and checks of an interrupted run count"
            assert result["status"] == "tuned"
            entry = json.loads(Path(result["path"]).read_text())
            checks = sum(event["kind"] == "checking" for event in listener.events)
            assert had - checks <= entry["measurements"] - result["measurements"] <= had
            assert kept() == 0
            assert (await child.tune(job, listener))["status"] == "warm"

    run(test)


def test_what_a_worker_knows() -> None:
    async def test() -> None:
        async with started() as child:
            (cpu, *_) = await child.ask("devices")
            assert cpu["device"] == "cpu"
            task = (await job_of(child)).task
            assert (task.identity, task.environment) == (cpu["identity"], cpu["environment"])
            miss = {"identity": task.identity, "environment": task.environment, "problem": task.problem}
            assert await child.ask("assess", misses=[miss, {}]) == [
                task.as_dict(),
                {"refused": "it is no problem that this version knows (KeyError: 'environment')"},
            ]
            with pytest.raises(WorkerError, match="did you mean llama-3-8b") as caught:
                await child.ask("expand", request={"model": "llama-9"})
            assert caught.value.kind == "PlanError"
            assert child.output == ""

    run(test)


PARENT = """
import asyncio, sys
from faops.daemon.child import WorkerChild
from faops.daemon.jobs import Job, Task
async def main():
    child = await WorkerChild.start()
    found = await child.ask("expand", request={"shapes": [sys.argv[1]]})
    def tell(event):
        if event["kind"] == "measured":
            print(*child.pids(), flush=True)
    await child.tune(Job(1, Task.from_dict(found["tasks"][0]), "miss", "running"), tell)
asyncio.run(main())
"""


def test_no_orphan_goes_on_measuring() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT, FORWARD], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pids = [int(word) for word in parent.stdout.readline().split()]
        assert len(pids) == 2
        parent.kill()
    deadline = time.monotonic() + 30
    while any(map(processes.alive, pids)):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert stored() == []
    assert kept() > 0
