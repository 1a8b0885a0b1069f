"""The order in which candidates are worth trying."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Protocol, TypeVar

from faops.autotune.model.predict import Prediction, predict
from faops.device import DeviceProfile
from faops.footprint import Resources
from faops.problem import AttentionProblem
from faops.registry import Config, Kernel


class Choice(Protocol):
    """A kernel with a config; hashable."""

    @property
    def kernel(self) -> Kernel: ...

    @property
    def config(self) -> Config: ...


C = TypeVar("C", bound=Choice)
Ranked = list[tuple[C, Prediction | None]]
Pruned = list[tuple[C, Prediction]]


def rank(
    candidates: Sequence[C],
    problem: AttentionProblem,
    device: DeviceProfile,
    resources: Mapping[C, Resources] = MappingProxyType({}),
) -> tuple[Ranked[C], Pruned[C]]:
    """(ranked, pruned): what may run, the most promising first, and what has an obstacle.

    Candidates of kernels that nobody can predict stand in turns with the others, each kernel's in their own order.
    """
    predicted: list[tuple[C, Prediction]] = []
    pruned: Pruned[C] = []
    unknown: dict[str, list[C]] = {}
    for candidate in candidates:
        found = predict(candidate.kernel, problem, device, candidate.config, resources.get(candidate))
        if found is None:
            unknown.setdefault(candidate.kernel.id, []).append(candidate)
        elif found.obstacle:
            pruned.append((candidate, found))
        else:
            predicted.append((candidate, found))
    best_first: Ranked[C] = [*sorted(predicted, key=lambda one: one[1].seconds)]
    others: list[Ranked[C]] = [[(candidate, None) for candidate in group] for group in unknown.values()]
    return _in_turns([best_first, *others]), pruned


def _in_turns(queues: Sequence[Ranked[C]]) -> Ranked[C]:
    """One of each queue, then the next of each, until all are empty."""
    rounds = itertools.zip_longest(*queues)
    return [one for turn in rounds for one in turn if one is not None]
