"""Kernels of the emulator are kept between tests, where those of tests/cuda_raw are, too. No daemon is met."""

from __future__ import annotations

from pathlib import Path

import pytest

from faops.backends.cuda_raw.emulator import build
from tests.daemon.conftest import private_daemon

__all__ = ["private_daemon"]


@pytest.fixture(autouse=True)
def kept_kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = getattr(request.config, "cache", None)
    if cache is not None:
        folder = Path(cache.mkdir("emulator"))
        monkeypatch.setattr(build, "directory", lambda: folder)
