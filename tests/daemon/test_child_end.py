"""The end of a worker, whoever brings it about: nothing of it is left."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading

import pytest

from faops import processes
from faops.daemon.child import WorkerChild, WorkerGoneError

from .obedient import LIMIT, OBEDIENT, assert_reaped, descriptors, told_to, until, with_child


def ended(pid: int) -> bool:
    return not processes.alive(pid)


def test_a_worker_gets_time_to_end() -> None:
    async def body(child: WorkerChild) -> None:
        told = asyncio.Event()
        words = "tell(); hear(); reply({'a': 1}); os._exit(0)"
        tuning = asyncio.ensure_future(child.tune(told_to(words), lambda event: told.set()))
        await told.wait()
        await child.stop(LIMIT)
        assert await tuning == {"a": 1}
        with pytest.raises(WorkerGoneError, match="told to end"):
            await child.ask("reply()")

    with_child(body)


@pytest.mark.parametrize("grace", [0.0, 0.2])
def test_a_worker_that_takes_longer_is_ended(grace: float) -> None:
    async def body(child: WorkerChild) -> None:
        told = asyncio.Event()
        tuning = asyncio.ensure_future(child.tune(told_to("tell(); time.sleep(100)"), lambda event: told.set()))
        await told.wait()
        await child.stop(grace)
        with pytest.raises(
            WorkerGoneError, match="the worker was ended" if not grace else "the worker was told to end"
        ):
            await tuning

    with_child(body)


def test_all_that_it_started_ends_with_it() -> None:
    """Those in sessions of their own, too, and their children."""

    async def body(child: WorkerChild) -> None:
        sleep = "import time; time.sleep(100)"
        inner = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {sleep!r}]); {sleep}"
        started = await child.ask(f"reply(start({inner!r}, start_new_session=True))")
        await until(lambda: len(child.pids()) == 3)
        assert child.pids()[:2] == [child.pid, started]
        assert child.memory_bytes() > processes.memory_bytes(child.pid) > 1 << 20
        everyone = child.pids()
        await child.stop(0.0)
        assert all(map(ended, everyone))

    with_child(body)


def test_what_a_crashed_worker_leaves_is_ended() -> None:
    async def body(child: WorkerChild) -> None:
        started = await child.ask("reply(start(start_new_session=True))")
        assert started in child.pids()
        os.kill(child.pid, signal.SIGKILL)
        await until(lambda: child.gone)
        assert ended(started)

    with_child(body)


def test_another_process_of_the_same_number_is_left_alone() -> None:
    async def body(child: WorkerChild) -> None:
        child._seen[os.getpid()] = "1"  # as one that ended long ago
        os.kill(child.pid, signal.SIGKILL)
        await until(lambda: child.gone)

    with_child(body)


def test_a_cancelled_request_ends_it() -> None:
    async def body(child: WorkerChild) -> None:
        tuning = asyncio.ensure_future(child.tune(told_to("time.sleep(100)"), lambda event: None))
        await asyncio.sleep(0.05)
        tuning.cancel()
        with pytest.raises(asyncio.CancelledError):
            await tuning
        await until(lambda: child.gone)

    with_child(body)


def test_a_loop_that_ends_leaves_nothing() -> None:
    before = descriptors()

    async def forgetful() -> int:
        return (await WorkerChild.start(program=OBEDIENT)).pid

    pid = asyncio.run(forgetful())
    assert ended(pid)
    assert_reaped(pid)
    assert descriptors() == before


def test_it_can_be_stopped_any_number_of_times() -> None:
    async def body(child: WorkerChild) -> None:
        await asyncio.gather(child.stop(0.0), child.stop(LIMIT), child.stop(0.0))
        await child.stop(1.0)
        child.pause()
        child.go()
        assert child.memory_bytes() == 0

    with_child(body)


@pytest.mark.parametrize("starts", [pytest.param(50, marks=pytest.mark.full), 4])
def test_many_starts_leave_nothing(starts: int) -> None:
    async def run() -> list[tuple[set[str], int]]:
        found = []
        for turn in range(starts):
            child = await WorkerChild.start(program=OBEDIENT)
            words = ["reply()", "os._exit(1)", "send('x')"][turn % 3]
            with pytest.raises(WorkerGoneError) if turn % 3 else contextlib.nullcontext():
                await child.ask(words)
            await child.stop(LIMIT if turn % 2 else 0.0)
            assert_reaped(child.pid)
            found.append((descriptors(), threading.active_count()))
        return found

    first, *rest = asyncio.run(run())
    assert all(one == first for one in rest)
