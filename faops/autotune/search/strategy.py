"""What a search strategy is: whom it times, and in which rounds, before the finals that all strategies share."""

from __future__ import annotations

from abc import ABC, abstractmethod

from faops.autotune.effort import Budget
from faops.autotune.search.candidates import Candidate, Space
from faops.autotune.search.trial import Shortlist, Trial

Rounds = list[tuple[int, Budget]]  # number of timings, and what each may cost


class Strategy(ABC):
    """One way to spend measurements. ``name`` is what a person calls it, ``summary`` one line about it.

    A new strategy is a file beside this one and a line in :mod:`faops.autotune.search.strategies`.
    """

    name: str
    summary: str

    @abstractmethod
    def shortlist(self, space: Space) -> Shortlist:
        """Whom to time at all; all of ``space.defaults`` are among them."""

    @abstractmethod
    def rounds(self, count: int) -> Rounds:
        """The rounds before the finals, with ``count`` candidates on the shortlist."""

    @abstractmethod
    def run(self, trial: Trial, shortlist: Shortlist) -> list[Candidate]:
        """Make the rounds; those that are left, the most promising first."""
