"""A recorded sweep: how long every config of one problem takes, in a file that searches can be replayed on.

The file has the form of a journal (:mod:`faops.autotune.recording.journal`) in which every legal config is timed. What
a search would have found, and at what cost, can then be told without the device
(:mod:`faops.autotune.recording.replay`).

Sweeps are measured, or made up from the cost model where the device is not at hand. A made-up sweep says so in its
header, and can tell how a search deals with a model that errs, but nothing about the device.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from faops import dispatch, registry
from faops.autotune import effort
from faops.autotune.effort import Budget
from faops.autotune.measurement.clocks import summarize
from faops.autotune.recording import journal
from faops.autotune.recording.journal import Header, Named, Record, header_of
from faops.autotune.search.candidates import Bench, Candidate, Space, ranked, unranked
from faops.autotune.search.exhaustive import Exhaustive
from faops.autotune.search.trial import Drop
from faops.device import DeviceProfile
from faops.files import write_whole
from faops.problem import AttentionProblem
from faops.registry import Config

PASSES = 3  # over the whole space, so that a slow drift of the machine meets all configs alike
KEPT_SAMPLES = 10  # of a pass, evenly spread over it
KEPT_DIGITS = 5

MODEL_ERROR = 0.2  # of a made-up sweep: standard deviation of the logarithm of time over prediction
NOISE = 0.01  # and of the logarithm of a sample over the config's time
MODELLED_SAMPLES = 30

Tell = Callable[[int, int, Candidate], None]


@dataclass(frozen=True)
class Sweep:
    """The timings of every config of one problem on one device."""

    header: Header
    records: tuple[Record, ...]

    @property
    def problem(self) -> AttentionProblem:
        return AttentionProblem.from_dict(self.header.problem)

    @property
    def profile(self) -> DeviceProfile:
        return DeviceProfile(**self.header.profile)

    @property
    def modelled(self) -> bool:
        """Whether it was made up from the cost model."""
        return self.header.provenance == "modelled"

    @cached_property
    def space(self) -> Space:
        """The candidates, ranked by the cost model of now; configs of kernels that exist no longer are left out."""
        always = [*_candidates(self.header.defaults), *_candidates(self.header.known)]
        every = dict.fromkeys(_candidates(_named(record) for record in self.records))
        others = tuple(candidate for candidate in every if candidate not in always)
        count = len(_candidates(self.header.defaults))
        found = Space(tuple(always[:count]), tuple(always[count:]), others)
        return ranked(self.problem, self.profile, found)

    @cached_property
    def passes(self) -> dict[Candidate, list[Sequence[float]]]:
        """The samples of every candidate, by pass, in seconds a call."""
        found: dict[Candidate, list[Sequence[float]]] = {}
        for record, candidate in self._known():
            if record.budget is not None and not record.kind:
                found.setdefault(candidate, []).append(record.samples)
        return found

    @cached_property
    def failures(self) -> dict[Candidate, Record]:
        """The candidates that did not run, or computed something wrong, each with the record that tells."""
        return {candidate: record for record, candidate in self._known() if record.kind}

    @cached_property
    def seconds(self) -> dict[Candidate, float]:
        """Seconds a call of every candidate that runs correctly, as well as the sweep knows."""
        correct = {candidate: passes for candidate, passes in self.passes.items() if candidate not in self.failures}
        return {item: summarize(item.kernel.id, item.config, passes).p50 for item, passes in correct.items()}

    @property
    def best(self) -> Candidate:
        """The fastest. Raises ValueError for a sweep in which nothing ran."""
        return min(self.seconds, key=lambda candidate: self.seconds[candidate])

    def write(self, path: Path) -> None:
        """Write the sweep to a file, whole or not at all. Raises OSError."""
        write_whole(path, self.header.to_line() + "".join(record.to_line() for record in self.records))

    def _known(self) -> Iterator[tuple[Record, Candidate]]:
        for record in self.records:
            for candidate in _candidates([_named(record)]):
                yield record, candidate


def read(path: Path) -> Sweep:
    """The sweep in a file. Raises OSError, and ValueError for a file that is none."""
    header, records = journal.read(path)
    return Sweep(header, tuple(records))


def record(
    problem: AttentionProblem,
    profile: DeviceProfile,
    bench: Bench,
    tell: Tell = lambda done, total, candidate: None,
    passes: int = PASSES,
    budget: Budget = effort.SWEEP,
) -> Sweep:
    """Time every legal config of ``problem`` ``passes`` times and check it once.

    ``tell`` gets (timings so far, of how many, candidate). Raises NoKernelError when no kernel runs the problem.
    """
    space = _legal(problem, profile)
    everyone = Exhaustive().shortlist(space).chosen
    found: list[Record] = []
    broken: set[Candidate] = set()
    for number in range(passes):
        for place, candidate in enumerate(random.Random(number).sample(everyone, len(everyone))):
            tell(number * len(everyone) + place, passes * len(everyone), candidate)
            if candidate not in broken:
                found += _timed(bench, candidate, budget, check=number == 0)
                if found[-1].kind:
                    broken.add(candidate)
    return Sweep(header_of(problem, profile, space, Exhaustive.name), tuple(found))


def _timed(bench: Bench, candidate: Candidate, budget: Budget, check: bool) -> list[Record]:
    """The records of one timing, and of a check; the last one tells if the candidate failed."""
    kernel, config = candidate.kernel.id, candidate.config
    try:
        samples = bench.sample(candidate, budget)
    except Exception as error:  # one config that cannot run must not end the sweep
        drop = Drop.of(candidate, error)
        return [Record(kernel, config, budget, (), drop.kind, drop.reason)]
    found = [Record(kernel, config, budget, thinned(samples))]
    try:
        if check:
            bench.check(candidate)
    except Exception as error:
        drop = Drop.of(candidate, error, "wrong")
        found.append(Record(kernel, config, None, (), drop.kind, drop.reason))
    return found


def thinned(samples: Sequence[float]) -> tuple[float, ...]:
    """Up to KEPT_SAMPLES of the samples, evenly spread, rounded to KEPT_DIGITS significant digits."""
    count = min(KEPT_SAMPLES, len(samples))
    picked = (samples[(2 * index + 1) * len(samples) // (2 * count)] for index in range(count))
    return tuple(float(f"{value:.{KEPT_DIGITS}g}") for value in picked)


def modelled(
    problem: AttentionProblem, profile: DeviceProfile, seed: int, error: float = MODEL_ERROR, noise: float = NOISE
) -> Sweep:
    """A made-up sweep of ``problem`` on ``profile``, which no device has to be.

    A config's time is the cost model's prediction times a log-normal factor of its own, so that the model errs as
    models do: by ``error``, the standard deviation of the logarithm. Samples scatter about it by ``noise``. What the
    model rules out fails. Configs without a prediction are as slow as the slowest with one, before the factor. Raises
    NoKernelError when no kernel runs the problem.
    """
    space = _legal(problem, profile)
    numbers = random.Random(seed)
    slowest = max(space.predicted.values(), default=1e-3)
    obstacles = dict(space.pruned)
    found = []
    for candidate in sorted(Exhaustive().shortlist(space).chosen, key=str):
        kernel, config = candidate.kernel.id, candidate.config
        if candidate in obstacles:
            found.append(Record(kernel, config, effort.SWEEP, (), "failed", obstacles[candidate]))
            continue
        time = space.predicted.get(candidate, slowest) * math.exp(numbers.gauss(0, error))
        samples = (time * math.exp(numbers.gauss(0, noise)) for _ in range(MODELLED_SAMPLES))
        found.append(Record(kernel, config, effort.SWEEP, tuple(float(f"{s:.{KEPT_DIGITS}g}") for s in samples)))
    note = f"cost model times exp(normal(0, {error:g})) a config and exp(normal(0, {noise:g})) a sample, seed {seed}"
    return Sweep(header_of(problem, profile, space, Exhaustive.name, modelled=True, note=note), tuple(found))


def _legal(problem: AttentionProblem, profile: DeviceProfile) -> Space:
    accepted = dispatch.runnable(registry.kernels(problem.op), problem, profile)
    return ranked(problem, profile, unranked(problem, profile, accepted))


def _named(record: Record) -> Named:
    return {"kernel": record.kernel, "config": record.config}


def _candidates(names: Iterator[Named] | Sequence[Named]) -> list[Candidate]:
    """The candidates of those names whose kernels are registered."""
    found = ((registry.get(name["kernel"]), Config(name["config"])) for name in names)
    return [Candidate(kernel, config) for kernel, config in found if kernel is not None]
