"""Fixtures of the tests that run kernels in the emulator.

Compiled kernels are kept between tests, between processes and between runs, in pytest's own cache: the name of each is
a hash of all that it was made of, so that none is ever mistaken for another.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from faops.backends.cuda_raw import emulator
from faops.backends.cuda_raw.emulator import build


@pytest.fixture(scope="session")
def kernel_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    cache = getattr(request.config, "cache", None)
    return Path(cache.mkdir("emulator")) if cache else tmp_path_factory.getbasetemp() / "emulator"


@pytest.fixture
def emulator_here(kernel_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Skips the test, and says why, where the emulator cannot run."""
    if reason := emulator.missing():
        pytest.skip(f"NOT TESTED, no kernel ran in the emulator: {reason}")
    monkeypatch.setattr(build, "directory", lambda: kernel_folder)
