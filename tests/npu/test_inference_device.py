"""KV-cache calls on tensors whose device really is an NPU's, simulated; in a process of its own, which renames it."""

from __future__ import annotations

import json
import random
import subprocess
import sys

import pytest


@pytest.mark.full
def test_calls_on_the_device() -> None:
    """Nothing is on another device than it must be, and layers wait for the lengths once between them."""
    command = [sys.executable, "-m", "tests.npu.device_calls", str(random.randrange(1 << 30)), "60"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert ran.returncode == 0, ran.stderr
    result = json.loads(ran.stdout.splitlines()[-1])
    assert not result["failures"], "\n".join(f"{text}\n{error}" for text, error in result["failures"].items())
    assert result["waits"] == 1
