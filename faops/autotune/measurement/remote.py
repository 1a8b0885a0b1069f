"""Measuring in a child process: a config that crashes or hangs costs itself and no more.

One child serves all problems of a run, because it takes seconds to start; another takes its place when it is gone.
"""

from __future__ import annotations

import builtins
import contextlib
import sys
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch

from faops import errors, registry
from faops.autotune import effort
from faops.autotune.effort import Budget
from faops.autotune.measurement.bench import DeviceBench
from faops.autotune.measurement.clocks import Sampled
from faops.autotune.measurement.conditions import Conditions
from faops.autotune.measurement.process import AVAILABLE, Answer, Child, Closable, Request
from faops.autotune.measurement.worker import fingerprint
from faops.autotune.search.candidates import Candidate
from faops.device import DeviceProfile
from faops.errors import CompileError, CrashedError, FaopsWarning, TuningError
from faops.problem import AttentionProblem
from faops.registry import Kernel


class Helper:
    """A child process with faops's kernels, started when it is first needed and again when it is gone."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self.child: Child | None = None
        self._known: dict[str, str] | None = None  # fingerprints by id of the child's kernels; None: not told yet
        self._same: dict[Kernel, bool] = {}  # what knows() has answered

    def begin(self) -> Child:
        """The child, which may have begun to start only now. Raises TuningError where no process can be started."""
        if self.child is None or self.child.gone:
            self.close()
            self.child = Child()
            request = {"do": "prepare", "threads": self.threads, "modules": modules()}
            self.child.ask(request, effort.START_LIMIT_SECONDS)
        return self.child

    @property
    def current(self) -> Child:
        """The child that was begun."""
        if self.child is None:
            raise TuningError("no process was started")
        return self.child

    @property
    def ready(self) -> bool:
        """Whether the child has started."""
        return self._known is not None

    def started(self, answer: Answer) -> None:
        """Note the child's first answer."""
        self._known = value_of(answer)

    def start(self) -> Child:
        """The child, ready. Raises TuningError where none can be started."""
        child = self.begin()
        if not self.ready:
            try:
                self.started(child.wait())
            except CrashedError as error:
                raise cannot_start(error) from None
        return child

    def knows(self, kernel: Kernel) -> bool:
        """Whether the child, once ready, has ``kernel``: not one that a script has registered, say."""
        if kernel not in self._same:
            self._same[kernel] = self._known is not None and self._known.get(kernel.id) == fingerprint(kernel)
        return self._same[kernel]

    def close(self) -> None:
        """End the child; a later request starts another."""
        if self.child is not None:
            self.child.close()
        self.child = self._known = None
        self._same = {}


def cannot_start(error: CrashedError) -> TuningError:
    """What is wrong when it was no config that ended a process."""
    return TuningError(f"no process can be started to measure or compile in: {error}")


DEVICE_MODULES = ("torch_npu",)  # those that add a type of device to torch


def modules() -> list[str]:
    """Modules to import so that a child knows the same devices and the kernels of third parties; those of faops are
    registered anyway. A device's module comes first, and counts here where this process has it: torch loads it by
    itself, but not where ``TORCH_DEVICE_BACKEND_AUTOLOAD=0`` says so."""
    found = {type(kernel).__module__ for kernel in registry.kernels()}
    others = sorted(name for name in found if name != "__main__" and not name.startswith("faops."))
    return [*(name for name in DEVICE_MODULES if name in sys.modules), *others]


def value_of(answer: Answer) -> Any:
    """The value of an answer; raises the error that it tells instead, and repeats warnings."""
    for text in answer.get("warnings", ()):
        warnings.warn(text, FaopsWarning, stacklevel=2)
    if "error" in answer:
        raise rebuilt(answer["error"]["type"], answer["error"]["message"])
    return answer["value"]


def rebuilt(name: str, message: str) -> Exception:
    """An exception of faops or Python by the name of its class; a TuningError that names it for any other."""
    kind = getattr(errors, name, None) or getattr(builtins, name, None)
    if isinstance(kind, type) and issubclass(kind, Exception):
        with contextlib.suppress(TypeError):  # it takes more than a message
            return kind(message)
    return TuningError(f"{name}: {message}")


class Measuring(Closable):
    """Benches for problems on one device, all of one child process. A context manager; the child ends with it.

    Raises nothing until a bench is asked for.
    """

    def __init__(self, device: torch.device | str, profile: DeviceProfile) -> None:
        self.device = torch.device(device)
        self.profile = profile
        self.helper = Helper(torch.get_num_threads())
        self.opened: tuple[Child, AttentionProblem] | None = None

    def close(self) -> None:
        """End the child."""
        self.helper.close()

    def bench(self, problem: AttentionProblem) -> RemoteBench | DeviceBench:
        """A bench whose inputs are made; one in this process on systems where no child can be spoken to.

        Raises TuningError when the inputs cannot be made, or no child can be started.
        """
        if not AVAILABLE:
            return DeviceBench(problem, self.device, self.profile)
        self.open(problem)
        return RemoteBench(problem, self)

    def knows(self, kernel: Kernel) -> bool:
        """Whether ``kernel`` is measured in a child. Raises TuningError when none can be started."""
        if not AVAILABLE:
            return False
        self.helper.start()
        return self.helper.knows(kernel)

    def open(self, problem: AttentionProblem) -> Child:
        """A child in which ``problem`` is open. Raises TuningError when its inputs cannot be made."""
        child = self.helper.start()
        if self.opened != (child, problem):
            self.opened = None
            request = {"do": "open", "problem": asdict(problem), "device": str(self.device),
                       "profile": self.profile.as_dict()}  # fmt: skip
            limit = effort.OPEN_LIMIT_SECONDS + effort.CHECK_LIMIT_CALLS * call_seconds(problem, self.profile)
            try:
                self.value(child, request, limit)
            except CrashedError as error:  # the fault of no config
                raise TuningError(f"{problem}: inputs cannot be made: {error}") from None
            self.opened = (child, problem)
        return child

    def value(self, child: Child, request: Request, limit: float) -> Any:
        """Ask the child. After an error it is replaced where the error may have spoilt its device."""
        try:
            return value_of(child.request(request, limit))
        except CompileError:
            raise
        except Exception:
            if self.device.type != "cpu":
                child.kill()
            raise


class RemoteBench:
    """Times and checks candidates of one problem in a child process.

    A config that ends the child raises CrashedError, one that gives no answer in time HangError, and the next request
    gets a new child. Kernels that only this process knows are measured in it. ``conditions`` are those of all samples
    so far.
    """

    def __init__(self, problem: AttentionProblem, measuring: Measuring) -> None:
        self.problem = problem
        self.measuring = measuring
        self.conditions = Conditions()
        self._here: DeviceBench | None = None

    def sample(self, candidate: Candidate, budget: Budget) -> Sequence[float]:
        """Samples in seconds a call of ``kernel.launch``."""
        sampled = self._sampled(candidate, budget)
        self.conditions = self.conditions.merged(sampled.conditions)
        return sampled.samples

    def _sampled(self, candidate: Candidate, budget: Budget) -> Sampled:
        if not self.measuring.knows(candidate.kernel):
            return self._bench_here().sampled(candidate, budget)
        limit = effort.REQUEST_LIMIT_SECONDS + effort.WARMUP_SECONDS + budget.warmup + budget.time_cap
        request = {"do": "sample", **described(candidate), "budget": asdict(budget)}
        value = self._value(request, limit, effort.SAMPLE_LIMIT_CALLS)
        return Sampled(value["samples"], Conditions.from_dict(value["conditions"]))

    def check(self, candidate: Candidate) -> None:
        """Compare the candidate's results with those of a trusted kernel in a wider dtype. Raises TuningError."""
        if not self.measuring.knows(candidate.kernel):
            self._bench_here().check(candidate)
            return
        self._value({"do": "check", **described(candidate)}, effort.REQUEST_LIMIT_SECONDS, effort.CHECK_LIMIT_CALLS)

    def _value(self, request: Request, limit: float, calls: float) -> Any:
        child = self.measuring.open(self.problem)
        return self.measuring.value(child, request, limit + calls * call_seconds(self.problem, self.measuring.profile))

    def _bench_here(self) -> DeviceBench:
        if self._here is None:
            self._here = DeviceBench(self.problem, self.measuring.device, self.measuring.profile)
        return self._here


def described(candidate: Candidate) -> Request:
    """A candidate as the child understands it."""
    return {"kernel": candidate.kernel.id, "config": dict(candidate.config)}


def call_seconds(problem: AttentionProblem, profile: DeviceProfile) -> float:
    """A rough guess of what a call takes, from assumed or published rates."""
    assumed = effort.ASSUMED_CPU_FLOPS_A_THREAD * max(1, profile.threads or profile.units)
    rate = assumed if profile.torch_type == "cpu" else profile.matrix_flops or effort.ASSUMED_DEVICE_FLOPS
    return effort.ASSUMED_CALL_SECONDS + problem.flops() / rate
