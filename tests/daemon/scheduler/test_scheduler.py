"""The scheduler with children that tune nothing and gates that a test opens: what runs when, and what becomes of it."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from faops.daemon import status
from faops.daemon.http.metrics import Metrics
from faops.daemon.queue import Queue
from faops.daemon.scheduler import Scheduler
from faops.daemon.spool import Spool
from faops.errors import DaemonError

from ..support import CONFIG, CPU, FakeGate, WorkerError, WorkerGoneError, Workplace, add, result, task, until, working


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


def test_a_short_interruption_only_pauses(play: Any, queue: Queue) -> None:
    """Within the time that a child is kept, it measures nothing, and then goes on."""
    workplace = Workplace()
    workplace.measurements = 10_000

    async def test(scheduler: Scheduler, workplace: Workplace, gate: FakeGate) -> None:
        scheduler.configure(replace(CONFIG, yield_seconds=1000.0))
        add(queue, "a")
        scheduler.wake()
        await until(lambda: workplace.measured)
        gate.open = False
        await until(lambda: status.running_of(scheduler)[0].yielding)
        await asyncio.sleep(0.05)  # what is being measured is finished
        measured = len(workplace.measured)
        await asyncio.sleep(0.2)
        assert len(workplace.measured) == measured
        assert status.state_of(scheduler) == "waiting" and queue.counts()["running"] == 1
        gate.open = True
        await until(lambda: len(workplace.measured) > measured)
        assert len(workplace.tuned) == 1

    play(test, workplace)


def test_work_that_comes_while_a_child_starts_is_not_disturbed(queue: Queue, tmp_path: Path) -> None:
    workplace, gate = Workplace(), FakeGate()
    launch = workplace.launch

    async def slowly() -> Any:
        gate.open = not workplace.children  # the first was for the list of devices
        return await launch()

    workplace.launch = slowly  # type: ignore[method-assign]
    add(queue, "a")

    async def run() -> None:
        async with working(queue, Spool(tmp_path), workplace, gate) as scheduler:
            await until(lambda: len(workplace.children) == 2)
            await asyncio.sleep(0.2)
            assert workplace.tuned == []
            assert queue.counts()["waiting"] == 1
            assert status.devices_of(scheduler)[0]["gate"]["open"] is False

    asyncio.run(run())


def test_a_child_that_ended_between_two_jobs_is_replaced(play: Any, queue: Queue) -> None:
    async def test(scheduler: Scheduler, workplace: Workplace, gate: FakeGate) -> None:
        add(queue, "a")
        scheduler.wake()
        await until(lambda: queue.counts()["done"] == 1)
        workplace.children[-1].gone = True
        add(queue, "b")
        scheduler.wake()
        await until(lambda: queue.counts()["done"] == 2)
        assert len(workplace.children) == 3  # one more for the list of devices

    play(test, Workplace())
