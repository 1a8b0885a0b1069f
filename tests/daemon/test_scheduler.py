"""The scheduler with children that tune nothing and gates that a test opens: what runs when, and what becomes of it."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from faops.daemon import log, status
from faops.daemon.http.metrics import Metrics
from faops.daemon.queue import Queue
from faops.daemon.scheduler import Scheduler
from faops.daemon.spool import Spool
from faops.errors import DaemonError

from .support import CONFIG, CPU, FakeGate, WorkerError, WorkerGoneError, Workplace, result, task, until

Test = Callable[[Scheduler, Workplace, FakeGate], Coroutine[Any, Any, None]]


@pytest.fixture
def queue(tmp_path: Path) -> Any:
    with Queue(tmp_path / "queue.sqlite", attempts=CONFIG.attempts) as queue:
        yield queue


@pytest.fixture
def play(queue: Queue, tmp_path: Path) -> Callable[[Test, Workplace], None]:
    """Runs a test beside a scheduler, which is stopped at its end."""

    async def run(test: Test, workplace: Workplace) -> None:
        gate = FakeGate()
        spool = Spool(tmp_path / "cache")
        async with working(queue, spool, workplace, gate) as scheduler:
            await test(scheduler, workplace, gate)

    return lambda test, workplace: asyncio.run(run(test, workplace))


@contextlib.asynccontextmanager
async def working(queue: Queue, spool: Spool, workplace: Workplace, gate: FakeGate) -> AsyncIterator[Scheduler]:
    scheduler = Scheduler(queue, spool, CONFIG, Metrics(queue), workplace.launch, lambda device, config: gate)
    running = asyncio.ensure_future(scheduler.run())
    try:
        await until(lambda: scheduler.lanes or running.done())
        yield scheduler
    finally:
        await scheduler.stop()
        await asyncio.wait_for(running, 10)
        assert all(child.gone for child in workplace.children)  # none is left behind


def add(queue: Queue, *keys: str, hits: int = 1) -> dict[str, int]:
    """Jobs of misses; their ids by key."""
    return {job.task.key: job.id for job in queue.missed([(task(key), hits) for key in keys])}


def test_jobs_run_in_the_queue_s_order_and_are_done(play: Any, queue: Queue) -> None:
    add(queue, "rare", hits=1)
    add(queue, "often", hits=100)

    async def test(scheduler: Scheduler, workplace: Workplace, gate: FakeGate) -> None:
        await until(lambda: queue.counts()["done"] == 2)
        assert [job.task.key for job in workplace.tuned] == ["often", "rare"]
        assert queue.winners(10)[0].result["speedup"] == 2.0
        assert workplace.asked == ["devices"]
        assert status.state_of(scheduler) == "idle"

    play(test, Workplace())


def test_nothing_is_measured_while_the_gate_is_closed(play: Any, queue: Queue) -> None:
    async def test(scheduler: Scheduler, workplace: Workplace, gate: FakeGate) -> None:
        gate.open = False
        await until(lambda: not scheduler.lanes[0].members[0].state.open)
        add(queue, "a")
        scheduler.wake()
        await asyncio.sleep(0.3)
        assert workplace.tuned == []
        assert status.state_of(scheduler) == "waiting"
        gate.open = True
        scheduler.wake()
        await until(lambda: queue.counts()["done"] == 1)

    play(test, Workplace())


def test_a_job_yields_at_once_and_is_gone_on_with(play: Any, queue: Queue) -> None:
    """The child is ended, so that it holds nothing of the device, and no attempt is counted."""
    workplace = Workplace()
    workplace.measurements = 10_000

    async def test(scheduler: Scheduler, workplace: Workplace, gate: FakeGate) -> None:
        [job] = add(queue, "a").values()
        scheduler.wake()
        await until(lambda: workplace.measured)
        gate.open = False
        await until(lambda: queue.job(job).state == "waiting")
        assert workplace.children[-1].gone
        assert queue.job(job).attempts == 0
        measured = len(workplace.measured)
        await asyncio.sleep(0.1)
        assert len(workplace.measured) == measured
        workplace.measurements = 3
        gate.open = True
        scheduler.wake()
        await until(lambda: queue.counts()["done"] == 1)

    play(test, workplace)


def test_a_pause_stops_the_running_job_and_outlives_the_scheduler(play: Any, queue: Queue) -> None:
    workplace = Workplace()
    workplace.measurements = 10_000

    async def test(scheduler: Scheduler, workplace: Workplace, gate: FakeGate) -> None:
        add(queue, "a")
        scheduler.wake()
        await until(lambda: workplace.measured)
        queue.set_paused("a demonstration")
        scheduler.wake()
        await until(lambda: queue.counts()["waiting"] == 1)
        assert status.state_of(scheduler) == "paused"

    play(test, workplace)
    measured = len(workplace.measured)

    async def later(scheduler: Scheduler, workplace: Workplace, gate: FakeGate) -> None:
        await asyncio.sleep(0.3)
        assert len(workplace.measured) == measured
        workplace.measurements = 3
        queue.set_paused(None)
        scheduler.wake()
        await until(lambda: queue.counts()["done"] == 1)

    play(later, workplace)


def test_a_running_job_can_be_cancelled(play: Any, queue: Queue) -> None:
    workplace = Workplace()
    workplace.measurements = 10_000

    async def test(scheduler: Scheduler, workplace: Workplace, gate: FakeGate) -> None:
        [job] = add(queue, "a").values()
        scheduler.wake()
        await until(lambda: workplace.measured)
        scheduler.cancel(job)
        await until(lambda: queue.job(job).state == "cancelled")

    play(test, workplace)


@pytest.mark.parametrize(
    "outcome", [WorkerGoneError("killed by SIGSEGV"), WorkerError("no kernel"), result(status="failed", message="no")]
)
def test_what_fails_waits_and_is_quarantined_in_the_end(play: Any, queue: Queue, outcome: Any) -> None:
    workplace = Workplace()
    workplace.outcomes["bad"] = outcome

    async def test(scheduler: Scheduler, workplace: Workplace, gate: FakeGate) -> None:
        job = add(queue, "bad", "good")["bad"]
        scheduler.wake()
        await until(lambda: queue.counts()["done"] == 1 and queue.job(job).attempts == 1)
        assert queue.job(job).state == "waiting"
        assert queue.next(["cpu"]) is None  # not yet
        queue.retry(job)
        scheduler.wake()
        await until(lambda: len([one for one in workplace.tuned if one.task.key == "bad"]) >= 2)

    play(test, workplace)


def test_a_killed_scheduler_loses_no_job(queue: Queue, tmp_path: Path) -> None:
    """One that was running is found, and run again."""
    [job] = add(queue, "a").values()
    queue.begin(job)
    workplace = Workplace()

    async def run() -> None:
        async with working(queue, Spool(tmp_path), workplace, FakeGate()):
            await until(lambda: queue.job(job).state == "done")

    asyncio.run(run())


def test_a_full_disk_loses_no_result(play: Any, queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was found is written when there is room again, without measuring again."""
    monkeypatch.setattr("faops.daemon.lane.RETRY_SECONDS", 0.05)
    finish, tries = queue.finish, []

    def full(*arguments: Any) -> Any:
        tries.append(arguments)
        if len(tries) < 4:
            raise DaemonError("the disk is full")
        return finish(*arguments)

    async def test(scheduler: Scheduler, workplace: Workplace, gate: FakeGate) -> None:
        monkeypatch.setattr(queue, "finish", full)
        add(queue, "a")
        scheduler.wake()
        await until(lambda: queue.counts()["done"] == 1)
        assert len(workplace.tuned) == 1

    play(test, Workplace())


def test_a_queue_that_cannot_be_read_is_asked_again(play: Any, queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("faops.daemon.lane.RETRY_SECONDS", 0.05)
    proper, tries = queue.next, []

    def broken(*arguments: Any) -> Any:
        tries.append(arguments)
        if len(tries) < 4:
            raise [DaemonError("the disk is full"), RuntimeError("a defect")][len(tries) % 2]
        return proper(*arguments)

    async def test(scheduler: Scheduler, workplace: Workplace, gate: FakeGate) -> None:
        monkeypatch.setattr(queue, "next", broken)
        add(queue, "a")
        scheduler.wake()
        await until(lambda: queue.counts()["done"] == 1)

    play(test, Workplace())


def test_a_cpu_waits_for_another_device(queue: Queue, tmp_path: Path) -> None:
    """What tunes a GPU computes on the CPU."""
    gpu = {**CPU, "device": "cuda:0", "identity": "gpu", "vendor": "nvidia"}
    workplace = Workplace()
    workplace.answers["devices"] = [CPU, gpu]
    workplace.measurements = 30
    queue.missed([(task("on the cpu"), 1), (task("on the gpu", device="cuda:0", identity="gpu"), 1)])

    async def run() -> None:
        async with working(queue, Spool(tmp_path), workplace, FakeGate()) as scheduler:
            await until(lambda: queue.counts()["done"] == 2)
            assert [lane.name for lane in scheduler.lanes] == ["cpu", "cuda:0"]

    asyncio.run(run())
    # Whichever began: once the GPU did, the CPU was not measured before that was over.
    first = workplace.measured.index("on the gpu")
    assert set(workplace.measured[first : first + 30]) == {"on the gpu"}


def test_devices_that_are_alike_share_a_lane(queue: Queue, tmp_path: Path) -> None:
    gates = {f"cuda:{index}": FakeGate() for index in range(2)}
    gates["cuda:0"].open = False
    workplace = Workplace()
    workplace.answers["devices"] = [{**CPU, "device": name, "identity": "gpu"} for name in gates]
    queue.missed([(task("a", device="cuda:0", identity="gpu"), 1)])

    async def run() -> None:
        metrics = Metrics(queue)
        scheduler = Scheduler(
            queue, Spool(tmp_path), CONFIG, metrics, workplace.launch, lambda device, config: gates[device["device"]]
        )
        running = asyncio.ensure_future(scheduler.run())
        await until(lambda: queue.counts()["done"] == 1)
        await scheduler.stop()
        await running

    asyncio.run(run())
    assert [job.task.device for job in workplace.tuned] == ["cuda:1"]  # the one that was idle


def test_devices_are_asked_for_again(queue: Queue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("faops.daemon.scheduler.RETRY_SECONDS", 0.05)
    workplace, told = Workplace(), []

    def devices() -> Any:
        told.append(1)
        return WorkerGoneError("no memory") if len(told) < 3 else [CPU]

    workplace.answers["devices"] = devices
    add(queue, "a")

    async def run() -> None:
        async with working(queue, Spool(tmp_path), workplace, FakeGate()):
            await until(lambda: queue.counts()["done"] == 1)

    asyncio.run(run())


# --- what comes in ----------------------------------------------------------------------------------------------------


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
    from faops.autotune.cache.entry import file_name

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


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks and polls come often, so that no test waits for a second."""
    for name in ("lane.LOOK_SECONDS", "lane.TUNING_LOOK_SECONDS", "intake.POLL_SECONDS"):
        monkeypatch.setattr(f"faops.daemon.{name}", 0.02)
    log.setup(None)
