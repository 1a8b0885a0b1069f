"""Helpers of the command-line tests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from typing import Any

from click.testing import Result

TINY = "sq=16,h=2,d=16,causal=1,dtype=float32"


def document(result: Result) -> dict[str, Any]:
    """The JSON document of a run that ended well; every document has the schema version."""
    assert result.exit_code == 0, result.output
    loaded: dict[str, Any] = json.loads(result.stdout)
    assert loaded["schema_version"] == 1
    return loaded


def refused(result: Result, *words: str, code: int = 1) -> None:
    """Assert that a run was refused with one clear message that has all the words, and without a traceback."""
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("error: " if code == 1 else "Usage: "), result.stderr
    assert "Traceback" not in result.stderr
    for word in words:
        assert word in result.stderr, result.stderr


def python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A real run of this Python, with OMP_NUM_THREADS=1 so that parallel tests do not fight for cores."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, env=env, timeout=120, check=False
    )


def read_terminal(descriptor: int, seconds: float = 60.0) -> str:
    """Everything a pseudo-terminal shows until the program behind it ends, and no longer than `seconds`."""
    chunks = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            chunk = os.read(descriptor, 65536)
        except OSError:  # Linux tells the end of a pseudo-terminal so
            break
        if not chunk:
            break
        chunks.append(chunk)
    os.close(descriptor)
    return b"".join(chunks).decode(errors="replace")
