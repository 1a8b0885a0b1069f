"""Where the candidates of a run are measured and compiled: in processes of their own, or in this one."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from types import TracebackType

import torch

from faops.autotune.effort import Budget
from faops.autotune.measurement.bench import DeviceBench
from faops.autotune.measurement.conditions import Conditions
from faops.autotune.measurement.pool import CompilePool, compiles
from faops.autotune.measurement.remote import Measuring
from faops.autotune.recording.journal import Observant
from faops.autotune.search.ahead import Ahead
from faops.autotune.search.candidates import Bench, Candidate, Space
from faops.autotune.search.trial import Feed, as_they_stand
from faops.device import DeviceProfile
from faops.problem import AttentionProblem
from faops.registry import Kernel

MakeBench = Callable[[AttentionProblem, torch.device, DeviceProfile], Bench]


class Benches:
    """Benches for the problems of one run. A context manager: its processes start when needed and end with it.

    ``make_bench`` stands in for the real device, in this process; without it, ``isolate`` decides where to measure.
    """

    def __init__(
        self, device: torch.device, profile: DeviceProfile, make_bench: MakeBench | None, isolate: bool
    ) -> None:
        self.device, self.profile = device, profile
        self.make_bench = make_bench or (None if isolate else DeviceBench)
        self.simulated = make_bench is not None
        self._open = contextlib.ExitStack()
        self._measuring: Measuring | None = None
        self._pool: CompilePool | None = None

    def __enter__(self) -> Benches:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the processes."""
        self._open.close()

    def bench(self, problem: AttentionProblem) -> Bench:
        """A bench whose inputs are made. Raises TuningError when they cannot be."""
        if self.make_bench is not None:
            return self.make_bench(problem, self.device, self.profile)
        return self.measuring.bench(problem)

    @property
    def measuring(self) -> Measuring:
        """The process in which configs are measured."""
        if self._measuring is None:
            self._measuring = self._open.enter_context(Measuring(self.device, self.profile))
        return self._measuring

    def outsiders(self, kernels: list[Kernel]) -> list[str]:
        """Ids of the kernels that only this process knows, where others are measured in one of their own."""
        if self.make_bench is not None:
            return []
        return [kernel.id for kernel in kernels if not self.measuring.knows(kernel)]

    def feed(self, problem: AttentionProblem, space: Space) -> Feed:
        """How candidates get ready to be timed: compiled ahead where a device other than the CPU measures meanwhile."""
        if self.simulated or self.device.type == "cpu" or not any(map(compiles, kernels_of(space))):
            return as_they_stand
        if self._pool is None:
            self._pool = self._open.enter_context(CompilePool())
        return Ahead(self._pool, problem, self.profile)


class Patient:
    """A bench that waits for leave before every timing and every check."""

    def __init__(self, bench: Bench, wait_for_leave: Callable[[], None]) -> None:
        self.bench = bench
        self.wait_for_leave = wait_for_leave

    def sample(self, candidate: Candidate, budget: Budget) -> Sequence[float]:
        """Samples in seconds a call."""
        self.wait_for_leave()
        return self.bench.sample(candidate, budget)

    def check(self, candidate: Candidate) -> None:
        """Raise TuningError when the candidate's results are wrong."""
        self.wait_for_leave()
        self.bench.check(candidate)

    @property
    def conditions(self) -> Conditions:
        """Those of the bench, as far as it knows them."""
        return self.bench.conditions if isinstance(self.bench, Observant) else Conditions()


def kernels_of(space: Space) -> list[Kernel]:
    """Each kernel of a space once, in order."""
    return list(dict.fromkeys(candidate.kernel for candidate in space.all))
