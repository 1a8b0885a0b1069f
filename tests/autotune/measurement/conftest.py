"""The troublesome kernel, registered for one test."""

from __future__ import annotations

import importlib
from collections.abc import Iterator

import pytest

from faops import registry
from faops.registry import Kernel


@pytest.fixture
def troublesome() -> Iterator[Kernel]:
    """Its module is imported here and not above, since that registers it."""
    kernel: Kernel = importlib.import_module(f"{__package__}.troublesome").KERNEL
    registry.register(kernel)
    yield kernel
    registry.unregister(kernel.id)
