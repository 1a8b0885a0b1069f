"""The npu kernels from end to end with tensors that are on a device of type npu, simulated in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.full
def test_forward_backward_packed_and_decode(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FAOPS_")}
    environment["FAOPS_CACHE_DIR"] = str(tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "tests.npu.on_device"],
        cwd=Path(__file__).parents[2], env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0 and done.stdout.endswith("ok\n"), done.stderr
