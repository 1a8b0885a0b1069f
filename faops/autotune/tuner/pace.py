"""How long a run will still take: what every timing was expected to cost, corrected by what it did cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import monotonic

from faops.autotune import effort
from faops.autotune.effort import Budget


class Pace:
    """Elapsed and remaining time of a run, in seconds; ``budget`` is all it may take, None for no limit.

    Time in which a run stands still is no part of it.
    """

    def __init__(self, budget: float | None = None) -> None:
        self.budget = budget
        self.begun = monotonic()
        self.measuring_since: float | None = None
        self.costs: dict[int, Sequence[float]] = {}  # expected seconds of each timing, by problem
        self.done: dict[int, int] = {}  # timings taken, by problem

    def expect(self, problem: int, costs: Sequence[float]) -> None:
        """The timings of a problem will cost about this many seconds each."""
        self.costs[problem] = costs

    def begin(self) -> None:
        """Measuring begins now, if it has not before. What comes earlier, such as starting a process, comes once."""
        if self.measuring_since is None:
            self.measuring_since = monotonic()

    def stand_still(self, wait: Callable[[], None]) -> None:
        """Call ``wait``, and count the time it takes nowhere."""
        since = monotonic()
        wait()
        waited = monotonic() - since
        self.begun += waited
        if self.measuring_since is not None:
            self.measuring_since += waited

    def advance(self, problem: int, timings: int) -> None:
        """So many timings of a problem are taken."""
        self.done[problem] = timings

    def finish(self, problem: int) -> None:
        """Nothing more of a problem is to be measured, however much was expected."""
        self.costs[problem] = self.costs.get(problem, ())[: self.done.get(problem, 0)]

    @property
    def spent(self) -> bool:
        """Whether the budget is."""
        return self.budget is not None and self.elapsed >= self.budget

    def is_spent(self) -> bool:
        """:attr:`spent` as a function, for those who ask again and again."""
        return self.spent

    @property
    def elapsed(self) -> float:
        return monotonic() - self.begun

    @property
    def remaining(self) -> float | None:
        """None before the first timing."""
        done = sum(sum(costs[: self.done.get(problem, 0)]) for problem, costs in self.costs.items())
        if self.measuring_since is None or done <= 0:
            return None
        rest = sum(map(sum, self.costs.values())) - done
        expected = rest * (monotonic() - self.measuring_since) / done
        return expected if self.budget is None else max(0.0, min(expected, self.budget - self.elapsed))


def timing_seconds(budget: Budget, call: float, recorded: bool = False) -> float:
    """About what one timing costs where a call takes ``call`` seconds: warm-up and samples, at least one call each;
    with ``recorded``, on a device whose profiler is asked in the finals."""
    if recorded and budget.graph:
        return max(budget.warmup, call) + effort.RECORDING_SECONDS
    return max(budget.warmup, call) + max(budget.time_cap, call)
