"""The search over kernels and configs of one problem: a quick round, successive halving, interleaved finals.

Successive halving (Jamieson and Talwalkar 2016, "Non-stochastic best arm identification"): time every candidate
coarsely, keep the best third, time those better, until few enough are left. The finalists are then timed in turns,
A B C A B C, so that a slow drift of the machine meets all of them alike. Nothing here touches a device: how a
candidate is timed and checked is handed in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from faops.autotune import effort
from faops.autotune.effort import Budget
from faops.autotune.entry import Timing
from faops.autotune.measurement.clocks import in_groups, summarize
from faops.autotune.search.candidates import Bench, Candidate, Space
from faops.errors import TuningError


@dataclass
class Outcome:
    """What a search found. ``default`` is the timing of what runs untuned, or of the best kernel's default left."""

    winner: Timing
    default: Timing
    timings: list[Timing]
    dropped: list[tuple[Candidate, str]]
    measurements: int


def planned(count: int) -> list[tuple[int, Budget]]:
    """The rounds a search over ``count`` candidates will make: (timings, budget of each)."""
    rounds = [(count, effort.QUICK)]
    while count > effort.FINALISTS:
        count = _survivors(count)
        rounds.append((count, effort.HALVING))
    rounds.append((count * effort.FINAL_ROUNDS, effort.FINAL))
    return rounds


def _survivors(count: int) -> int:
    return max(effort.FINALISTS, -(-count // effort.HALVING_ETA))


def beats(candidate: Timing, default: Timing) -> bool:
    """Whether ``candidate`` is faster than ``default`` by more than max(WIN_MARGIN, WIN_DEVIATIONS · MAD)."""
    noise = max(candidate.mad, default.mad)
    return default.p50 - candidate.p50 > max(effort.WIN_MARGIN * default.p50, effort.WIN_DEVIATIONS * noise)


@dataclass
class _Search:
    bench: Bench
    on_timing: Callable[[int, Timing], None]
    timings: dict[Candidate, Timing] = field(default_factory=dict)
    dropped: list[tuple[Candidate, str]] = field(default_factory=list)
    measurements: int = 0

    def time(self, candidate: Candidate, budget: Budget) -> Sequence[float] | None:
        """Samples of a candidate; None, and it is dropped, when it raises."""
        self.measurements += 1
        try:
            return self.bench.sample(candidate, budget)
        except Exception as error:  # one config that cannot run must not end the search
            self.drop(candidate, error)
            return None

    def note(self, candidate: Candidate, groups: Sequence[Sequence[float]]) -> None:
        timing = summarize(candidate.kernel.id, candidate.config, groups)
        self.timings[candidate] = timing
        self.on_timing(self.measurements, timing)

    def drop(self, candidate: Candidate, error: Exception) -> None:
        self.timings.pop(candidate, None)
        self.dropped.append((candidate, f"{type(error).__name__}: {error}"))

    def round(self, candidates: Sequence[Candidate], budget: Budget) -> list[Candidate]:
        """Time each candidate once; those that ran, fastest first."""
        for candidate in candidates:
            samples = self.time(candidate, budget)
            if samples is not None:
                self.note(candidate, in_groups(samples))
        return sorted((c for c in candidates if c in self.timings), key=lambda c: self.timings[c].p50)

    def checked(self, candidate: Candidate) -> bool:
        try:
            self.bench.check(candidate)
        except Exception as error:  # a wrong or crashing config is recorded, and another may still win
            self.drop(candidate, error)
            return False
        return True

    def finals(self, finalists: Sequence[Candidate]) -> None:
        """Time the finalists in turns; a finalist's groups are its rounds."""
        groups: dict[Candidate, list[Sequence[float]]] = {candidate: [] for candidate in finalists}
        for _ in range(effort.FINAL_ROUNDS):
            for candidate in [c for c in finalists if c in self.timings]:
                samples = self.time(candidate, effort.FINAL)
                if samples is not None:
                    groups[candidate].append(samples)
                    self.note(candidate, groups[candidate])


def search(candidates: Space, bench: Bench, on_timing: Callable[[int, Timing], None] = lambda *_: None) -> Outcome:
    """Find the fastest correct candidate. ``on_timing`` gets (timings so far, timing) after each one.

    The default stays in every round whatever its time, and wins unless another beats it beyond the noise. Raises
    TuningError when no candidate runs and computes correctly.
    """
    state = _Search(bench, on_timing)
    ranked = state.round(candidates.all, effort.QUICK)
    default = _first_standing(candidates, state)
    while len(ranked) > effort.FINALISTS:
        kept = _with_default(ranked[: _survivors(len(ranked))], default)
        ranked = state.round(kept, effort.HALVING)
    ranked = [candidate for candidate in ranked if state.checked(candidate)]
    if default not in ranked:  # the default itself failed; another kernel's takes its place
        default = _first_standing(candidates, state)
        if default is not None and default not in ranked and state.checked(default):
            ranked.append(default)
    state.finals(ranked)
    finalists = [candidate for candidate in ranked if candidate in state.timings]
    if not finalists:
        raise TuningError(_nothing_ran(state))
    fastest = min(finalists, key=lambda candidate: state.timings[candidate].p50)
    baseline = default if default in finalists else fastest
    winner = fastest if beats(state.timings[fastest], state.timings[baseline]) else baseline
    timings = sorted(state.timings.values(), key=lambda timing: timing.p50)
    return Outcome(state.timings[winner], state.timings[baseline], timings, state.dropped, state.measurements)


def _first_standing(candidates: Space, state: _Search) -> Candidate | None:
    """The default of the highest priority that has not been dropped."""
    return next((candidate for candidate in candidates.defaults if candidate in state.timings), None)


def _with_default(candidates: list[Candidate], default: Candidate | None) -> list[Candidate]:
    if default is None or default in candidates:
        return candidates
    return [*candidates[:-1], default]


def _nothing_ran(state: _Search) -> str:
    reasons = "; ".join(f"{candidate}: {reason}" for candidate, reason in state.dropped[:3])
    more = len(state.dropped) - 3
    return f"no config ran correctly: {reasons or 'there are none'}{f'; and {more} more' if more > 0 else ''}"
