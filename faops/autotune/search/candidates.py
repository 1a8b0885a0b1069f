"""What a search chooses among: the kernels that accept a problem, each with its configs."""

from __future__ import annotations

import random
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from faops.autotune import effort, model
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
    """The candidates of one problem.

    ``defaults`` are those that would run untuned, one a kernel, the first one first of all; ``known`` the winners of
    near shapes; ``others`` all the rest that may run, the most promising first; ``pruned`` those that the cost model
    leaves out, with its reason. ``predicted`` has seconds a call for those that the model knows.
    """

    defaults: tuple[Candidate, ...]
    known: tuple[Candidate, ...] = ()
    others: tuple[Candidate, ...] = ()
    pruned: tuple[tuple[Candidate, str], ...] = ()
    predicted: Mapping[Candidate, float] = field(default_factory=dict)

    @property
    def always(self) -> tuple[Candidate, ...]:
        """Those that every strategy times."""
        return self.defaults + self.known

    @property
    def all(self) -> tuple[Candidate, ...]:
        """Those that may run."""
        return self.always + self.others

    def __len__(self) -> int:
        return len(self.defaults) + len(self.known) + len(self.others)


def space(
    problem: AttentionProblem,
    device: DeviceProfile,
    accepted: Sequence[Kernel],
    known: Sequence[Candidate] = (),
    barred: Container[str] = (),
) -> Space:
    """Every candidate for ``problem``, ranked by the cost model.

    The default of each accepted kernel and ``known`` (winners of near shapes) are never pruned. ``barred`` names
    candidates that are left out altogether: they crashed or hung before.
    """
    return ranked(problem, device, unranked(problem, device, accepted, known, barred))


def unranked(
    problem: AttentionProblem,
    device: DeviceProfile,
    accepted: Sequence[Kernel],
    known: Sequence[Candidate] = (),
    barred: Container[str] = (),
) -> Space:
    """Every candidate for ``problem`` as the kernels list them, without asking the cost model."""
    defaults = [Candidate(kernel, kernel.default_config(problem, device)) for kernel in accepted]
    legal = [Candidate(kernel, config) for kernel in accepted for config in kernel.configs(problem, device)]
    met: set[Candidate] = set()

    def new(group: Sequence[Candidate]) -> tuple[Candidate, ...]:
        found = tuple(item for item in dict.fromkeys(group) if item not in met and str(item) not in barred)
        met.update(found)
        return found

    return Space(new(defaults), new(known), new(legal))


def ranked(problem: AttentionProblem, device: DeviceProfile, found: Space) -> Space:
    """The same candidates, ranked and pruned by the cost model. The order of ``found.others`` changes nothing."""
    hopeful, hopeless = model.rank([*found.always, *_shuffled(found.others)], problem, device)
    always = set(found.always)
    return Space(
        defaults=found.defaults,
        known=found.known,
        others=tuple(candidate for candidate, _ in hopeful if candidate not in always),
        pruned=tuple((candidate, said.obstacle) for candidate, said in hopeless if candidate not in always),
        predicted={candidate: said.seconds for candidate, said in hopeful if said is not None},
    )


def _shuffled(candidates: Sequence[Candidate]) -> list[Candidate]:
    """In an order that does not depend on theirs: of those that no model ranks, the first few are a fair sample."""
    ordered = sorted(candidates, key=str)
    return random.Random(effort.SAMPLING_SEED).sample(ordered, len(ordered))
