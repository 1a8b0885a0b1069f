"""A daemon without tuning: in this process, and behind a socket."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from faops.daemon.queue import Queue
from tests.daemon.http.support import FakeControl, InProcess, Served


@pytest.fixture
def control(private_daemon: Path) -> Iterator[FakeControl]:
    with Queue(private_daemon / "queue.sqlite") as queue:
        yield FakeControl(queue)


@pytest.fixture
def ask(control: FakeControl) -> InProcess:
    return InProcess(control)


@pytest.fixture
def served(private_daemon: Path) -> Iterator[Served]:
    served = Served(private_daemon)
    yield served
    served.close()
    assert served.complaints == []
