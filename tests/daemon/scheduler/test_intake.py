"""What comes in: misses and submissions, made into jobs by a child that answers what a test says."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from faops.daemon.queue import Queue
from faops.daemon.scheduler import Scheduler
from faops.errors import DaemonError
from faops.files import file_name

from ..support import FakeGate, WorkerError, WorkerGoneError, Workplace, task, until


def test_a_submission_becomes_jobs(play: Any, queue: Queue) -> None:
    workplace = Workplace()
    workplace.answers["expand"] = lambda request: {
        "tasks": [task("a").as_dict(), task("b").as_dict()], "refused": [["problem c", "too large"]],
    }  # fmt: skip

    async def test(scheduler: Scheduler, workplace: Workplace, gate: FakeGate) -> None:
        submission = queue.submit({"model": "m"})
        scheduler.wake()
        await until(lambda: queue.counts()["done"] == 2)
        found = queue.submission(submission.id)
        assert found.state == "expanded" and len(found.jobs) == 2
        assert "too large" in found.message

    play(test, workplace)


@pytest.mark.parametrize("error", [WorkerError("no model is called m"), WorkerGoneError("killed")])
def test_a_submission_that_cannot_be_made_into_jobs_is_refused(play: Any, queue: Queue, error: DaemonError) -> None:
    """One that crashes the child too: it would crash the next one as well."""
    workplace = Workplace()
    workplace.answers["expand"] = lambda request: error

    async def test(scheduler: Scheduler, workplace: Workplace, gate: FakeGate) -> None:
        submission = queue.submit({"model": "m"})
        scheduler.wake()
        await until(lambda: queue.submission(submission.id).state == "refused")
        assert str(error) in queue.submission(submission.id).message
        assert workplace.asked.count("expand") == 1

    play(test, workplace)


def spooled(root: Path, key: str, identity: str = "cpu_a") -> None:
    """A file of a miss, as programs write them."""
    directory = root / "tune" / "v1" / identity / "torch-1" / "misses"
    directory.mkdir(parents=True, exist_ok=True)
    content = {"schema": 1, "key": key, "problem": {"key": key}, "date": "2026-01-01", "faops_version": "0.1.0"}
    (directory / file_name(key)).write_text(json.dumps(content))


def assessed(misses: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What a child says of misses: those of another device it refuses."""
    return [
        task(miss["problem"]["key"]).as_dict() if miss["identity"] == "cpu_a" else {"refused": "not of this machine"}
        for miss in misses
    ]


def test_misses_become_jobs(play: Any, queue: Queue, tmp_path: Path) -> None:
    workplace = Workplace()
    workplace.answers["assess"] = lambda misses: assessed(misses)
    for key in ("a", "b"):
        spooled(tmp_path / "cache", key)
    spooled(tmp_path / "cache", "c", identity="another")

    async def test(scheduler: Scheduler, workplace: Workplace, gate: FakeGate) -> None:
        await until(lambda: queue.counts()["done"] == 2)
        assert sum(queue.counts().values()) == 2

    play(test, workplace)


def test_misses_wait_until_some_device_is_idle(play: Any, queue: Queue, tmp_path: Path) -> None:
    workplace = Workplace()
    workplace.answers["assess"] = lambda misses: assessed(misses)

    async def test(scheduler: Scheduler, workplace: Workplace, gate: FakeGate) -> None:
        gate.open = False
        scheduler.wake()
        await until(lambda: not scheduler.lanes[0].members[0].state.open)
        spooled(tmp_path / "cache", "a")
        await until(lambda: scheduler.intake.misses)
        assert "assess" not in workplace.asked
        gate.open = True
        await until(lambda: queue.counts()["done"] == 1)

    play(test, workplace)


def test_a_miss_that_crashes_its_child_is_found_and_left(
    play: Any, queue: Queue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("faops.daemon.intake.RETRY_SECONDS", 0.05)

    def assess(misses: list[dict[str, Any]]) -> Any:
        if any(miss["problem"]["key"] == "bad" for miss in misses):
            return WorkerGoneError("killed by SIGSEGV")
        return assessed(misses)

    workplace = Workplace()
    workplace.answers["assess"] = assess
    for key in ("a", "bad", "c"):
        spooled(tmp_path / "cache", key)

    async def test(scheduler: Scheduler, workplace: Workplace, gate: FakeGate) -> None:
        await until(lambda: queue.counts()["done"] == 2)
        asked = workplace.asked.count("assess")
        await asyncio.sleep(0.3)
        assert workplace.asked.count("assess") == asked

    play(test, workplace)
