"""faops with tensors on an Ascend NPU, simulated: the calls of npu_calls.py, in a process of their own.

Nothing here computes on an NPU. What is tested is everything around a kernel: lengths on the host or on the device,
when the host waits, devices that do not go together, and that no step of the way takes the CPU or CUDA for granted.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.semantics.npu_calls import CALLS

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def failures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The failure of each call by its name, empty where it passed."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FAOPS_")}
    environment["FAOPS_CACHE_DIR"] = str(tmp_path_factory.mktemp("npu"))
    seed = os.environ["FAOPS_TEST_SEED"]
    done = subprocess.run(
        [sys.executable, "-m", "tests.semantics.npu_calls", seed],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: dict[str, str] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("name", CALLS)
def test_call(name: str, failures: dict[str, str]) -> None:
    assert not failures[name], failures[name]
