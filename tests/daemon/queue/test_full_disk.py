"""A disk that is full: nothing is lost, nothing is half there, and the queue goes on when there is room."""

from __future__ import annotations

import contextlib
import resource
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from faops.daemon.queue import FullError, Queue
from tests.daemon.queue.support import result, task


@contextlib.contextmanager
def few_pages(queue: Queue) -> Iterator[None]:
    """SQLite takes the disk for full."""
    connection = queue._database._connection
    pages = connection.execute("PRAGMA page_count").fetchone()[0]
    connection.execute(f"PRAGMA max_page_count = {pages + 4}")
    try:
        yield
    finally:
        connection.execute("PRAGMA max_page_count = 1000000")


@contextlib.contextmanager
def short_files(queue: Queue) -> Iterator[None]:
    """The system refuses to let files grow, in the middle of writing one."""
    log = Path(f"{queue._database.path}-wal")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (log.stat().st_size + 30_000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextlib.contextmanager
def full_file_system(queue: Queue) -> Iterator[None]:
    """There is no room left on the device."""
    ballast = queue._database.path.parent / "ballast"
    with open(ballast, "wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    try:
        yield
    finally:
        ballast.unlink()


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    directory = tmp_path / "small"
    directory.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", directory], capture_output=True)
    if mounted.returncode:
        pytest.skip("this process cannot mount a file system")
    try:
        yield directory / "queue.sqlite"
    finally:
        subprocess.run(["umount", directory], check=True)


Shortage = Callable[[Queue], AbstractContextManager[None]]


def endure(path: Path, shortage: Shortage) -> None:
    """Fill the disk; what was acknowledged is there, nothing else is, and all works again when there is room."""
    with Queue(path) as queue:
        [first] = queue.missed([(task("first"), 1)])
        queue.begin(first.id)
        kept = 0
        with shortage(queue):
            with pytest.raises(FullError, match=f"{path} cannot be read or written"):  # noqa: PT012
                for kept in range(1000):
                    queue.missed([(task(f"{kept}/{part}"), 1) for part in range(10)])
            with pytest.raises(FullError):
                queue.finish(first.id, result(heat_map="x" * 100_000))
            assert queue.job(first.id).state == "running"
            assert queue.counts()["waiting"] == queue.totals()["misses"] - 1 == 10 * kept
            assert queue.next() is None or kept
        queue.missed([(task(f"{kept}/{part}"), 1) for part in range(10)])
        queue.finish(first.id, result())
    with Queue(path) as queue:
        assert queue.broken is None
        assert queue.counts()["done"] == 1 and queue.counts()["waiting"] == 10 * (kept + 1)


def test_sqlite_finds_no_room(path: Path) -> None:
    endure(path, few_pages)


def test_the_system_refuses_a_write(path: Path) -> None:
    endure(path, short_files)


def test_a_full_file_system(small: Path) -> None:
    endure(small, full_file_system)


def test_a_full_file_system_at_the_start(small: Path) -> None:
    ballast = small.parent / "ballast"
    with open(ballast, "wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    with pytest.raises(FullError, match=str(small)):
        Queue(small)
    ballast.unlink()
    with Queue(small) as queue:
        assert queue.broken is None
        queue.submit({})


def test_looking_goes_on_while_the_disk_is_full(path: Path) -> None:
    """What only keeps a clock's jump in mind is left until there is room."""
    now = [2e9]
    with Queue(path, lambda: now[0]) as queue:
        [job] = queue.missed([(task(), 1)])
        queue.begin(job.id)
        queue.fail(job.id, "it crashed")
        queue.set_paused("a benchmark", now[0] + 60)
        now[0] -= 1e6
        connection = queue._database._connection
        connection.execute("PRAGMA query_only = ON")
        assert queue.next() is None
        assert queue.paused() == ("a benchmark", now[0] + 60)
        with pytest.raises(FullError):
            queue.submit({})
        connection.execute("PRAGMA query_only = OFF")
        queue.next()
        now[0] += 30
        assert queue.next() is not None
