"""What one search has learnt so far: who was timed, who was dropped and why."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

from faops.autotune.cache.entry import Timing
from faops.autotune.effort import Budget
from faops.autotune.measurement.clocks import in_groups, summarize
from faops.autotune.search.candidates import Bench, Candidate, Space
from faops.errors import CompileError, CrashedError, FaopsError, HangError, TuningError, UnavailableError

DropKind = Literal["failed", "wrong", "uncompiled", "spilled", "crashed", "hung"]
QUARANTINED: tuple[DropKind, ...] = ("crashed", "hung")  # not tried again by the same code


class RememberedError(FaopsError):
    """What a candidate raised when an interrupted run tried it."""

    def __init__(self, kind: DropKind, reason: str) -> None:
        self.kind = kind
        super().__init__(reason)


@dataclass(frozen=True)
class Drop:
    """A candidate that left the search. ``kind`` is one of :data:`DropKind`."""

    candidate: Candidate
    kind: DropKind
    reason: str

    @staticmethod
    def of(candidate: Candidate, error: Exception, usual: DropKind = "failed") -> Drop:
        """What an error makes of a candidate; ``usual`` where the error does not tell."""
        if isinstance(error, RememberedError):
            return Drop(candidate, error.kind, str(error))
        kind = next((kind for sort, kind in _KINDS if isinstance(error, sort)), usual)
        return Drop(candidate, kind, f"{type(error).__name__}: {error}")


_KINDS: tuple[tuple[type[Exception], DropKind], ...] = (
    (HangError, "hung"),  # which is a CrashedError too
    (CrashedError, "crashed"),
    (CompileError, "uncompiled"),
    (UnavailableError, "uncompiled"),
)


def drop_kind(word: object) -> DropKind:
    """A kind as a file has it; "failed" for one that this version does not know."""
    return next((kind for kind in get_args(DropKind) if kind == word), "failed")


class Watch:
    """Is told what a search does while it does it. Here nothing comes of it."""

    def timed(self, done: int, timing: Timing) -> None:
        """``done`` timings are taken, the last of them ``timing``."""

    def compiled(self, done: int, total: int) -> None:
        """``done`` of ``total`` candidates are compiled."""

    def checking(self, candidate: Candidate) -> None:
        """The results of a finalist are about to be compared with the reference."""

    def dropped(self, drop: Drop) -> None:
        """A candidate left the search."""


@dataclass(frozen=True)
class Shortlist:
    """Whom a strategy times. Those in ``reserve`` step in, in their order, for those that do not compile."""

    chosen: tuple[Candidate, ...]
    reserve: tuple[Candidate, ...] = ()


Feed = Callable[["Trial", Shortlist], Iterator[Candidate]]


def as_they_stand(trial: Trial, shortlist: Shortlist) -> Iterator[Candidate]:
    """The chosen ones, where nothing has to be compiled beforehand."""
    return iter(shortlist.chosen)


@dataclass
class Trial:
    """The timings of a search. ``hurry`` says whether the time is up; ``feed`` yields candidates ready to be timed."""

    space: Space
    bench: Bench
    watch: Watch = field(default_factory=Watch)
    hurry: Callable[[], bool] = lambda: False
    feed: Feed = as_they_stand
    timings: dict[Candidate, Timing] = field(default_factory=dict)
    drops: list[Drop] = field(default_factory=list)
    measurements: int = 0

    @property
    def default(self) -> Candidate | None:
        """The default of the highest priority that was timed and not dropped."""
        return next((candidate for candidate in self.space.defaults if candidate in self.timings), None)

    def standing(self, candidates: Iterable[Candidate]) -> list[Candidate]:
        """Those of ``candidates`` that were timed and not dropped, the fastest first."""
        return sorted((item for item in candidates if item in self.timings), key=lambda item: self.timings[item].p50)

    def round(self, candidates: Iterable[Candidate], budget: Budget) -> list[Candidate]:
        """Time each candidate once; those that ran, the fastest first.

        When the time is up, and a default has been timed, the round ends and all that was timed before is in the race.
        """
        met = []
        for candidate in candidates:
            if self.default is not None and self.hurry():
                return self.standing(self.timings)
            met.append(candidate)
            samples = self.time(candidate, budget)
            if samples is not None:
                self.note(candidate, in_groups(samples))
        return self.standing(met)

    def time(self, candidate: Candidate, budget: Budget) -> Sequence[float] | None:
        """Samples of a candidate; None, and it is dropped, when it raises."""
        self.measurements += 1
        try:
            return self.bench.sample(candidate, budget)
        except Exception as error:  # one config that cannot run must not end the search
            self.drop(Drop.of(candidate, error))
            return None

    def note(self, candidate: Candidate, groups: Sequence[Sequence[float]]) -> None:
        """Keep the timing that groups of samples amount to, in place of an earlier one."""
        timing = summarize(candidate.kernel.id, candidate.config, groups)
        self.timings[candidate] = replace(timing, predicted=self.space.predicted.get(candidate))
        self.watch.timed(self.measurements, self.timings[candidate])

    def drop(self, drop: Drop) -> None:
        self.timings.pop(drop.candidate, None)
        self.drops.append(drop)
        self.watch.dropped(drop)

    def correct(self, candidate: Candidate) -> bool:
        """Whether the results are right; a candidate with wrong ones is dropped, and another may still win."""
        self.watch.checking(candidate)
        try:
            self.bench.check(candidate)
        except Exception as error:
            self.drop(Drop.of(candidate, error, "wrong" if isinstance(error, TuningError) else "failed"))
            return False
        return True
