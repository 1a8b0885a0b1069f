"""The end of every search: who computes correctly, who is fastest for sure, and whether that beats the default.

Finalists must first pass the correctness gate. They are then timed in turns, A B C A B C, so that a slow drift of the
machine meets all of them alike. The default is replaced only by something faster beyond the noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from faops.autotune import effort
from faops.autotune.cache.entry import Timing
from faops.autotune.search.candidates import Candidate
from faops.autotune.search.strategy import Rounds
from faops.autotune.search.trial import Drop, Trial
from faops.errors import TuningError


@dataclass
class Outcome:
    """What a search found. ``default`` is the timing of what runs untuned, or of the best kernel's default left.

    ``decision`` is what was compared, see :func:`decision`; ``timings`` are sorted, the fastest first.
    """

    winner: Timing
    default: Timing
    decision: dict[str, Any]
    timings: list[Timing]
    drops: list[Drop]
    measurements: int


def rounds(count: int) -> Rounds:
    """The timings of the finals after rounds over ``count`` candidates."""
    return [(min(count, effort.FINALISTS) * effort.FINAL_ROUNDS, effort.FINAL)]


def needed(candidate: Timing, default: Timing) -> float:
    """Seconds by which ``candidate`` must be faster to replace the default: max(WIN_MARGIN, WIN_DEVIATIONS · MAD)."""
    return max(effort.WIN_MARGIN * default.p50, effort.WIN_DEVIATIONS * max(candidate.mad, default.mad))


def beats(candidate: Timing, default: Timing) -> bool:
    """Whether ``candidate`` is faster than ``default`` beyond the noise."""
    return default.p50 - candidate.p50 > needed(candidate, default)


def decide(trial: Trial, ranked: Sequence[Candidate]) -> Outcome:
    """Find the winner, trying the ``ranked`` candidates first.

    Raises TuningError when no candidate runs and computes correctly.
    """
    finalists = choose(trial, ranked)
    play(trial, finalists)
    standing = trial.standing(finalists)
    if not standing:
        raise TuningError(_nothing_ran(trial))
    default = trial.default if trial.default in standing else standing[0]
    baseline = trial.timings[default]
    others = [trial.timings[candidate] for candidate in standing if candidate != default]
    winner = next((timing for timing in others if beats(timing, baseline)), baseline)
    return Outcome(
        winner=winner,
        default=baseline,
        decision=decision(others[0] if winner is baseline and others else winner, baseline),
        timings=sorted(trial.timings.values(), key=lambda timing: timing.p50),
        drops=trial.drops,
        measurements=trial.measurements,
    )


def choose(trial: Trial, ranked: Sequence[Candidate]) -> list[Candidate]:
    """The best FINALISTS that compute correctly, a default among them.

    For one that does not, the next best steps in, so that a few wrong configs do not leave the default alone.
    """
    seats = effort.HURRIED_FINALISTS if trial.hurry() else effort.FINALISTS
    found: list[Candidate] = []
    tried: set[Candidate] = set()
    while (default := trial.default) is not None and default not in found:
        if trial.correct(default):
            found.append(default)
    for candidate in [*ranked, *trial.standing(trial.timings)]:
        if len(found) >= seats:
            break
        if candidate in trial.timings and candidate not in found and candidate not in tried:
            tried.add(candidate)
            if trial.correct(candidate):
                found.append(candidate)
    return trial.standing(found)


def play(trial: Trial, finalists: Sequence[Candidate]) -> None:
    """Time the finalists in turns; a finalist's groups are its rounds."""
    groups: dict[Candidate, list[Sequence[float]]] = {candidate: [] for candidate in finalists}
    for _ in range(effort.FINAL_ROUNDS):
        for candidate in [item for item in finalists if item in trial.timings]:
            samples = trial.time(candidate, effort.FINAL)
            if samples is not None:
                groups[candidate].append(samples)
                trial.note(candidate, groups[candidate])


def decision(challenger: Timing, default: Timing) -> dict[str, Any]:
    """What was compared, as an entry keeps it: the winner with the default, or where that stayed the fastest other.

    "kernel", "config" and "p50" of the challenger; "difference", how many seconds it was faster; "needed", how many it
    had to be; "noise", the larger median absolute deviation of the two; "won". A default that was alone challenged
    itself.
    """
    return {
        "kernel": challenger.kernel,
        "config": dict(challenger.config),
        "p50": challenger.p50,
        "difference": default.p50 - challenger.p50,
        "needed": needed(challenger, default),
        "noise": max(challenger.mad, default.mad),
        "won": beats(challenger, default),
    }


def _nothing_ran(trial: Trial) -> str:
    reasons = "; ".join(f"{drop.candidate}: {drop.reason}" for drop in trial.drops[:3])
    more = len(trial.drops) - 3
    return f"no config ran correctly: {reasons or 'there are none'}{f'; and {more} more' if more > 0 else ''}"
