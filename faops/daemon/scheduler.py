"""The heart of the daemon: from misses and submissions to jobs, and from jobs to winners, a lane a device."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Awaitable, Callable
from typing import Any

from faops import processes
from faops.daemon import log
from faops.daemon.child import WorkerChild, WorkerGoneError
from faops.daemon.config import Config
from faops.daemon.gate import Gate, gate_of
from faops.daemon.intake import Intake
from faops.daemon.jobs import Job
from faops.daemon.lane import Device, Lane, Member
from faops.daemon.queue import Queue
from faops.daemon.spool import Spool
from faops.errors import DaemonError

RETRY_SECONDS = 30.0  # after no child could say which devices there are
UPKEEP_SECONDS = 10.0
MEMORY_SECONDS = 2.0
PRUNE_SECONDS = 86400.0
KEPT_DAYS = 90

Launch = Callable[[], Awaitable[WorkerChild]]
GateOf = Callable[[Device, Config], Gate]

logger = log.get("scheduler")


class Scheduler:
    """Runs the lanes and the intake. ``launch`` starts a child and ``make_gate`` a gate; tests pass others.

    It is the shop of its lanes: see :class:`faops.daemon.lane.Shop`.
    """

    def __init__(
        self,
        queue: Queue,
        spool: Spool,
        config: Config,
        metrics: Any,
        launch: Launch = WorkerChild.start,
        make_gate: GateOf = gate_of,
    ) -> None:
        self.queue, self.config, self.metrics = queue, config, metrics
        self._start_child = launch
        self.make_gate = make_gate
        self.lanes: list[Lane] = []
        self.intake = Intake(queue, spool, metrics, self.launch, self._may_assess, self.wake)
        self.stopping = False
        self._stopped = asyncio.Event()
        self._memory: dict[WorkerChild | None, tuple[float, int]] = {}
        self.trouble = "looking for devices"  # why nothing is tuned yet; "" once the devices are known

    # ------------------------------------------------------------------------------------------ life

    async def run(self) -> None:
        """Work until :meth:`stop`."""
        recovered = self.queue.recover()
        if recovered:
            logger.info("recovered", f"{recovered} jobs were under way when the daemon ended")
        if not await self._find_devices():
            return
        await asyncio.gather(self.intake.run(), self._keep_up(), *(lane.run() for lane in self.lanes))

    async def stop(self) -> None:
        """Let :meth:`run` end; it returns within seconds."""
        self.stopping = True
        self._stopped.set()
        for lane in self.lanes:
            await lane.stop()
        await self.intake.stop()

    async def _find_devices(self) -> bool:
        """Whether the devices are known, which is asked of a child again and again; no when the daemon stops before."""
        while not self.stopping:
            try:
                devices: list[Device] = await self.intake.ask("devices")
            except DaemonError as error:
                self.trouble = f"the devices of this machine cannot be listed: {error}"
                logger.error("devices_unknown", str(error))
                self.metrics.failed("devices")
                await self._pause(RETRY_SECONDS)
                continue
            self.lanes = self._lanes_of(devices)
            self.trouble = ""
            logger.info("devices", ", ".join(f"{device['device']} {device['name']}" for device in devices))
            return True
        return False

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._stopped.wait(), seconds)

    def _lanes_of(self, devices: list[Device]) -> list[Lane]:
        """Devices of one identity share a lane, since the tuner measures one problem at a time for all of them."""
        alike: dict[str, list[Device]] = {}
        for device in devices:
            alike.setdefault(device["identity"], []).append(device)
        return [Lane(group[0]["device"], [self._member(device) for device in group], self) for group in alike.values()]

    def _member(self, device: Device) -> Member:
        gate = self.make_gate(device, self.config)
        return Member(device, gate, gate.look(()))

    async def _keep_up(self) -> None:
        """What has to be done now and then."""
        pruned_at = -PRUNE_SECONDS
        while not self.stopping:
            for lane in self.lanes:
                self.metrics.worker(lane.name, None if lane.child is None else self.memory_of(lane.child))
            if time.monotonic() - pruned_at > PRUNE_SECONDS:
                with contextlib.suppress(DaemonError):  # the disk is full; the next day will do
                    self.queue.prune(KEPT_DAYS)
                pruned_at = time.monotonic()
            await self._pause(UPKEEP_SECONDS)

    def memory_of(self, child: WorkerChild | None) -> int:
        """Bytes that a child and what it has started hold, or this process (None); up to MEMORY_SECONDS old.

        The system counts them page by page, which takes milliseconds.
        """
        now = time.monotonic()
        looked, found = self._memory.get(child, (-MEMORY_SECONDS, 0))
        if now - looked >= MEMORY_SECONDS:
            found = processes.memory_bytes(os.getpid()) if child is None else child.memory_bytes()
            self._memory = {one: kept for one, kept in self._memory.items() if one is None or not one.gone}
            self._memory[child] = now, found
        return found

    # ------------------------------------------------------------------------------------------ orders

    @property
    def yield_seconds(self) -> float:
        return self.config.yield_seconds

    @property
    def paused(self) -> bool:
        """Whether somebody has said so; a pause outlives a restart."""
        return self.queue.paused() is not None

    def own(self) -> set[int]:
        """This process, its children and theirs, those that are just starting too: their work is not foreign."""
        return {os.getpid(), *processes.descendants(os.getpid())}

    async def launch(self) -> WorkerChild:
        """Start a child, which takes seconds. Raises WorkerGoneError where it fails or the daemon stops."""
        starting = asyncio.ensure_future(self._start_child())
        stopping = asyncio.ensure_future(self._stopped.wait())
        await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if starting.done():
            return starting.result()
        starting.cancel()
        await asyncio.wait({starting})
        raise WorkerGoneError("the daemon stops")

    def measuring_elsewhere(self, lane: Lane) -> str:
        """The device of another lane that is being tuned, "" where none is."""
        return next((other.name for other in self.lanes if other is not lane and other.running is not None), "")

    def configure(self, config: Config) -> None:
        """Take over changed settings; what a gate knows of idleness is kept."""
        self.config = config
        self.queue.attempts = config.attempts
        for lane in self.lanes:
            for member in lane.members:
                member.gate.configure(config)
        self.wake()

    def wake(self) -> None:
        """Look at the queue now."""
        self.intake.woken.set()
        for lane in self.lanes:
            lane.woken.set()

    def cancel(self, job_id: int) -> Job:
        """Cancel a job; one that runs is ended within moments. Raises what Queue.cancel raises."""
        if any(lane.cancel(job_id) for lane in self.lanes):
            return self.queue.job(job_id)
        return self.queue.cancel(job_id)

    def _may_assess(self) -> bool:
        """Misses can wait until some device is idle: assessing them takes seconds of a processor core."""
        return not self.paused and any(member.state.open for lane in self.lanes for member in lane.members)
