"""Launching: interpreted here, and compiled on a stub of the CUDA driver in a process of its own (on_stub.py)."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks import driver_stub
from faops.backends.triton import launch
from faops.backends.triton.launch import Launch, Tensors

ROOT = Path(__file__).parents[2]
MADE = Launch(
    "scaled",
    (1, 1, 1),
    {"size": 32, "odd": 33, "one": 1, "large": 2**40, "scale": 0.5},
    {"BLOCK": 64},
    {"num_warps": 4, "num_stages": 2},
)


@pytest.fixture(autouse=True)
def toys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its kernels are imported here, where TRITON_INTERPRET is set: triton.jit looks at it."""
    toy = importlib.import_module("tests.triton.toy")
    monkeypatch.setattr(launch, "kernel_function", lambda kernel: getattr(toy, kernel))
    monkeypatch.setattr(launch, "_ready", {})


def tensors() -> tuple[Tensor, Tensors]:
    x, y = torch.randn(96), torch.full((64,), torch.nan)
    return y, (x, None, y)


def test_interpreted() -> None:
    y, given = tensors()
    launch.launch("key", given, lambda: MADE)
    assert given[0] is not None
    assert torch.equal(y, 0.5 * given[0][32:])


def test_a_key_is_described_once() -> None:
    built = []

    def build() -> Launch:
        built.append(1)
        return MADE

    for _ in range(3):
        y, given = tensors()
        launch.launch("key", given, build)
        assert given[0] is not None
        assert torch.equal(y, 0.5 * given[0][32:])
    assert built == [1]
    launch.launch("another", tensors()[1], build)
    assert built == [1, 1]


def test_memory_of_keys_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "MEMO_LIMIT", 3)
    for key in range(10):
        launch.launch(key, tensors()[1], lambda: MADE)
        assert len(launch._ready[-1]) <= 3 and key in launch._ready[-1]


def test_missing_argument() -> None:
    with pytest.raises(KeyError, match="BLOCK"):
        launch.launch("key", tensors()[1], lambda: replace(MADE, constants={}))


def test_threads_do_not_mix_up_their_grids() -> None:
    grids = [(3, 5, 1), (7, 2, 1), (2, 9, 1)]
    results = [torch.full((grid[0], grid[1]), -1) for grid in grids]

    def work(grid: tuple[int, int, int], result: Tensor) -> None:
        made = Launch("places", grid, {"columns": grid[1]}, {"BLOCK": 4}, {})
        for _ in range(3):
            launch.launch(grid, (result,), lambda: made)

    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=work, args=pair) for pair in zip(grids, results)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(usual)
    for grid, result in zip(grids, results):
        assert torch.equal(result, torch.arange(grid[0] * grid[1]).view(grid[0], grid[1]))


def test_on_a_stub_of_the_driver() -> None:
    if reason := driver_stub.missing():
        pytest.skip(f"NOT TESTED, no kernel was launched but by the interpreter: {reason}")
    check_on_stub()


def check_on_stub(*paths: str, chosen: str = "") -> None:
    """Run on_stub.py with ``paths`` first on Python's path. All its tests, or those ``chosen``, must run and pass."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("TRITON_", "PYTEST_"))}
    environment["PYTHONPATH"] = os.pathsep.join([*paths, str(ROOT)])
    plugins = ["--noconftest", "-p", "tests.triton.stub_plugin", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", *plugins, "tests/triton/on_stub.py", "-k", chosen]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    ran = re.search(r"\n\.+ +\[100%\]", "\n" + done.stdout)
    assert done.returncode == 0 and ran, f"{done.stdout[-6000:]}\n{done.stderr[-2000:]}"
