"""Tasks and a clock for the tests of the queue."""

from __future__ import annotations

from typing import Any

from faops.daemon.jobs import Job, State, Task
from faops.daemon.queue import Queue

START = 1.8e9  # seconds since the epoch
YEAR = 365 * 86400.0


class Clock:
    """A wall clock that tests set."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> float:
        return self.now


def task(key: str = "a", **changes: Any) -> Task:
    """The task of a key; a call of it takes 1 ms."""
    fields: dict[str, Any] = {
        "identity": "gpu",
        "environment": "torch2",
        "device": "cuda:0",
        "threads": 0,
        "key": key,
        "problem": {"op": "attention", "seqlen_q": 128},
        "words": f"problem {key}",
        "call_seconds": 1e-3,
        "tuning_seconds": 20.0,
    }
    return Task(**{**fields, **changes})


def result(**changes: Any) -> dict[str, Any]:
    """What the worker says of a winner twice as fast as the default."""
    found = {
        "status": "tuned",
        "message": "",
        "measurements": 32,
        "seconds": 12.5,
        "kernel": "cuda_raw.forward",
        "config": {"block_q": 64},
        "p50": 1e-3,
        "default_kernel": "cuda_raw.forward",
        "default_config": {"block_q": 128},
        "default_p50": 2e-3,
        "speedup": 2.0,
        "is_default": False,
        "rejected": 3,
        "path": "/cache/entry.json",
        "heat_map": "<table></table>",
    }
    return {**found, **changes}


def miss(queue: Queue, key: str = "a", hits: int = 1, **changes: object) -> Job:
    """The new job of a miss."""
    [job] = queue.missed([(task(key, **changes), hits)])
    return job


def submit(queue: Queue, *tasks: Task, forced: bool = False) -> list[Job]:
    return queue.expanded(queue.submit({"shapes": []}).id, tasks, forced=forced)


def in_state(queue: Queue, state: State, key: str = "a") -> Job:
    """A job of a miss that is brought into a state."""
    job = miss(queue, key)
    if state == "waiting":
        return job
    if state == "cancelled":
        return queue.cancel(job.id)
    queue.begin(job.id)
    if state == "done":
        return queue.finish(job.id, result())
    if state == "quarantined":
        attempts, queue.attempts = queue.attempts, 1
        job = queue.fail(job.id, "it crashed")
        queue.attempts = attempts
    return queue.job(job.id)
