"""Exhaustive search: time every config that is legal.

One long round over the whole space, then the finals. Nothing else is certain to meet the best config, and nothing
costs more: a few hundred timings a problem. It is the measure of the other strategies, which are replayed on what it
recorded (:mod:`faops.autotune.recording.sweep`). Configs that the cost model would leave out are timed too, so that its
judgement can be held against them.
"""

from __future__ import annotations

from dataclasses import dataclass

from faops.autotune import effort
from faops.autotune.search.candidates import Candidate, Space
from faops.autotune.search.strategy import Rounds, Strategy
from faops.autotune.search.trial import Shortlist, Trial


@dataclass(frozen=True)
class Exhaustive(Strategy):
    """Every legal config once, then the finals."""

    name = "exhaustive"
    summary = "time every legal config for long: slow, and certain"

    def shortlist(self, space: Space) -> Shortlist:
        return Shortlist((*space.all, *(candidate for candidate, _ in space.pruned)))

    def rounds(self, count: int) -> Rounds:
        return [(count, effort.SWEEP)]

    def run(self, trial: Trial, shortlist: Shortlist) -> list[Candidate]:
        return trial.round(trial.feed(trial, shortlist), effort.SWEEP)
