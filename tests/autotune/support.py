"""Made-up kernels whose speed is known, and entries about them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from faops.autotune import effort
from faops.autotune.cache import TuningCache, environment, misses
from faops.autotune.cache.entry import Entry, Timing, problem_dict
from faops.autotune.search.candidates import Candidate
from faops.device import DeviceProfile
from faops.dispatch import Plan
from faops.errors import TuningError
from faops.problem import AttentionProblem
from faops.registry import Config, Decision, Kernel, decide

PROBLEM = AttentionProblem(dtype="float32", seqlen_q=128, seqlen_k=128, heads_q=4, heads_kv=2)


class FakeKernel(Kernel):
    """A forward kernel with any configs, that any device and problem suits."""

    backend = "fake"
    op = "forward"

    def __init__(self, name: str = "forward", blocks: int = 8, priority: int = 1000, source: str = "source") -> None:
        self.name, self.blocks, self.priority, self.source = name, blocks, priority, source
        self.reasons: tuple[str, ...] = ()

    def check(self, problem: AttentionProblem, device: DeviceProfile) -> Decision:
        return decide(self.reasons)

    def configs(self, problem: AttentionProblem, device: DeviceProfile) -> list[Config]:
        return [Config(block=block) for block in range(self.blocks)]

    def default_config(self, problem: AttentionProblem, device: DeviceProfile) -> Config:
        return Config(block=0)

    def launch(self, inputs: Any, config: Config) -> Any:
        raise AssertionError("these tests time kernels without running them")

    def source_hash(self) -> str:
        return self.source


def steady(seconds: float, spread: float = 0.001) -> list[float]:
    """Samples whose median is ``seconds`` and whose median absolute deviation is ``spread`` of it."""
    return [seconds * (1 + spread * step) for step in (-2, -1, -1, 0, 0, 0, 1, 1, 2)]


@dataclass
class FakeBench:
    """Answers with known times: ``seconds(candidate)`` gives the samples, or raises."""

    samples: Callable[[Candidate], list[float]]
    wrong: Callable[[Candidate], bool] = lambda candidate: False
    timed: list[tuple[Candidate, effort.Budget]] = field(default_factory=list)
    checked: list[Candidate] = field(default_factory=list)

    def sample(self, candidate: Candidate, budget: effort.Budget) -> list[float]:
        self.timed.append((candidate, budget))
        return self.samples(candidate)

    def check(self, candidate: Candidate) -> None:
        self.checked.append(candidate)
        if self.wrong(candidate):
            raise TuningError("wrong result")

    def __call__(self, problem: AttentionProblem, device: torch.device, profile: DeviceProfile) -> FakeBench:
        """So that an instance can stand for the function that makes benches."""
        return self


def make_entry(device: DeviceProfile, problem: AttentionProblem = PROBLEM, **changes: Any) -> Entry:
    """An entry in which a fake kernel's block 3 is twice as fast as its default."""
    values: dict[str, Any] = {
        "key": problem.key(),
        "problem": problem_dict(problem),
        "device": device.identity,
        "environment": environment.versions(),
        "kernel": "fake.forward",
        "source_hash": "source",
        "config": Config(block=3),
        "p50": 0.5,
        "default_kernel": "fake.forward",
        "default_config": Config(block=0),
        "default_p50": 1.0,
        "speedup": 2.0,
        "timings": (Timing("fake.forward", Config(block=3), 0.4, 0.5, 0.6, 0.01, 10, False),),
        "dropped": ({"config": "fake.forward [block=7]", "reason": "RuntimeError: no"},),
        "measurements": 5,
        "faops_version": "0.1",
        "date": "2026-11-21",
    }
    return Entry(**{**values, **changes})


def untuned(problem: AttentionProblem, device: DeviceProfile) -> None:
    """What a call on ``device`` does once it has run ``problem`` by default."""
    misses.record(problem, device, Plan(FakeKernel(), Config(block=0), "default", ""))


def missed(cache: TuningCache) -> list[Path]:
    """Every file below a directory of misses, whatever it is."""
    return sorted(cache.root.rglob("misses/*"))
