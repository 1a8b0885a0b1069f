"""Searching a recorded sweep again: what a strategy would have found there, and at what cost."""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from faops.autotune import effort
from faops.autotune.effort import Budget
from faops.autotune.measurement.clocks import relative_error
from faops.autotune.recording.sweep import Sweep
from faops.autotune.search.candidates import Candidate
from faops.autotune.search.strategies import search
from faops.autotune.search.strategy import Strategy
from faops.autotune.search.trial import RememberedError, drop_kind

BATCH = 10  # samples drawn between two looks at the budget


class ReplayBench:
    """A bench whose samples are drawn from those that a sweep recorded, with replacement.

    It keeps to budgets as a device would: sampling ends when the median is known well enough, or the time is up.
    ``seconds`` is what the same timings would have taken on the device; ``tried`` are the candidates timed.
    """

    def __init__(self, sweep: Sweep, seed: int = 0) -> None:
        self.sweep = sweep
        self.numbers = random.Random(seed)
        self.seconds = 0.0
        self.timings = 0
        self.tried: set[Candidate] = set()

    def sample(self, candidate: Candidate, budget: Budget) -> Sequence[float]:
        """Samples in seconds a call. Raises RememberedError for a candidate that did not run."""
        self.timings += 1
        self.tried.add(candidate)
        failure = self.sweep.failures.get(candidate)
        recorded = [value for samples in self.sweep.passes.get(candidate, ()) for value in samples]
        if failure is not None and not recorded:
            raise RememberedError(drop_kind(failure.kind), failure.reason)
        call = statistics.median(recorded)
        if call >= max(budget.warmup, budget.time_cap):  # timed once, without a warm-up
            found = [self.numbers.choice(recorded)]
        else:
            self.seconds += max(budget.warmup, call)
            found = self._drawn(recorded, budget)
        self.seconds += sum(found)
        return found

    def check(self, candidate: Candidate) -> None:
        """Raise RememberedError when the candidate's results were wrong."""
        failure = self.sweep.failures.get(candidate)
        if failure is not None:
            raise RememberedError(drop_kind(failure.kind), failure.reason)

    def _drawn(self, recorded: Sequence[float], budget: Budget) -> list[float]:
        found: list[float] = []
        while len(found) < budget.max_samples and sum(found) < budget.time_cap:
            found += self.numbers.choices(recorded, k=BATCH)
            if len(found) >= budget.min_samples and relative_error(found) <= effort.RELATIVE_ERROR:
                break
        return found


@dataclass(frozen=True)
class Replayed:
    """What a search came to. ``regret`` is how much slower its winner is than the best of the sweep, as a part of the
    best's time; ``configs`` were tried in ``timings`` timings, which would have taken ``seconds``."""

    winner: Candidate
    regret: float
    configs: int
    timings: int
    seconds: float


def replay(sweep: Sweep, strategy: Strategy, seed: int = 0) -> Replayed:
    """Search ``sweep`` with ``strategy``. Raises TuningError when nothing in it runs correctly."""
    bench = ReplayBench(sweep, seed)
    outcome = search(sweep.space, bench, strategy)
    name = (outcome.winner.kernel, outcome.winner.config)
    winner = next(item for item in sweep.seconds if (item.kernel.id, item.config) == name)
    regret = sweep.seconds[winner] / sweep.seconds[sweep.best] - 1
    return Replayed(winner, regret, len(bench.tried), bench.timings, bench.seconds)
