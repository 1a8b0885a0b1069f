"""Compiling candidates in a pool of processes while those that are ready are timed.

What does not compile is dropped, and so is what the cost model rules out once it knows the registers and the spills of
the real code, defaults and known winners excepted. The reserve steps in, ranked anew by what was compiled.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator, Sequence
from typing import Protocol

from faops.autotune import model
from faops.autotune.search.candidates import Candidate
from faops.autotune.search.trial import Drop, Shortlist, Trial
from faops.device import DeviceProfile
from faops.errors import FaopsError, TuningError
from faops.footprint import Resources
from faops.problem import AttentionProblem

Compiled = Resources | None | FaopsError


class Pool(Protocol):
    """Processes that compile; see :class:`faops.autotune.measurement.pool.CompilePool`."""

    def compiled(
        self, problem: AttentionProblem, profile: DeviceProfile, candidates: Sequence[Candidate]
    ) -> Iterator[tuple[Candidate, Compiled]]:
        """Each candidate with what became of it, in the order in which they are done."""


class Ahead:
    """Feeds a trial (:data:`~faops.autotune.search.trial.Feed`) with the candidates that are compiled."""

    def __init__(self, pool: Pool, problem: AttentionProblem, profile: DeviceProfile) -> None:
        self.pool, self.problem, self.profile = pool, problem, profile

    def __call__(self, trial: Trial, shortlist: Shortlist) -> Generator[Candidate, None, None]:
        """The chosen ones in the order in which they are compiled, then as many of the reserve as were dropped."""
        everyone = (*shortlist.chosen, *shortlist.reserve)
        waiting = dict.fromkeys(everyone)
        compiled: dict[Candidate, Resources] = {}
        dropped = 0
        try:
            with contextlib.closing(self._compile(everyone)) as results:
                for candidate, result in results:
                    waiting.pop(candidate)
                    trial.watch.compiled(len(everyone) - len(waiting), len(everyone))
                    drop = self._objection(trial, candidate, result)
                    if isinstance(result, Resources):
                        compiled[candidate] = result
                    if drop is not None:
                        trial.drop(drop)
                        dropped += candidate in shortlist.chosen
                    elif candidate in shortlist.chosen:
                        yield candidate
        except TuningError:  # there is no pool: each compiles when it is first timed
            yield from (candidate for candidate in waiting if candidate in shortlist.chosen)
        yield from self._stand_ins(trial, shortlist, compiled)[:dropped]

    def _compile(self, candidates: Sequence[Candidate]) -> Generator[tuple[Candidate, Compiled], None, None]:
        yield from self.pool.compiled(self.problem, self.profile, candidates)

    def _objection(self, trial: Trial, candidate: Candidate, result: Compiled) -> Drop | None:
        """Why a compiled candidate should not be timed."""
        if isinstance(result, FaopsError):
            return Drop.of(candidate, result, "uncompiled")
        if result is None or candidate in trial.space.always:
            return None
        said = model.predict(candidate.kernel, self.problem, self.profile, candidate.config, result)
        if said is None or not said.obstacle:
            return None
        return Drop(candidate, "spilled" if result.spill_bytes else "failed", said.obstacle)

    def _stand_ins(self, trial: Trial, shortlist: Shortlist, compiled: dict[Candidate, Resources]) -> list[Candidate]:
        """The reserve that was not dropped, the most promising first."""
        out = {drop.candidate for drop in trial.drops}
        left = [candidate for candidate in shortlist.reserve if candidate not in out]
        return [candidate for candidate, _ in model.rank(left, self.problem, self.profile, compiled)[0]]
