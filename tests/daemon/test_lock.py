"""One daemon a user and host, and who it is."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path

import pytest

from faops._version import __version__
from faops.daemon import lock, paths
from faops.daemon.lock import Holder, Instance, RunningError
from faops.errors import DaemonError

from . import stand_in

NOBODY = {"pid": 4, "since": "2026-01-01T00:00:00Z", "socket": "/s", "version": "0", "birth": "b"}


def holder_path() -> Path:
    return paths.state_directory() / "holder.json"


def write_holder(**changes: object) -> None:
    """What a daemon has left that does not hold the lock."""
    holder_path().write_text(json.dumps({**NOBODY, **changes}))


@contextmanager
def other_process() -> Iterator[subprocess.Popen[str]]:
    """A process that holds the lock."""
    command = [sys.executable, *stand_in.COMMAND, "hold"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        try:
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def test_the_holder_says_who_it_is() -> None:
    before = datetime.now(timezone.utc).replace(microsecond=0)
    with Instance.acquire():
        holder = lock.holder()
        assert holder
        assert (holder.pid, holder.version, holder.socket) == (os.getpid(), __version__, str(paths.socket_path()))
        assert before <= datetime.fromisoformat(holder.since.replace("Z", "+00:00")) <= datetime.now(timezone.utc)
        assert holder.birth == lock.birth(os.getpid())
        assert stat.S_IMODE(holder_path().stat().st_mode) == 0o600
        assert stat.S_IMODE(paths.lock_path().stat().st_mode) == 0o600


def test_without_a_daemon_there_is_no_holder_and_nothing_is_made(private_daemon: Path) -> None:
    assert lock.holder() is None
    assert not lock.is_locked()
    assert list(private_daemon.iterdir()) == []


def test_a_released_lock_is_free() -> None:
    Instance.acquire().release()
    assert lock.holder() is None
    assert not holder_path().exists()
    with Instance.acquire():
        assert lock.holder()


def test_a_second_one_is_told_who_holds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "LOOK_SECONDS", 0.05)
    with Instance.acquire():
        with pytest.raises(RunningError) as caught:
            Instance.acquire()
        holder = lock.holder()
        assert holder
        assert caught.value.holder == holder
        for told in (f"pid {os.getpid()}", holder.since, holder.socket, "faops daemon stop", "already runs on"):
            assert told in str(caught.value)
        assert lock.holder() == holder, "the refused one has changed nothing"


def test_a_killed_one_holds_nothing() -> None:
    with other_process() as process:
        holder = lock.holder()
        assert holder
        assert holder.pid == process.pid
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert holder_path().exists(), "nobody has tidied up"
        assert lock.holder() is None
        with Instance.acquire():
            assert lock.holder() != holder


def test_a_reused_pid_does_not_mislead() -> None:
    write_holder(pid=os.getpid(), birth=lock.birth(os.getpid()))  # alive, and yet not the daemon
    assert lock.holder() is None


def test_what_a_killed_one_left_is_not_the_present_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "LOOK_SECONDS", 0.05)
    with Instance.acquire():
        write_holder(pid=os.getpid(), birth="an earlier boot:17")
        with pytest.raises(DaemonError, match=f"process {os.getpid()} is not to be seen from here"):
            lock.holder()
        with pytest.raises(RunningError, match="its pid is not known") as caught:
            Instance.acquire()
        assert caught.value.holder is None


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "null", '{"pid": 1}', "[" * 100_000]
    + [json.dumps({**NOBODY, "pid": pid}) for pid in (0, -1, 2**31, 1.5, "1", True, None)]
    + [json.dumps({**NOBODY, "since": 1}), json.dumps({**NOBODY, "socket": None})],
)
def test_a_broken_holder_file_is_no_holder(content: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "LOOK_SECONDS", 0.0)
    with Instance.acquire():
        holder_path().write_text(content)
        with pytest.raises(DaemonError, match="does not say who it is"):
            lock.holder()


def test_a_holder_that_is_about_to_say_who_it_is_is_waited_for() -> None:
    with Instance.acquire():
        text = holder_path().read_text()
        holder_path().unlink()
        timer = threading.Timer(0.05, holder_path().write_text, (text,))
        timer.start()
        holder = lock.holder()
        timer.join()
    assert holder
    assert holder.pid == os.getpid()


def test_those_who_look_keep_nobody_from_starting() -> None:
    """A look holds the lock for an instant, and a start in that instant waits for it."""
    Instance.acquire().release()
    descriptor = os.open(paths.lock_path(), os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    timer = threading.Timer(0.05, os.close, (descriptor,))
    timer.start()
    Instance.acquire().release()
    timer.join()


def test_those_who_look_do_not_take_each_other_for_a_daemon() -> None:
    Instance.acquire().release()
    descriptor = os.open(paths.lock_path(), os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        assert not lock.is_locked()
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        assert lock.is_locked()
    finally:
        os.close(descriptor)


def test_a_lock_that_cannot_be_taken_is_named() -> None:
    paths.lock_path().mkdir()
    with pytest.raises(DaemonError, match=r"daemon\.lock cannot be locked"):
        Instance.acquire()


def test_one_that_cannot_say_who_it_is_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, text: str) -> bool:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(lock, "write_whole", refuse)
        with pytest.raises(DaemonError, match=r"holder\.json cannot be written: No space left") as caught:
            Instance.acquire()
    assert caught, "its traceback keeps the lock alive, so that it is not the lock's own end that frees it"
    assert not lock.is_locked()


def test_birth_tells_processes_apart() -> None:
    with other_process() as process:
        assert lock.birth(process.pid) not in ("", lock.birth(os.getpid()))
        assert lock.birth(process.pid) == lock.birth(process.pid)
    assert lock.birth(process.pid) == ""


def test_a_process_lives_until_it_has_ended() -> None:
    with other_process() as process:
        holder = Holder(process.pid, "", "", "", lock.birth(process.pid))
        assert holder.lives()
        assert not Holder(process.pid, "", "", "", "another").lives()
        process.kill()
        process.wait()
        deadline = time.monotonic() + 30
        while holder.lives() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not holder.lives()
