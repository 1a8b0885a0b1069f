"""When a device may be tuned on: what every kind of device has in common."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from faops.daemon.config import Config

# Longer between two looks and nobody knows what happened meanwhile. Starting a child, during which nobody looks,
# takes a fraction of it.
LONGEST_GAP_SECONDS = 60.0
SLEPT_SECONDS = 1.0  # more between two clocks, of which one stands still in a suspend, is one


@dataclass(frozen=True)
class GateState:
    """What a gate says. ``reason`` is to be read by people, ``figures`` are for metrics: ``busy_cores``,
    ``utilisation`` (per cent) and the like, as far as they are known."""

    open: bool
    reason: str
    idle_seconds: float
    figures: dict[str, float] = field(default_factory=dict)


class Gate(Protocol):
    """Tells whether one device may be tuned on."""

    def look(self, own: Collection[int]) -> GateState:
        """What is to be said now. Cheap, never waits and never raises.

        ``own`` are the processes whose work does not count: the daemon, its workers and their children.
        """

    def configure(self, config: Config) -> None:
        """Go by other settings from now on; how long the device has been idle is kept."""

    def close(self) -> None:
        """Give back what it holds."""


@dataclass(frozen=True)
class Reading:
    """What a sensor saw. ``busy`` says in words who uses the device, or why nobody knows; it is "" when it is idle."""

    busy: str = ""
    figures: dict[str, float] = field(default_factory=dict)


class Sensor(Protocol):
    """Looks at one kind of device."""

    def read(self, own: Collection[int], config: Config) -> Reading:
        """What is there now. Cheap, never waits and never raises."""

    def close(self) -> None:
        """Give back what it holds."""


def slept_seconds() -> float:
    """Seconds that the machine has been suspended since boot; 0 where the system does not tell."""
    if not hasattr(time, "CLOCK_BOOTTIME"):
        return 0.0
    return time.clock_gettime(time.CLOCK_BOOTTIME) - time.clock_gettime(time.CLOCK_MONOTONIC)


class IdleGate:
    """Open once the device has been idle for long enough without a break, in the hours that the settings name.

    Idleness goes by a clock that nobody can set; a suspend, or a long time without looks, begins it anew.
    """

    def __init__(
        self,
        sensor: Sensor,
        config: Config,
        clock: Callable[[], float] = time.monotonic,
        slept: Callable[[], float] = slept_seconds,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.sensor = sensor
        self.config = config
        self._clock, self._slept, self._now = clock, slept, now
        self._looked_at = self._idle_since = clock()
        self._slept_before = slept()

    def look(self, own: Collection[int]) -> GateState:
        """See :class:`Gate`."""
        reading = self.sensor.read(own, self.config)
        idle_seconds = self._idleness(bool(reading.busy))
        reason = self._closed(reading.busy, idle_seconds)
        return GateState(not reason, reason or self._opened(idle_seconds), idle_seconds, reading.figures)

    def configure(self, config: Config) -> None:
        """See :class:`Gate`."""
        self.config = config

    def close(self) -> None:
        """See :class:`Gate`."""
        self.sensor.close()

    def _idleness(self, busy: bool) -> float:
        """Seconds without a break in which the device was idle."""
        clock, slept = self._clock(), self._slept()
        unseen = clock - self._looked_at > LONGEST_GAP_SECONDS or slept - self._slept_before > SLEPT_SECONDS
        self._looked_at, self._slept_before = clock, slept
        if busy or unseen:
            self._idle_since = clock
        return clock - self._idle_since

    def _closed(self, busy: str, idle_seconds: float) -> str:
        """Why it is closed; "" if it is not. Whoever turns waiting off still means the hours that he named."""
        window, needed = self.config.window, self.config.idle_seconds
        if window is not None and not window.holds(self._now()):
            return f"outside {window}"
        if not self.config.idle_gate:
            return ""
        if busy:
            return busy
        return f"idle for {int(idle_seconds)} of {needed:g} s" if idle_seconds < needed else ""

    def _opened(self, idle_seconds: float) -> str:
        return f"idle for {int(idle_seconds)} s" if self.config.idle_gate else "tunes on busy devices too, as set"
