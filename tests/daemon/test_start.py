"""Starting and ending a daemon, with a stand-in for it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from faops.daemon import lock, log, paths, start
from faops.daemon.lock import Holder, RunningError
from faops.errors import DaemonError, NotRunningError

from . import stand_in


@pytest.fixture(autouse=True)
def stand_in_command(private_daemon: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """start() starts the stand-in, and none is left."""
    monkeypatch.setattr(start, "COMMAND", stand_in.COMMAND)
    yield
    if found := lock.holder():
        os.kill(found.pid, signal.SIGKILL)
    for child in start._children:
        child.wait()


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_daemon_is_started_detached_and_ended(monkeypatch: pytest.MonkeyPatch, private_daemon: Path) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "/of/whoever/starts")
    monkeypatch.chdir(private_daemon)
    started = start.start()
    assert started == lock.holder()
    assert start.probe()[0]
    process = Path(f"/proc/{started.pid}")
    assert os.getsid(started.pid) == started.pid != os.getsid(0)
    assert os.readlink(process / "cwd") == "/"
    assert [os.readlink(process / "fd" / number) for number in "012"] == ["/dev/null"] + [str(start.output_path())] * 2
    assert b"NOTIFY_SOCKET" not in (process / "environ").read_bytes()
    assert json.loads(log.tail(paths.log_path(), 1)[0])["detached"] is True
    assert start.stop() == started
    assert lock.holder() is None
    with pytest.raises(NotRunningError):
        start.stop()
    assert start._children[0].wait() == 0


def test_a_running_one_is_not_started_again() -> None:
    started = start.start()
    with pytest.raises(RunningError, match=f"pid {started.pid} since") as caught:
        start.start()
    assert caught.value.holder == started


def test_of_two_starts_at_once_one_is_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both have seen that none runs."""
    both = threading.Barrier(2)
    real = start._launch

    def launch(command: list[str], output: Path) -> subprocess.Popen[bytes]:
        both.wait(30)
        return real(command, output)

    monkeypatch.setattr(start, "_launch", launch)
    ends: list[Holder | DaemonError] = []

    def begin() -> None:
        try:
            ends.append(start.start())
        except DaemonError as error:
            ends.append(error)

    threads = [threading.Thread(target=begin) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    started = next(end for end in ends if isinstance(end, Holder))
    refused = next(end for end in ends if isinstance(end, RunningError))
    assert refused.holder == started == lock.holder()
    assert all(json.loads(line)["detached"] for line in log.tail(paths.log_path(), 2))


def test_one_that_fails_says_why_and_not_what_an_earlier_one_said() -> None:
    start.output_path().write_text("error: of yesterday\n")
    with pytest.raises(DaemonError, match=r"has ended with exit code 1:\nerror: nothing works today$"):
        start.start(["fail"])
    assert lock.holder() is None


def test_of_one_that_is_killed_the_log_tells_the_last() -> None:
    with pytest.raises(DaemonError, match=r"has ended with signal SIGKILL:\n.*INFO     started  detached=true"):
        start.start(["crash"])


def test_one_that_is_never_ready_is_left_running() -> None:
    with pytest.raises(DaemonError, match=r"not ready after 0\.\d s: .*; it is left running, see `faops daemon logs`"):
        start.start(["unready"], wait_seconds=0.1)
    child = start._children[-1]
    wait_until(lambda: start.probe() == (False, "the queue is repaired"))
    found = lock.holder()
    assert found
    assert found.pid == child.pid
    assert start.stop() == found


def test_a_program_that_cannot_be_started_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(DaemonError, match=r"cannot be started: .*/nowhere/python"):
        start.start()


def test_one_that_does_not_end_is_killed_only_when_told_to() -> None:
    started = start.start(["deaf"])
    with pytest.raises(DaemonError, match=rf"pid {started.pid}\) still runs 0\.1 s after SIGTERM; .*stop --kill"):
        start.stop(wait_seconds=0.1)
    assert lock.holder() == started
    assert start.stop(wait_seconds=0.1, kill=True) == started
    assert lock.holder() is None
    assert start._children[-1].wait() == -signal.SIGKILL


def test_no_stranger_is_signalled() -> None:
    """A process that has the daemon's pid, but is another one."""
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as stranger:
        assert stranger.stdin and stranger.stdout
        holder = Holder(stranger.pid, "", "", "", "an earlier boot:1")
        with start._Process(holder) as process:
            process.send(signal.SIGKILL)
        stranger.stdin.write(b"still there\n")
        assert stranger.stdout.readline() == b"still there\n"
        with start._Process(replace(holder, birth=lock.birth(stranger.pid))) as process:
            process.send(signal.SIGKILL)
        assert stranger.wait() == -signal.SIGKILL


def test_without_descriptors_of_processes_signals_arrive_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "pidfd_open")
    with subprocess.Popen(["sleep", "60"]) as child:
        with start._Process(Holder(child.pid, "", "", "", lock.birth(child.pid))) as process:
            process.send(signal.SIGTERM)
        assert child.wait() == -signal.SIGTERM


def test_one_that_ended_meanwhile_takes_no_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    child = subprocess.Popen(["sleep", "60"])
    with start._Process(Holder(child.pid, "", "", "", lock.birth(child.pid))) as process:
        child.kill()
        child.wait()
        process.send(signal.SIGTERM)
        monkeypatch.setattr(Holder, "lives", lambda holder: True)  # it ends right after the look
        process.send(signal.SIGTERM)


def test_one_that_may_not_be_signalled_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    with start._Process(Holder(os.getpid(), "", "", "", lock.birth(os.getpid()))) as process:
        for module, name in ((os, "kill"), (signal, "pidfd_send_signal")):
            monkeypatch.setattr(module, name, refuse)
        with pytest.raises(DaemonError, match="takes no signal from this process"):
            process.send(signal.SIGTERM)


def test_probe_says_why_there_is_no_answer(private_daemon: Path) -> None:
    assert start.probe() == (False, "no answer on its socket ([Errno 2] No such file or directory)")
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(paths.socket_path()))
        silent.listen()
        assert start.probe(timeout=0.01) == (False, "no answer on its socket (timed out)")


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"7", b'{"reason": ""}', b"[" * 10_000, b"\xff"])
def test_an_answer_without_a_reason_has_none(body: bytes) -> None:
    assert start._reason(body) == ""


def test_this_process_is_not_detached() -> None:
    assert not start.is_detached()
