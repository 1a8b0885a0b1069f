"""The loop of one device: waits until it is idle, tunes the next job in a child process, and yields to others."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from faops.daemon import log
from faops.daemon.child import WorkerChild, WorkerGoneError
from faops.daemon.gate import Gate, GateState
from faops.daemon.jobs import Job
from faops.daemon.queue import TransitionError, UnknownError
from faops.errors import DaemonError

LOOK_SECONDS = 1.0  # between looks at a device while nothing is tuned on it
TUNING_LOOK_SECONDS = 0.25  # and while something is: work that arrives waits no longer for its device
LINGER_SECONDS = 2.0  # a child without a job is kept as long: the next one saves its start
RETRY_SECONDS = 5.0  # after the disk was full
EXIT_SECONDS = 3.0  # what a child gets to end by itself

Device = dict[str, Any]
logger = log.get("lane")


class Shop(Protocol):
    """What a lane needs of the scheduler."""

    queue: Any
    metrics: Any

    @property
    def launch(self) -> Callable[[], Awaitable[WorkerChild]]:
        """Starts a child."""

    @property
    def yield_seconds(self) -> float:
        """How long a job that is in the way is kept before it is broken off."""

    @property
    def paused(self) -> bool:
        """Whether somebody has said so."""

    def own(self) -> set[int]:
        """Processes whose work is not foreign."""

    def measuring_elsewhere(self, lane: Lane) -> str:
        """The device of another lane that is being tuned, "" where none is."""


@dataclass
class Running:
    """A job under way, as far as its child has told."""

    job: Job
    device: str
    since: float = field(default_factory=time.monotonic)
    event: dict[str, Any] = field(default_factory=dict)
    best: float | None = None
    yielding: bool = False
    cancelled: bool = False

    def note(self, event: dict[str, Any]) -> None:
        """Take an event of the tuner."""
        self.event = event
        if event.get("best") is not None:
            self.best = event["best"]


@dataclass
class Member:
    """One device of a lane, its gate and what that said last."""

    device: Device
    gate: Gate
    state: GateState


class Lane:
    """All devices that tuning takes for the same: one problem at a time is measured on one of them, whichever is idle.

    ``name`` is the torch device that their jobs carry.
    """

    def __init__(self, name: str, members: list[Member], shop: Shop) -> None:
        self.name = name
        self.members = members
        self.shop = shop
        self.child: WorkerChild | None = None
        self.running: Running | None = None
        self.stopping = False
        self.woken = asyncio.Event()
        self._unused_since = 0.0

    # ------------------------------------------------------------------------------------------ loop

    async def run(self) -> None:
        """Tune until :meth:`stop`. A defect in one round is logged, and the loop goes on."""
        while not self.stopping:
            try:
                await self._round()
            except DaemonError as error:  # the queue cannot be written, or no child can be started
                logger.error("lane_waits", "will try again", device=self.name, error=str(error))
                self.shop.metrics.failed("queue")
                await self._sleep(RETRY_SECONDS)
            except Exception as error:
                logger.exception("defect", "a defect of faops", error=error, device=self.name)
                self.shop.metrics.failed("defect")
                await self._sleep(RETRY_SECONDS)
        await self._end_child(grace=0.0)
        for member in self.members:
            member.gate.close()

    async def _round(self) -> None:
        self.look()
        job = self.shop.queue.next([self.name])
        member = next((member for member in self.members if not self.hindrance(member)), None)
        if job is not None and member is not None:
            await self._tune(job, member)
            return
        if self.child is not None and time.monotonic() - self._unused_since > LINGER_SECONDS:
            await self._end_child()
        await self._sleep(LOOK_SECONDS)

    async def _sleep(self, seconds: float) -> None:
        """Until something is new, or for as long."""
        self.woken.clear()
        if not self.stopping:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self.woken.wait(), seconds)

    def look(self) -> None:
        """Ask the gates."""
        own = self.shop.own()
        for member in self.members:
            before, member.state = member.state.open, member.gate.look(own)
            self.shop.metrics.gate(member.device["device"], member.state)
            if before != member.state.open:
                event = "gate_opened" if member.state.open else "gate_closed"
                logger.info(event, member.state.reason, device=member.device["device"])

    def hindrance(self, member: Member) -> str:
        """Why nothing may be measured on a device now; "" where nothing is in the way.

        A CPU also waits for other devices: what tunes them computes on it.
        """
        if self.shop.paused:
            return "paused"
        if not member.state.open:
            return member.state.reason
        elsewhere = self.shop.measuring_elsewhere(self) if self.name == "cpu" else ""
        return f"{elsewhere} is being tuned" if elsewhere else ""

    async def stop(self) -> None:
        """Let :meth:`run` end; what is being measured is abandoned, its job waits again."""
        self.stopping = True
        self.woken.set()

    def cancel(self, job: int) -> bool:
        """Break off a job, if it is the one under way here."""
        if self.running is None or self.running.job.id != job:
            return False
        self.running.cancelled = True
        return True

    # ------------------------------------------------------------------------------------------ one job

    async def _tune(self, job: Job, member: Member) -> None:
        child = await self._ready_child()
        self.look()  # starting a child takes seconds, in which work may have come
        if self.hindrance(member) or self.stopping:
            return
        device = member.device["device"]
        job = replace(self.shop.queue.begin(job.id), task=replace(job.task, device=device))
        self.running = Running(job, device)
        logger.info("job_begun", job.task.words, job=job.id, device=device, hits=job.hits, source=job.source)
        try:
            await self._settle(job, child, member)
        finally:
            self.running = None
            self._unused_since = time.monotonic()

    async def _settle(self, job: Job, child: WorkerChild, member: Member) -> None:
        """See a job through to its end, whatever that is."""
        queue = self.shop.queue
        try:
            result = await self._watched(job, child, member)
        except WorkerGoneError as error:
            await self._end_child()
            await self._fail(job, str(error), crashed=True)
            return
        except DaemonError as error:  # the worker is alive, and said what went wrong
            await self._fail(job, str(error), crashed=False)
            return
        if result is None:
            cancelled = self.running is not None and self.running.cancelled
            await self._write(lambda: queue.cancel(job.id) if cancelled else queue.release(job.id))
        elif result["status"] == "failed":
            await self._fail(job, result["message"], crashed=False, result=result)
        else:
            await self._write(lambda: queue.finish(job.id, result, result["message"]))
            self.shop.metrics.finished(result, job.task.device)
            facts = {name: result.get(name) for name in ("status", "speedup", "seconds", "measurements", "kernel")}
            logger.info("job_done", result["message"], job=job.id, **facts)

    async def _fail(self, job: Job, message: str, crashed: bool, result: dict[str, Any] | None = None) -> None:
        """It is tried again later, and quarantined in the end."""
        self.shop.metrics.failed("crash" if crashed else "job")
        logger.error("job_crashed" if crashed else "job_failed", message, job=job.id)
        await self._write(lambda: self.shop.queue.fail(job.id, message, crashed, result))

    async def _watched(self, job: Job, child: WorkerChild, member: Member) -> dict[str, Any] | None:
        """The result of tuning; None where it was broken off for others, or because the daemon stops."""
        running = self.running
        assert running is not None
        tuning = asyncio.ensure_future(child.tune(job, running.note))
        yielding_since: float | None = None
        try:
            while not tuning.done():
                await asyncio.wait({tuning}, timeout=TUNING_LOOK_SECONDS)
                self.look()
                if tuning.done():
                    break
                if self.stopping or running.cancelled:
                    return await self._break_off(tuning, "cancelled" if running.cancelled else "the daemon stops")
                reason = self.hindrance(member)
                running.yielding = bool(reason)
                if not reason:
                    yielding_since = None
                    child.go()
                    continue
                child.pause()
                yielding_since = yielding_since or time.monotonic()
                if time.monotonic() - yielding_since >= self.shop.yield_seconds:
                    return await self._break_off(tuning, reason)
            return tuning.result()
        finally:
            if not tuning.done():
                tuning.cancel()

    async def _break_off(self, tuning: asyncio.Future[dict[str, Any]], reason: str) -> dict[str, Any] | None:
        """End the child in the middle of a job; what it has measured is in the job's journal. Gives the result where
        it came at the last moment."""
        assert self.running is not None
        logger.info("job_yields", reason, job=self.running.job.id)
        await self._end_child(grace=0.0)
        with contextlib.suppress(DaemonError, asyncio.CancelledError):
            return await tuning
        return None

    async def _write(self, change: Callable[[], object]) -> None:
        """Write a change of the queue, again and again while the disk is full. A daemon that stops gives up: the job
        is found as running then, and gone on with at the next start."""
        while True:
            try:
                change()
                return
            except (TransitionError, UnknownError) as error:  # a defect: trying again would not help
                logger.exception("defect", "a defect of faops", error=error)
                self.shop.metrics.failed("defect")
                return
            except DaemonError as error:
                logger.error("queue_not_written", str(error))
                self.shop.metrics.failed("queue")
                if self.stopping:
                    return
                await self._sleep(RETRY_SECONDS)

    # ------------------------------------------------------------------------------------------ child

    async def _ready_child(self) -> WorkerChild:
        if self.child is None or self.child.gone:
            await self._end_child()
            self.child = await self.shop.launch()
        return self.child

    async def _end_child(self, grace: float = EXIT_SECONDS) -> None:
        child, self.child = self.child, None
        if child is not None:
            await child.stop(grace)
