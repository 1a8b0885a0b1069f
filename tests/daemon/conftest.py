"""Shared by the daemon's tests: directories of their own, so that none meets another daemon than its own."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def private_daemon(private_settings: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A new directory for state and sockets, mode 0700; its path is short since a socket's has 107 bytes at most."""
    root = Path(tempfile.mkdtemp(prefix="faops-")).resolve()
    monkeypatch.setenv("FAOPS_STATE_DIR", str(root / "state"))
    monkeypatch.setenv("FAOPS_RUNTIME_DIR", str(root / "run"))
    for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("JOURNAL_STREAM", raising=False)
    yield root
    shutil.rmtree(root, ignore_errors=True)
