"""An empty cache for each test, and registered made-up kernels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from faops import dispatch, registry
from faops.autotune import cache as cache_module
from faops.autotune.cache import TuningCache
from faops.device import DeviceProfile, detect
from faops.registry import Kernel

from .support import FakeKernel


@pytest.fixture(autouse=True)
def _idle(idle_machine: None) -> None:
    """Every test here tunes on a machine that is idle as far as the tuner can see."""


@pytest.fixture
def cache() -> TuningCache:
    """An empty cache, the one that the settings name. Warnings of earlier tests count no longer."""
    cache_module._warned.clear()
    return TuningCache()


@pytest.fixture
def cpu() -> DeviceProfile:
    return detect("cpu")


@pytest.fixture
def register() -> Iterator[Callable[[Kernel], Kernel]]:
    """Registers kernels for one test."""
    added: list[Kernel] = []

    def add(kernel: Kernel) -> Kernel:
        registry.register(kernel)
        added.append(kernel)
        return kernel

    yield add
    for kernel in added:
        registry.unregister(kernel.id)
    dispatch.forget()


@pytest.fixture
def kernel(register: Callable[[Kernel], Kernel]) -> FakeKernel:
    """A registered fake kernel that comes before every real one."""
    fake = FakeKernel()
    register(fake)
    return fake


@pytest.fixture
def only_fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where fake kernels are registered for an op the tuner sees no others: made-up times are about them alone."""
    original = registry.kernels

    def kernels(op: Any = None) -> list[Kernel]:
        found = original(op)
        return [kernel for kernel in found if kernel.backend == "fake"] or found

    monkeypatch.setattr(registry, "kernels", kernels)
