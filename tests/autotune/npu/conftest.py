"""A CPU that is an Ascend 910B to faops, with the contract double of torch_npu's operators and a clock of made-up time.

What is timed, stored and served here says nothing of an NPU's speed: contract-verified, not hardware-verified.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from faops import registry
from faops.autotune import effort
from faops.autotune.effort import Budget
from faops.autotune.measurement import bench
from faops.autotune.measurement.clocks import Call, Clock
from faops.autotune.measurement.conditions import Batch
from faops.registry import Kernel
from tests.npu import double
from tests.npu.support import ascend

Cost = Callable[[list[tuple[str, dict[str, Any]]]], float]  # seconds of a call, by the operators that it called


class OperatorClock(Clock):
    """A call takes as long as ``cost`` says of the operators that it calls."""

    def __init__(self, handle: double.Handle) -> None:
        self.handle = handle
        self.cost: Cost = lambda calls: 1e-3 * len(calls)

    def run(self, call: Call) -> float:
        before = len(self.handle.calls)
        call()
        return self.cost(self.handle.calls[before:])

    def batch(self, call: Call, estimate: float) -> Batch:
        return Batch([self.run(call)] * 5)


@pytest.fixture
def npu(monkeypatch: pytest.MonkeyPatch) -> Iterator[double.Handle]:
    """The double's handle. Only the kernels of the npu backend are there: on an NPU the others run no double."""
    with ascend() as handle:
        original = registry.kernels
        monkeypatch.setattr(registry, "kernels", lambda op=None: [one for one in original(op) if is_npus(one)])
        yield handle


def is_npus(kernel: Kernel) -> bool:
    return kernel.backend == "npu"


@pytest.fixture
def clock(npu: double.Handle, monkeypatch: pytest.MonkeyPatch) -> OperatorClock:
    """The clock of every bench; its ``cost`` is to be set."""
    made = OperatorClock(npu)
    monkeypatch.setattr(bench, "clock_for", lambda *given: made)
    monkeypatch.setattr(effort, "WARMUP_SECONDS", 0.0)
    for name in ("QUICK", "HALVING", "FINAL"):
        monkeypatch.setattr(effort, name, Budget(warmup=0.0, time_cap=0.1, min_samples=1))
    return made
