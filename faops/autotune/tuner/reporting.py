"""Telling a caller how a run goes: events with the time spent and the time left; and asking it for leave to go on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from faops.autotune.cache.entry import Timing
from faops.autotune.search.candidates import Candidate
from faops.autotune.search.trial import QUARANTINED, Drop, Watch
from faops.autotune.tuner.events import Event, Kind
from faops.autotune.tuner.pace import Pace
from faops.problem import AttentionProblem


@dataclass(frozen=True)
class Place:
    """Which problem of how many a run is at, counted from 0."""

    problem: AttentionProblem
    index: int
    total: int


@dataclass
class Reporter:
    """Sends events of one run, and waits for leave before whatever takes the device's time."""

    on_event: Callable[[Event], None]
    pace: Pace
    before_measuring: Callable[[], None] = lambda: None

    def wait_for_leave(self) -> None:
        """Call ``before_measuring``, which may take its time: the run stands still meanwhile."""
        self.pace.stand_still(self.before_measuring)

    def tell(
        self, kind: Kind, place: Place, message: str = "", done: int = 0, planned: int = 0, best: float | None = None
    ) -> None:
        times = (self.pace.elapsed, self.pace.remaining)
        self.on_event(Event(kind, place.problem, place.index, place.total, done, planned, best, message, *times))


class Progress(Watch):
    """Turns what one search does into events."""

    def __init__(self, reporter: Reporter, place: Place, planned: int) -> None:
        self.reporter, self.place, self.planned = reporter, place, planned
        self.done = 0
        self.best: float | None = None

    def timed(self, done: int, timing: Timing) -> None:
        self.done = done
        self.best = timing.p50 if self.best is None else min(self.best, timing.p50)
        self.reporter.pace.advance(self.place.index, done)
        self.tell("measured", f"{timing.kernel} [{timing.config}]")

    def compiled(self, done: int, total: int) -> None:
        self.reporter.wait_for_leave()
        self.reporter.tell("compiling", self.place, "", done, total, self.best)

    def checking(self, candidate: Candidate) -> None:
        self.tell("checking", str(candidate))

    def dropped(self, drop: Drop) -> None:
        self.tell("quarantined" if drop.kind in QUARANTINED else "dropped", f"{drop.candidate}: {drop.reason}")

    def tell(self, kind: Kind, message: str) -> None:
        """An event about this problem as it stands."""
        self.reporter.tell(kind, self.place, message, self.done, self.planned, self.best)
