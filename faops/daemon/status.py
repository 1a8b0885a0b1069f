"""The daemon's state as data, for ``GET /v1/status``."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from faops.daemon.http import views
from faops.daemon.lane import Lane, Member, Running

if TYPE_CHECKING:
    from faops.daemon.scheduler import Scheduler


def state_of(scheduler: Scheduler) -> str:
    """What the daemon does, in a word: "stopping", "paused", "tuning", "waiting" (there are jobs, but their device is
    not idle, or nobody knows the devices yet) or "idle"."""
    if scheduler.stopping:
        return "stopping"
    if scheduler.paused:
        return "paused"
    if any(lane.running is not None and not lane.running.yielding for lane in scheduler.lanes):
        return "tuning"
    jobs = scheduler.queue.counts()
    return "waiting" if jobs["waiting"] or jobs["running"] or scheduler.intake.misses else "idle"


def paused_of(scheduler: Scheduler) -> dict[str, Any] | None:
    """The pause that somebody has ordered."""
    paused = scheduler.queue.paused()
    if paused is None:
        return None
    reason, until = paused
    return {"reason": reason, "until": views.time(until)}


def devices_of(scheduler: Scheduler) -> list[dict[str, Any]]:
    """Every device with its gate; a lane's child and jobs are told with the first of its devices."""
    return [
        _device(scheduler, lane, member, first=index == 0)
        for lane in scheduler.lanes
        for index, member in enumerate(lane.members)
    ]


def _device(scheduler: Scheduler, lane: Lane, member: Member, first: bool) -> dict[str, Any]:
    child = lane.child if first else None
    state = member.state
    return {
        "device": member.device["device"],
        "name": member.device["name"],
        "identity": member.device["identity"],
        "gate": {
            "open": state.open,
            "reason": state.reason,
            "idle_seconds": state.idle_seconds,
            "figures": dict(state.figures),
        },
        "worker": None if child is None else {"pid": child.pid, "memory_bytes": scheduler.memory_of(child)},
        "waiting": scheduler.queue.waiting(lane.name) if first else 0,
    }


def running_of(scheduler: Scheduler) -> list[Running]:
    """The jobs under way."""
    return [lane.running for lane in scheduler.lanes if lane.running is not None]


def progress_of(running: Running) -> dict[str, Any]:
    """How far a job is."""
    event = running.event
    return {
        "done": event.get("done", 0),
        "planned": event.get("planned", 0),
        "best_seconds": running.best,
        "doing": _doing(event),
        "elapsed_seconds": time.monotonic() - running.since,
        "remaining_seconds": event.get("remaining"),
        "yielding": running.yielding,
    }


def _doing(event: dict[str, Any]) -> str:
    words = {
        "problem_started": "preparing",
        "compiling": "compiling",
        "measured": f"timed {event.get('message', '')}",
        "checking": f"checking {event.get('message', '')}",
        "waiting": "another process measures on this device",
    }
    return words.get(event.get("kind", ""), "preparing")
