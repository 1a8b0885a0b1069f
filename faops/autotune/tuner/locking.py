"""One process measures on a device at a time, so that none disturbs another's timings."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import filelock

from faops.autotune import effort
from faops.errors import TuningError

LOCK_NAME = "measuring.lock"


@contextlib.contextmanager
def measuring_alone(directory: Path, on_wait: Callable[[], None]) -> Iterator[None]:
    """Hold the lock of a device's directory; ``on_wait`` is called once if another process holds it.

    Where the directory cannot be written there is nothing to lock, and measuring goes on. Raises TuningError when the
    lock is not free after LOCK_TIMEOUT_SECONDS. A process that is killed holds it no longer.
    """
    path = directory / LOCK_NAME
    lock = filelock.FileLock(path)
    with contextlib.suppress(OSError, NotImplementedError):
        directory.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            on_wait()
            _wait_for(lock, path)
    try:
        yield
    finally:
        lock.release()


def _wait_for(lock: filelock.BaseFileLock, path: Path) -> None:
    try:
        lock.acquire(timeout=effort.LOCK_TIMEOUT_SECONDS, poll_interval=effort.LOCK_POLL_SECONDS)
    except filelock.Timeout:
        raise TuningError(
            f"another process has been measuring on this device for {effort.LOCK_TIMEOUT_SECONDS:g} s "
            f"(it holds {path}); try again when it is done"
        ) from None
