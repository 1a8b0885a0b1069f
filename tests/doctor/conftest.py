"""Kernels of the emulator are kept between tests, where those of tests/cuda_raw are, too."""

from __future__ import annotations

from pathlib import Path

import pytest

from faops.backends.cuda_raw.emulator import build


@pytest.fixture(autouse=True)
def kept_kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = getattr(request.config, "cache", None)
    if cache is not None:
        folder = Path(cache.mkdir("emulator"))
        monkeypatch.setattr(build, "directory", lambda: folder)
