"""Random search: time configs drawn uniformly without replacement.

Of n draws at least one is among the best 5 % with probability 1 - 0.95^n, which is above 95 % from n = 59 on, whatever
the space looks like: 0.95^59 = 0.0485 (Bergstra and Bengio 2012, "Random search for hyper-parameter optimization",
use the same argument). It needs no model and can be misled by none; a model has to do better than this to be of use.
The defaults are timed beside what is drawn, because nothing can be accepted without them.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from faops.autotune import effort
from faops.autotune.search.candidates import Candidate, Space
from faops.autotune.search.strategy import Rounds, Strategy
from faops.autotune.search.trial import Shortlist, Trial


@dataclass(frozen=True)
class RandomDraws(Strategy):
    """``configs`` of the candidates in one round, then the finals. The same ``seed`` draws the same ones."""

    configs: int = effort.RANDOM_DRAWS
    seed: int = effort.SAMPLING_SEED

    name = "random"
    summary = f"time {effort.RANDOM_DRAWS} configs drawn at random, without the cost model"

    def shortlist(self, space: Space) -> Shortlist:
        free = sorted((*space.known, *space.others), key=str)
        room = min(len(free), max(0, self.configs - len(space.defaults)))
        return Shortlist((*space.defaults, *random.Random(self.seed).sample(free, room)))

    def rounds(self, count: int) -> Rounds:
        return [(count, effort.QUICK)]

    def run(self, trial: Trial, shortlist: Shortlist) -> list[Candidate]:
        return trial.round(trial.feed(trial, shortlist), effort.QUICK)
