"""Fixtures of the tests that run kernels in the emulator.

Compiled kernels are kept between tests, between processes and between runs, in pytest's own cache: the name of each is
a hash of all that it was made of, so that none is ever mistaken for another.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from faops.backends.cuda_raw import emulator
from faops.backends.cuda_raw.emulator import build
from faops.backends.cuda_raw.emulator.compiler import MODES

# In the short run kernels compile for longer than they run, so they are not optimised there. What that changes is the
# rounding of a product and a sum, which an optimised kernel may compute as one operation.
HURRIED = ("run", "counters")


@pytest.fixture(scope="session")
def kernel_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    cache = getattr(request.config, "cache", None)
    return Path(cache.mkdir("emulator")) if cache else tmp_path_factory.getbasetemp() / "emulator"


@pytest.fixture
def emulator_here(request: pytest.FixtureRequest, kernel_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Skips the test, and says why, where the emulator cannot run."""
    if reason := emulator.missing():
        pytest.skip(f"NOT TESTED, no kernel ran in the emulator: {reason}")
    monkeypatch.setattr(build, "directory", lambda: kernel_folder)
    if not request.config.getoption("--full") and "optimised" not in request.fixturenames:
        _hurry(monkeypatch)


@pytest.fixture
def kept_cubins(kernel_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What NVRTC compiles for this test is kept as well."""
    monkeypatch.setenv("FAOPS_CACHE_DIR", str(kernel_folder.parent / "cubins"))


@pytest.fixture
def optimised() -> None:
    """For a test of what the optimiser may do to a kernel."""


def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in HURRIED:
        monkeypatch.setitem(MODES, name, replace(MODES[name], kernel_flags=("-O0",)))
    usual = build._key

    def key(*parts: str) -> str:
        return usual(*parts) if parts[0] == "runtime" else usual(*parts, "hurried")

    monkeypatch.setattr(build, "_key", key)
