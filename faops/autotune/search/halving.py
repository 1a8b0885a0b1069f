"""Successive halving over the configs that the cost model likes best.

1. The model ranks the space (:mod:`faops.autotune.model`); the best stay, and with them always the default of every
   kernel and the winner of the nearest tuned shape. One place in ``doubt`` goes to configs drawn at random from the
   rest, because a model that errs may err about all configs of one kind.
2. All of these are timed coarsely. One in η survives and is timed better, until a handful is left: successive halving
   (Jamieson and Talwalkar 2016, "Non-stochastic best arm identification and hyperparameter optimization", algorithm 1,
   with η = 3 as in Li et al. 2018, "Hyperband"). A bad config costs one short timing; long ones are for those that
   are hard to tell apart.

A default that is too slow for a round is in the finals all the same: they compare with it.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from faops.autotune import effort
from faops.autotune.search.candidates import Candidate, Space
from faops.autotune.search.strategy import Rounds, Strategy
from faops.autotune.search.trial import Shortlist, Trial


@dataclass(frozen=True)
class Halving(Strategy):
    """The best of ``configs`` by the model, then of ``eta`` one in every round, then the finals."""

    configs: int = effort.MAX_CONFIGS
    eta: int = effort.HALVING_ETA
    doubt: int = effort.MODEL_DOUBT

    name = "halving"
    summary = f"time the {effort.MAX_CONFIGS} configs that the cost model ranks first, the better ones for longer"

    def shortlist(self, space: Space) -> Shortlist:
        room = min(len(space.others), max(0, self.configs - len(space.always)))
        trusted = room - room // self.doubt
        rest = space.others[trusted:]
        drawn = set(random.Random(effort.SAMPLING_SEED).sample(sorted(rest, key=str), room - trusted))
        left = [candidate for candidate in rest if candidate not in drawn]
        explored = (candidate for candidate in rest if candidate in drawn)
        chosen = (*space.always, *space.others[:trusted], *explored)
        return Shortlist(chosen, tuple(left[: effort.COMPILE_RESERVE]))

    def rounds(self, count: int) -> Rounds:
        found = [(count, effort.QUICK)]
        while count > effort.FINALISTS:
            count = self._survivors(count)
            found.append((count, effort.HALVING))
        return found

    def run(self, trial: Trial, shortlist: Shortlist) -> list[Candidate]:
        ranked = trial.round(trial.feed(trial, shortlist), effort.QUICK)
        while len(ranked) > effort.FINALISTS and not trial.hurry():
            ranked = trial.round(ranked[: self._survivors(len(ranked))], effort.HALVING)
        return ranked

    def _survivors(self, count: int) -> int:
        return max(effort.FINALISTS, -(-count // self.eta))
