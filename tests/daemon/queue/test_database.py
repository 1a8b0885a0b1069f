"""The queue's file: who may open it, and what lies in its place."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from faops.daemon.queue import FullError, Queue
from faops.daemon.queue.database import SCHEMA
from faops.errors import DaemonError
from tests.daemon.queue.support import result, task


def with_jobs(path: Path, count: int = 3) -> None:
    """A queue with jobs, one of which is done; it is closed."""
    with Queue(path) as queue:
        jobs = queue.missed([(task(f"{index}"), 1) for index in range(count)])
        queue.begin(jobs[0].id)
        queue.finish(jobs[0].id, result())


def change(path: Path, *statements: str) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        for statement in statements:
            connection.execute(statement)


def beside(path: Path) -> set[str]:
    return {each.name for each in path.parent.iterdir()}


# ---------------------------------------------------------------------------------------------- opening


def test_only_its_owner_reads_it(path: Path) -> None:
    before = os.umask(0)
    try:
        with Queue(path) as queue:
            queue.submit({})
            assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
            files = list(path.parent.iterdir())
            assert len(files) >= 2, "the write-ahead log is beside it"
            assert {stat.S_IMODE(each.stat().st_mode) for each in files} == {0o600}
    finally:
        os.umask(before)


def test_what_is_written_is_there_again(path: Path) -> None:
    with_jobs(path)
    assert beside(path) == {"queue.sqlite"}
    with Queue(path) as queue:
        assert queue.broken is None
        assert queue.counts()["waiting"] == 2 and queue.counts()["done"] == 1
        assert queue.totals()["tuned"] == 1


def test_a_second_one_in_the_same_process_is_refused(path: Path) -> None:
    with Queue(path) as queue:
        for _ in range(2):
            with pytest.raises(DaemonError, match="is held by another process"):
                Queue(path)
        queue.submit({})
    Queue(path).close()


# Opening it twice must not give the lock away, which a process loses with the first descriptor that it closes.
HOLD = """
import sys
from pathlib import Path
from faops.daemon.queue import Queue
from faops.errors import DaemonError
with Queue(Path(sys.argv[1])):
    try:
        Queue(Path(sys.argv[1]))
    except DaemonError:
        print("held", flush=True)
    sys.stdin.readline()
assert not {"torch", "numpy"} & set(sys.modules)
"""


def test_a_second_process_is_refused_at_once(path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        begun = time.monotonic()
        with pytest.raises(DaemonError, match="is held by another process") as caught:
            Queue(path)
        assert time.monotonic() - begun < 4, "SQLite's own patience is 5 s"
        assert not isinstance(caught.value, FullError) and str(path) in str(caught.value)
        holder.communicate("end\n")
    assert holder.returncode == 0
    Queue(path).close()


def test_one_of_a_newer_version_is_left_alone(path: Path) -> None:
    with_jobs(path)
    change(path, f"PRAGMA user_version = {SCHEMA + 1}")
    content = path.read_bytes()
    with pytest.raises(DaemonError, match=r"newer version of faops \(schema 2, this one knows 1\)"):
        Queue(path)
    assert path.read_bytes() == content and beside(path) == {"queue.sqlite"}


@pytest.mark.parametrize(
    "content",
    [b"no database at all\n" * 500, b"SQLite format 3\0" + bytes(4080), b"x" * 1000],
    ids=["text", "header", "short"],
)
def test_what_is_no_database_is_moved_aside(path: Path, content: bytes) -> None:
    path.parent.mkdir()
    path.write_bytes(content)
    with Queue(path) as queue:
        aside = queue.broken
        assert aside == path.with_name("queue.sqlite.broken") and aside.read_bytes() == content
        queue.missed([(task(), 1)])
    with Queue(path) as queue:
        assert queue.broken is None and queue.counts()["waiting"] == 1


def test_what_is_no_queue_is_moved_aside(path: Path) -> None:
    with_jobs(path)
    change(path, "PRAGMA application_id = 1")
    with Queue(path) as queue:
        assert queue.broken is not None and queue.counts()["waiting"] == 0


def test_a_queue_without_one_of_its_tables_is_moved_aside(path: Path) -> None:
    with_jobs(path)
    change(path, "DROP TABLE totals")
    with Queue(path) as queue:
        assert queue.broken is not None and queue.totals()["tuned"] == 0


def test_a_queue_with_garbage_in_the_middle_is_moved_aside(path: Path) -> None:
    with_jobs(path, 50)
    with open(path, "r+b") as file:
        file.seek(path.stat().st_size // 8192 * 4096)
        file.write(b"\xff" * 4096)
    with Queue(path) as queue:
        assert queue.broken is not None and queue.jobs() == []


def test_a_schema_that_is_no_text_is_moved_aside(path: Path) -> None:
    """SQLite quotes it in its message."""
    with_jobs(path)
    content = path.read_bytes().replace(b"CREATE INDEX jobs_since", b"CREATE XXXXX jobs_since")
    path.write_bytes(content.replace(b"jobs_since", b"\x80" * 10))
    with Queue(path) as queue:
        assert queue.broken is not None


@pytest.mark.parametrize("size", [1000, 20_000])
def test_what_lies_beside_a_broken_file_does_not_reach_the_new_one(path: Path, size: int) -> None:
    path.parent.mkdir()
    path.write_bytes(b"x" * size)
    for suffix in ("-wal", "-shm", "-journal"):
        Path(f"{path}{suffix}").write_bytes(b"y" * size)
    with Queue(path) as queue:
        assert queue.broken is not None
        queue.submit({})
    with Queue(path) as queue:
        assert queue.broken is None and queue.next_submission() is not None


def test_a_truncated_queue_is_moved_aside(path: Path) -> None:
    with_jobs(path, 50)
    for _ in range(2):  # the second replaces the first
        os.truncate(path, path.stat().st_size // 2)
        with Queue(path) as queue:
            assert queue.broken is not None and queue.counts()["waiting"] == 0
            queue.missed([(task(f"{index}"), 1) for index in range(50)])
    assert beside(path) == {"queue.sqlite", "queue.sqlite.broken"}


def test_an_empty_file_and_a_log_without_its_file_are_a_new_queue(path: Path) -> None:
    with_jobs(path)
    os.truncate(path, 0)
    (path.parent / "queue.sqlite-wal").write_bytes(b"of another file" * 1000)
    with Queue(path) as queue:
        assert queue.broken is None and queue.counts()["waiting"] == 0
        queue.submit({})


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    """A queue that nobody changes."""
    with_jobs(tmp_path / "sound.sqlite", 10)
    return tmp_path / "sound.sqlite"


@settings(max_examples=30, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.floats(0, 1, exclude_max=True), garbage=st.binary(min_size=1, max_size=600))
def test_whatever_is_changed_in_it_it_opens(path: Path, sound: Path, place: float, garbage: bytes) -> None:
    content = bytearray(sound.read_bytes())
    begin = int(place * len(content))
    content[begin : begin + len(garbage)] = garbage
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    try:
        with Queue(path) as queue:
            assert queue.broken is None or not any(queue.counts().values())
    except DaemonError as error:
        if "newer version" not in str(error):  # that is where the garbage fell
            raise


def test_text_that_the_disk_has_changed_stops_no_other_job(path: Path) -> None:
    with_jobs(path)
    with Queue(path) as queue:
        submission = queue.submit({"model": "x"})
    change(path, "UPDATE jobs SET problem = '{', result = '{'", "UPDATE submissions SET request = '{', jobs = '['")
    with Queue(path) as queue:
        assert [(job.task.problem, job.result) for job in queue.jobs()] == [({}, {})] * 3
        assert queue.submission(submission.id).request == {}


def test_a_directory_in_its_place_is_told(path: Path) -> None:
    path.mkdir(parents=True)
    with pytest.raises(FullError, match=str(path)):
        Queue(path)
    (path.parent / "file").touch()
    with pytest.raises(FullError, match="cannot be opened"):
        Queue(path.parent / "file" / "queue.sqlite")


def test_a_closed_one_says_so(queue: Queue) -> None:
    queue.close()
    for using in (queue.counts, lambda: queue.submit({})):
        with pytest.raises(FullError, match="closed"):
            using()


# ---------------------------------------------------------------------------------------------- whole or not at all


def test_a_change_that_fails_on_the_way_changes_nothing(queue: Queue) -> None:
    with pytest.raises(TypeError):
        queue.missed([(task("a"), 1), (task("b", problem={"not": object()}), 1)])
    assert queue.find(task("a").mark) is None and queue.totals()["misses"] == 0
    [job] = queue.missed([(task("a"), 1)])
    queue.begin(job.id)
    with pytest.raises(TypeError):
        queue.finish(job.id, {"status": object()})
    assert queue.job(job.id).state == "running"


def test_threads_may_share_it(queue: Queue) -> None:
    def work(name: str) -> None:
        for index in range(10):
            [job] = queue.missed([(task(f"{name}{index}"), 1)])
            queue.begin(job.id)
            queue.finish(job.id, result())
            queue.counts()

    threads = [threading.Thread(target=work, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert queue.counts()["done"] == queue.totals()["tuned"] == 40
