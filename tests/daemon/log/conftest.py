"""Shared by the tests of the log: what a test sets up is undone."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from faops.daemon import log


@pytest.fixture(autouse=True)
def no_setup_left() -> Iterator[None]:
    yield
    log.setup()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Path of the log."""
    return tmp_path / "daemon.log"


@pytest.fixture
def lines(path: Path) -> Callable[[], list[dict[str, Any]]]:
    """What stands in the log, each line read as JSON."""
    return lambda: [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]
