"""What a search chooses among: the kernels that accept a problem, each with its configs."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from faops.autotune import effort
from faops.autotune.effort import Budget
from faops.device import DeviceProfile
from faops.problem import AttentionProblem
from faops.registry import Config, Kernel


@dataclass(frozen=True)
class Candidate:
    """A kernel with a config."""

    kernel: Kernel
    config: Config

    def __str__(self) -> str:
        return f"{self.kernel.id} [{self.config}]"


class Bench(Protocol):
    """What the search asks about a candidate. Both raise whatever the kernel raises."""

    def sample(self, candidate: Candidate, budget: Budget) -> Sequence[float]:
        """Samples in seconds a call."""

    def check(self, candidate: Candidate) -> None:
        """Raise TuningError when the candidate's results are wrong."""


@dataclass(frozen=True)
class Space:
    """The candidates of one problem. ``defaults`` are those that would run untuned, the first one first of all."""

    defaults: tuple[Candidate, ...]
    others: tuple[Candidate, ...]

    @property
    def all(self) -> tuple[Candidate, ...]:
        return self.defaults + self.others

    def __len__(self) -> int:
        return len(self.defaults) + len(self.others)


def space(
    problem: AttentionProblem, device: DeviceProfile, accepted: Sequence[Kernel], known: Sequence[Candidate] = ()
) -> Space:
    """Every candidate for ``problem``, or a sample of MAX_CONFIGS of them.

    Always in it: the default of each accepted kernel, and ``known`` (winners of near shapes).
    """
    defaults = tuple(Candidate(kernel, kernel.default_config(problem, device)) for kernel in accepted)
    kept = dict.fromkeys(candidate for candidate in known if candidate not in defaults)
    free = [
        candidate
        for kernel in accepted
        for config in kernel.configs(problem, device)
        if (candidate := Candidate(kernel, config)) not in kept and candidate not in defaults
    ]
    room = max(0, effort.MAX_CONFIGS - len(defaults) - len(kept))
    return Space(defaults, (*kept, *_sampled(free, room)))


def _sampled(candidates: list[Candidate], count: int) -> list[Candidate]:
    """``count`` of the candidates, drawn evenly from the kernels; all of them where there are no more."""
    if len(candidates) <= count:
        return candidates
    shuffled = random.Random(effort.SAMPLING_SEED).sample(candidates, len(candidates))
    turns: dict[str, int] = {}
    order = []
    for position, candidate in enumerate(shuffled):
        turn = turns[candidate.kernel.id] = turns.get(candidate.kernel.id, -1) + 1
        order.append((turn, position, candidate))
    return [candidate for _, _, candidate in sorted(order, key=lambda item: item[:2])[:count]]
