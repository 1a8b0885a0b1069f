"""Shared by the tests of the idle gate: GPUs whose driver is made up."""

from __future__ import annotations

import sys

import pytest

from .fake_nvml import Pynvml
from .support import Gpu


@pytest.fixture
def pynvml(monkeypatch: pytest.MonkeyPatch) -> Pynvml:
    module = Pynvml()
    monkeypatch.setitem(sys.modules, "pynvml", module)
    return module


@pytest.fixture
def gpu(pynvml: Pynvml) -> Gpu:
    return Gpu(pynvml)


@pytest.fixture
def contained(pynvml: Pynvml) -> Gpu:
    """As seen from a container: our processes have other numbers there."""
    return Gpu(pynvml, alike=False)
