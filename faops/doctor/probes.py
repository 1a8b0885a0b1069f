"""Guarded looks at the machine: none raises, none changes anything, and none waits for long."""

from __future__ import annotations

import ctypes
import importlib.metadata
import shutil
import subprocess
from collections.abc import Sequence

TIMEOUT_SECONDS = 20.0  # nvidia-smi on a machine with eight cards and no persistence daemon takes most of this


def program(name: str) -> str | None:
    """Path of a program on PATH, or None."""
    return shutil.which(name)


def output_of(command: Sequence[str], seconds: float = TIMEOUT_SECONDS) -> tuple[bool, str]:
    """Whether a program ended well within ``seconds``, and what it printed (or why it could not be run)."""
    try:
        done = subprocess.run(
            list(command), capture_output=True, text=True, errors="replace", timeout=seconds, check=False
        )
    except (OSError, subprocess.SubprocessError) as error:
        return False, str(error)
    return done.returncode == 0, (done.stdout or done.stderr).strip()


def library(name: str) -> bool:
    """Whether the dynamic loader finds a shared library."""
    try:
        ctypes.CDLL(name)
    except OSError:
        return False
    return True


def installed(distribution: str) -> str | None:
    """Version of an installed distribution, or None; nothing is imported."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
