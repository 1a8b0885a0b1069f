"""Whether a CPU is idle: the time that its cores work, less that of our own processes."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from faops.daemon.gate import proc
from faops.daemon.gate.gate import Reading

if TYPE_CHECKING:
    from faops.daemon.config import Config

PROC = Path("/proc")
SHORTEST_SECONDS = 0.2  # between samples: ticks, of a hundredth of a second, tell little of less
# Cores count in whole ticks, which blurs what is ours. Over this time it blurs less, so that little work by others
# shows even while we use all of many cores.
HORIZON_SECONDS = 1.0


@dataclass(frozen=True)
class Sample:
    """What was read at ``time``, which took ``gap`` seconds."""

    time: float
    gap: float
    busy: int
    stolen: int
    own: proc.Processes


@dataclass(frozen=True)
class Span:
    """What happened between two samples, in core-seconds. ``untold`` may have been ours or not."""

    seconds: float
    gap: float
    busy: float
    own: float
    stolen: float
    untold: float


class Cpu:
    """The cores that others keep busy, from two samples of Linux's counters."""

    def __init__(self, root: Path = PROC, clock: Callable[[], float] = time.monotonic) -> None:
        self.root, self._clock = root, clock
        self._tick = 1 / os.sysconf("SC_CLK_TCK")
        self._cores = os.cpu_count() or 1
        self._sample: Sample | None = None
        self._spans: deque[Span] = deque()
        self._told: Collection[int] = ()

    def read(self, own: Collection[int], config: Config) -> Reading:
        """See :class:`~faops.daemon.gate.gate.Sensor`. Asked again too soon, it goes by what it knows."""
        try:
            self._take(own)
        except (OSError, ValueError) as error:
            self._sample = None
            self._spans.clear()
            return Reading(f"how busy the processors are cannot be read: {error}")
        if not self._spans:
            return Reading("begins to watch the processors")
        return self._judged(config.busy_cores)

    def close(self) -> None:
        """Nothing is held."""

    def _take(self, own: Collection[int]) -> None:
        """Sample, if it is time to. A process that was ours at the last look is still followed: it may be ending."""
        before = self._sample
        begun = self._clock()
        if before is not None and begun - before.time < SHORTEST_SECONDS:
            return
        found = proc.processes({*own, *self._told}, self.root)
        busy, stolen = proc.machine(self.root)
        now = self._clock()
        self._sample, self._told = Sample(now, now - begun, busy, stolen, found), tuple(own)
        if before is not None:
            self._spans.append(self._between(before, self._sample))
            while sum(span.seconds for span in self._spans) - self._spans[0].seconds >= HORIZON_SECONDS:
                self._spans.popleft()

    def _between(self, before: Sample, after: Sample) -> Span:
        seconds = after.time - before.time
        own, untold = proc.worked_between(before.own, after.own, self._cores * seconds / self._tick)
        return Span(
            seconds=seconds,
            gap=max(before.gap, after.gap),
            busy=(after.busy - before.busy) * self._tick,
            own=own * self._tick,
            stolen=(after.stolen - before.stolen) * self._tick,
            untold=min(untold, self._cores) * seconds,
        )

    def _judged(self, allowed: float) -> Reading:
        last = self._spans[-1]
        figures = {
            "busy_cores": max(0.0, last.busy - last.own) / last.seconds,
            "own_cores": last.own / last.seconds,
            "stolen_cores": last.stolen / last.seconds,
        }
        found = max(self._others([last]), self._others(list(self._spans)))
        if found <= allowed:
            return Reading("", figures)
        words = f"other programs use {max(found, figures['busy_cores']):.1f} of {self._cores} cores"
        return Reading(words, figures)

    def _others(self, spans: list[Span]) -> float:
        """Cores that others kept busy at least.

        Our own processes may have worked a tick more on each of their cores than is said, and as long as it took to
        read first the one and then the other.
        """
        seconds = sum(span.seconds for span in spans)
        others = sum(span.busy - span.own - span.untold for span in spans)
        own = sum(span.own for span in spans) / seconds
        return (others - own * (self._tick + max(span.gap for span in spans))) / seconds
