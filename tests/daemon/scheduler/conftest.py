"""A scheduler with children that tune nothing and gates that a test opens."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from faops.daemon import log
from faops.daemon.queue import Queue
from faops.daemon.scheduler import Scheduler
from faops.daemon.spool import Spool

from ..support import CONFIG, FakeGate, Workplace, working

Test = Callable[[Scheduler, Workplace, FakeGate], Coroutine[Any, Any, None]]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks and polls come often, so that no test waits for a second."""
    for name in ("lane.LOOK_SECONDS", "lane.TUNING_LOOK_SECONDS", "intake.POLL_SECONDS"):
        monkeypatch.setattr(f"faops.daemon.{name}", 0.02)
    log.setup(None)


@pytest.fixture
def queue(tmp_path: Path) -> Iterator[Queue]:
    with Queue(tmp_path / "queue.sqlite", attempts=CONFIG.attempts) as queue:
        yield queue


@pytest.fixture
def play(queue: Queue, tmp_path: Path) -> Callable[[Test, Workplace], None]:
    """Runs a test beside a scheduler, which is stopped at its end."""

    async def run(test: Test, workplace: Workplace) -> None:
        gate = FakeGate()
        async with working(queue, Spool(tmp_path / "cache"), workplace, gate) as scheduler:
            await test(scheduler, workplace, gate)

    return lambda test, workplace: asyncio.run(run(test, workplace))
