"""A spool over an empty cache, with a clock of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from faops.daemon.spool import Spool

from .support import Clock


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def spool(root: Path, clock: Clock) -> Spool:
    return Spool(root, clock)
