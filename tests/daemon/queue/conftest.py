"""A queue in a directory of the test's own, under a clock that the test sets."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from faops.daemon.queue import Queue
from tests.daemon.queue.support import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "queue.sqlite"


@pytest.fixture
def queue(path: Path, clock: Clock) -> Iterator[Queue]:
    with Queue(path, clock) as opened:
        yield opened
