"""Tuning one problem for the daemon, and what it is told of it."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from faops.autotune import report, tuner
from faops.autotune.cache import TuningCache, misses
from faops.autotune.cache.entry import Entry
from faops.autotune.report.heat_map import heat_maps
from faops.autotune.tuner.benches import Benches
from faops.autotune.tuner.events import Event, Result
from faops.daemon.jobs import Task
from faops.daemon.worker.assessing import Json, problem_of
from faops.daemon.worker.devices import check_environment
from faops.device import DeviceProfile, detect
from faops.errors import DaemonError

LARGEST_HEAT_MAP = 256 << 10  # bytes


class Tuning:
    """Tunes one problem after the other. ``tell`` gets the events, and ``wait_for_leave`` is called before each
    measurement, which it may put off.

    The process that measures serves all problems of a device: it takes seconds to start.
    """

    def __init__(self, tell: Callable[[Json], None], wait_for_leave: Callable[[], None]) -> None:
        self._tell = tell
        self._wait_for_leave = wait_for_leave
        self._waited = 0.0
        self._benches: Benches | None = None

    def tune(self, task: Json, forced: bool) -> Json:
        """Tune the problem of a task; with ``forced`` even where there is a winner.

        The result has "status" ("tuned", "warm", "failed"), "message", "measurements", "seconds" (without pauses),
        "kernel", "config", "p50", "default_kernel", "default_config", "default_p50", "speedup", "is_default",
        "rejected" (samples left out), "path" and "heat_map" (HTML, "" where there is none). A timing that an earlier
        try has taken is not taken again. Raises DaemonError for a task of another device or other software.
        """
        asked = Task.from_dict(task)
        profile = _ready_device(asked)
        since, self._waited = time.monotonic(), 0.0
        (result,) = tuner.tune(
            [problem_of(asked.problem)],
            asked.device,
            force=forced,
            resume=True,
            on_event=lambda event: self._tell(_as_dict(event)),
            before_measuring=self._leave,
            listed=False,
            benches=self._benches_of(torch.device(asked.device), profile),
        )
        seconds = time.monotonic() - since - self._waited
        if result.entry is not None:
            misses.settle(TuningCache(), profile.identity)
        return _told(result, profile, seconds)

    def _benches_of(self, device: torch.device, profile: DeviceProfile) -> Benches:
        """Those of the problem before, if it was one of the same device with the same number of threads."""
        if self._benches is not None and (self._benches.device, self._benches.profile) != (device, profile):
            self._benches.close()
            self._benches = None
        if self._benches is None:
            self._benches = Benches(device, profile, None, isolate=True)
        return self._benches

    def _leave(self) -> None:
        since = time.monotonic()
        self._wait_for_leave()
        self._waited += time.monotonic() - since


def _ready_device(task: Task) -> DeviceProfile:
    """The device of a task, which computes with as many threads as the task says. Raises DaemonError."""
    check_environment(task.environment)
    if task.threads > 0 and torch.device(task.device).type == "cpu":
        torch.set_num_threads(task.threads)
    profile = detect(task.device)
    if profile.identity != task.identity:
        raise DaemonError(f"{task.device} is {profile.identity}, and the problem is one of {task.identity}")
    return profile


def _as_dict(event: Event) -> Json:
    """JSON-able form of an event, the problem in words."""
    return {
        "kind": event.kind,
        "problem": str(event.problem),
        "done": event.done,
        "planned": event.planned,
        "best": event.best,
        "message": event.message,
        "elapsed": event.elapsed,
        "remaining": event.remaining,
    }


def _told(result: Result, profile: DeviceProfile, seconds: float) -> Json:
    """JSON-able form of a result. A winner that was not stored helps no program: that is a failure."""
    entry = result.entry
    stored = entry is not None and entry.path is not None
    outcome: Json = {
        "status": result.status if stored else "failed",
        "message": result.message,
        "measurements": result.measurements,
        "seconds": seconds,
    }
    return {**outcome, **_NOTHING, **({} if entry is None else _winner(entry, profile))}


_NOTHING: Json = {
    "kernel": "", "config": {}, "p50": None, "default_kernel": "", "default_config": {}, "default_p50": None,
    "speedup": None, "is_default": False, "rejected": 0, "path": "", "heat_map": "",
}  # fmt: skip


def _winner(entry: Entry, profile: DeviceProfile) -> Json:
    return {
        "kernel": entry.kernel,
        "config": dict(entry.config),
        "p50": entry.p50,
        "default_kernel": entry.default_kernel,
        "default_config": dict(entry.default_config),
        "default_p50": entry.default_p50,
        "speedup": entry.speedup,
        "is_default": entry.is_default,
        "rejected": rejected if isinstance(rejected := entry.clocks.get("rejected"), int) else 0,
        "path": "" if entry.path is None else str(entry.path),
        "heat_map": _heat_map(entry, profile),
    }


def _heat_map(entry: Entry, profile: DeviceProfile) -> str:
    text = "".join(map(str, heat_maps(entry, report.legal_configs(entry, [profile]))))
    return text if len(text.encode()) <= LARGEST_HEAT_MAP else ""
