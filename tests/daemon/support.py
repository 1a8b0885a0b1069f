"""Stand-ins for what the scheduler works with: children that tune nothing, gates that a test opens and closes."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Collection
from typing import Any

from faops.daemon.child import WorkerError, WorkerGoneError
from faops.daemon.config import Config
from faops.daemon.gate import GateState
from faops.daemon.http.metrics import Metrics
from faops.daemon.jobs import Job, Task
from faops.daemon.queue import Queue
from faops.daemon.scheduler import Scheduler
from faops.daemon.spool import Spool

CPU = {
    "device": "cpu", "name": "A CPU", "identity": "cpu_a", "environment": "torch-1", "vendor": "cpu", "arch": "x86_64",
    "threads": 2, "units": 2, "uuid": "",
}  # fmt: skip
CONFIG = Config(idle_seconds=0.0, yield_seconds=0.0, attempts=2)
LIMIT = 30.0  # seconds for something that takes moments


def task(key: str = "a", **changes: Any) -> Task:
    """A task on CPU."""
    values: dict[str, Any] = {
        "identity": CPU["identity"], "environment": CPU["environment"], "device": "cpu", "threads": 2, "key": key,
        "problem": {"key": key}, "words": f"problem {key}", "call_seconds": 1e-3, "tuning_seconds": 1.0,
    }  # fmt: skip
    return Task(**{**values, **changes})


def result(**changes: Any) -> dict[str, Any]:
    """What a worker says of a problem with a faster winner."""
    values: dict[str, Any] = {
        "status": "tuned", "message": "2.00x over the default", "measurements": 7, "seconds": 0.5, "kernel": "k",
        "config": {"block": 64}, "p50": 1e-3, "default_kernel": "k", "default_config": {"block": 32},
        "default_p50": 2e-3, "speedup": 2.0, "is_default": False, "rejected": 3, "path": "/entry", "heat_map": "",
    }  # fmt: skip
    return {**values, **changes}


class FakeGate:
    """A gate that a test opens and closes."""

    def __init__(self) -> None:
        self.open = True
        self.owns: list[set[int]] = []

    def look(self, own: Collection[int]) -> GateState:
        self.owns.append(set(own))
        return GateState(self.open, "open" if self.open else "others work", 1.0, {"busy_cores": 0.0})

    def configure(self, config: Config) -> None:
        self.config = config

    def close(self) -> None:
        pass


class FakeChild:
    """A child that answers from ``workplace``; see there."""

    def __init__(self, workplace: Workplace) -> None:
        self.workplace = workplace
        self.pid = 4711
        self.gone = False
        self.paused = False
        self.ended = asyncio.Event()

    def pids(self) -> set[int]:
        return {self.pid}

    def memory_bytes(self) -> int:
        return 1 << 20

    async def ask(self, do: str, **arguments: Any) -> Any:
        self.workplace.asked.append(do)
        answer = self.workplace.answers[do]
        found = answer(**arguments) if callable(answer) else answer
        if isinstance(found, WorkerGoneError):
            self.gone = True
        if isinstance(found, Exception):
            raise found
        return found

    async def tune(self, job: Job, on_event: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
        """One measurement each hundredth of a second, while not paused."""
        assert not self.gone
        self.workplace.tuned.append(job)
        for done in range(1, self.workplace.measurements + 1):
            await asyncio.wait({asyncio.ensure_future(self.ended.wait())}, timeout=0.01)
            while self.paused and not self.ended.is_set():
                await asyncio.sleep(0.01)
            if self.ended.is_set():
                raise WorkerGoneError("ended")
            self.workplace.measured.append(job.task.key)
            on_event({"kind": "measured", "done": done, "planned": self.workplace.measurements, "best": 1e-3,
                      "message": "k [block=64]", "remaining": 1.0})  # fmt: skip
        outcome = self.workplace.outcomes.get(job.task.key, result())
        if isinstance(outcome, WorkerGoneError):
            self.gone = True
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def pause(self) -> None:
        self.paused = True

    def go(self) -> None:
        self.paused = False

    async def stop(self, grace: float) -> None:
        self.gone = True
        self.ended.set()


class Workplace:
    """What children are like: ``answers`` by request, ``outcomes`` of tuning by key, and a record of what they did."""

    def __init__(self) -> None:
        self.answers: dict[str, Any] = {"devices": [CPU]}
        self.outcomes: dict[str, Any] = {}
        self.measurements = 3
        self.children: list[FakeChild] = []
        self.asked: list[str] = []
        self.tuned: list[Job] = []
        self.measured: list[str] = []

    async def launch(self) -> Any:
        self.children.append(FakeChild(self))
        return self.children[-1]


async def until(condition: Callable[[], object], limit: float = LIMIT) -> None:
    """Wait until something is true."""
    deadline = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < deadline, "it did not come true"
        await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def working(queue: Queue, spool: Spool, workplace: Workplace, gate: FakeGate) -> AsyncIterator[Scheduler]:
    """A scheduler at work; none of its children is left afterwards."""
    scheduler = Scheduler(queue, spool, CONFIG, Metrics(queue), workplace.launch, lambda device, config: gate)
    running = asyncio.ensure_future(scheduler.run())
    try:
        await until(lambda: scheduler.lanes or running.done())
        yield scheduler
    finally:
        await scheduler.stop()
        await asyncio.wait_for(running, 10)
        assert all(child.gone for child in workplace.children)


def add(queue: Queue, *keys: str, hits: int = 1) -> dict[str, int]:
    """Jobs of misses; their ids by key."""
    return {job.task.key: job.id for job in queue.missed([(task(key), hits) for key in keys])}


__all__ = ["CONFIG", "CPU", "FakeChild", "FakeGate", "WorkerError", "WorkerGoneError", "Workplace", "add", "result",
           "task", "until", "working"]  # fmt: skip
