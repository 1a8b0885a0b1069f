"""The strategies by name, and a search by one of them."""

from __future__ import annotations

from collections.abc import Callable

from faops.autotune.search import finals
from faops.autotune.search.candidates import Bench, Space
from faops.autotune.search.exhaustive import Exhaustive
from faops.autotune.search.finals import Outcome
from faops.autotune.search.halving import Halving
from faops.autotune.search.random_draws import RandomDraws
from faops.autotune.search.strategy import Rounds, Strategy
from faops.autotune.search.trial import Feed, Trial, Watch, as_they_stand
from faops.errors import ArgumentError

STRATEGIES: tuple[Strategy, ...] = (Halving(), RandomDraws(), Exhaustive())
NAMES: tuple[str, ...] = tuple(strategy.name for strategy in STRATEGIES)
DEFAULT = NAMES[0]


def by_name(name: str) -> Strategy:
    """The strategy of that name. Raises ArgumentError for an unknown one."""
    for strategy in STRATEGIES:
        if strategy.name == name:
            return strategy
    raise ArgumentError("strategy", repr(name), f"one of {', '.join(NAMES)}")


def planned(strategy: Strategy, space: Space) -> Rounds:
    """The rounds that a search will make, finals included, if nothing fails."""
    count = len(strategy.shortlist(space).chosen)
    return [*strategy.rounds(count), *finals.rounds(count)]


def search(
    space: Space,
    bench: Bench,
    strategy: Strategy = STRATEGIES[0],
    watch: Watch | None = None,
    hurry: Callable[[], bool] = lambda: False,
    feed: Feed = as_they_stand,
) -> Outcome:
    """Find the fastest correct candidate.

    The default is in the finals whatever its time, and wins unless another beats it beyond the noise. Once
    ``hurry()`` is true the search goes to its finals with what was timed so far. ``feed`` yields those on the shortlist
    that are ready to be timed. Raises TuningError when no candidate runs and computes correctly.
    """
    trial = Trial(space, bench, watch or Watch(), hurry, feed)
    return finals.decide(trial, strategy.run(trial, strategy.shortlist(space)))
