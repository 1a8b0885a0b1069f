"""Shared by all tests: fresh but repeatable random inputs, poisoned memory, a private cache directory.

Every run draws new inputs. The seed is printed at the end; set FAOPS_TEST_SEED to it to get the same inputs again. A
test's inputs depend on that seed and on the test's own name, so one test alone repeats what it did in the whole run.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import pkgutil
import random
import secrets
import tempfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch

from faops import dispatch, registry
from faops.backends.triton import kernels
from faops.device import DeviceProfile
from faops.problem import AttentionProblem
from faops.registry import Config

# Set before pytest-xdist starts its workers, which inherit it.
SEED = os.environ.setdefault("FAOPS_TEST_SEED", str(secrets.randbelow(2**31)))


def _import_kernels_interpreted() -> None:
    """Triton reads TRITON_INTERPRET when it and its kernels are first imported and keeps to it. In this process they
    are interpreted, whatever a test imports and sets later; tests of compiled kernels start processes of their own.
    """
    if importlib.util.find_spec("triton") is None:
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        for module in pkgutil.iter_modules(kernels.__path__):
            importlib.import_module(f"{kernels.__name__}.{module.name}")


_import_kernels_interpreted()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="also run the long sweeps (marker `full`)")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--full"):
        return
    long = [item for item in items if item.get_closest_marker("full")]
    if long:
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if item not in long]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    terminalreporter.write_line(f"random inputs: FAOPS_TEST_SEED={SEED} repeats them")


@pytest.fixture(autouse=True)
def seeded(request: pytest.FixtureRequest) -> int:
    """Seeds torch and random for this test; the value is at hand for what needs a seed of its own."""
    seed = zlib.crc32(f"{SEED}:{request.node.nodeid}".encode())
    torch.manual_seed(seed)
    random.seed(seed)
    return seed


@pytest.fixture(autouse=True)
def private_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No test reads or writes the user's settings or tuning cache, or speaks to the user's daemon."""
    for name in [name for name in os.environ if name.startswith("FAOPS_") and name != "FAOPS_TEST_SEED"]:
        monkeypatch.delenv(name)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setenv("FAOPS_CACHE_DIR", str(tmp_path / "faops-cache"))
    monkeypatch.setenv("FAOPS_CONFIG", str(tmp_path / "no-faops.yaml"))
    monkeypatch.setenv("FAOPS_STATE_DIR", str(tmp_path / "faops-state"))
    # A short path, since the name of a socket in it is limited. It is only made where a test needs it.
    monkeypatch.setenv("FAOPS_RUNTIME_DIR", os.path.join(tempfile.gettempdir(), f"faops-none-{os.getpid()}"))
    dispatch.forget()
    yield
    dispatch.forget()


@pytest.fixture
def idle_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tuner sees no other program at work, whatever else runs beside the tests."""
    monkeypatch.setattr("faops.autotune.tuner.foreign_cores", lambda seconds: 0.0)


@pytest.fixture
def poisoned() -> Iterator[None]:
    """New memory holds NaN (or the largest integer) instead of zeros, so that an output left unwritten shows."""
    mode, fill = torch.get_deterministic_debug_mode(), torch.utils.deterministic.fill_uninitialized_memory
    torch.set_deterministic_debug_mode("error")
    torch.utils.deterministic.fill_uninitialized_memory = True
    assert torch.empty(64).isnan().all()
    yield
    torch.set_deterministic_debug_mode(mode)
    torch.utils.deterministic.fill_uninitialized_memory = fill


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the blockwise kernels of the torch backend cut even small problems into many tiles."""
    kernels = [kernel for kernel in registry.kernels() if kernel.id.startswith("torch.blockwise")]
    assert kernels
    for kernel in kernels:
        monkeypatch.setattr(kernel, "default_config", partial(_shrunk, kernel.default_config))
    dispatch.forget()


def _shrunk(usual: Callable[..., Config], problem: AttentionProblem, device: DeviceProfile) -> Config:
    config = usual(problem, device)
    tiny = {"block_q": 16, "block_k": 32, "block_h": 2}
    return Config({**config, **{name: size for name, size in tiny.items() if name in config}})
