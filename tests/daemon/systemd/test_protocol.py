"""What the daemon tells systemd, and the sockets that it gets from it."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from faops.daemon import systemd
from faops.daemon.systemd import protocol
from faops.errors import DaemonError


@pytest.fixture(params=["path", "abstract"])
def manager(
    request: pytest.FixtureRequest, private_daemon: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[socket.socket]:
    """systemd's end of NOTIFY_SOCKET."""
    name = str(private_daemon / "notify") if request.param == "path" else f"@faops-test-{uuid.uuid4()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(name.replace("@", "\0", 1))
        listener.settimeout(30)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        yield listener


def test_states_arrive(manager: socket.socket) -> None:
    assert systemd.notify(READY=1, STATUS="tuning 3 of 7", MAINPID=12)
    assert manager.recv(4096) == b"READY=1\nSTATUS=tuning 3 of 7\nMAINPID=12"


def test_a_reload_tells_its_time(manager: socket.socket) -> None:
    before = time.monotonic_ns() // 1000
    assert systemd.notify(RELOADING=1)
    first, second = manager.recv(4096).decode().split("\n")
    assert first == "RELOADING=1"
    name, _, microseconds = second.partition("=")
    assert name == "MONOTONIC_USEC"
    assert before <= int(microseconds) <= time.monotonic_ns() // 1000


def test_a_state_is_one_line_of_bounded_length(manager: socket.socket) -> None:
    assert systemd.notify(STATUS="one\nREADY=1\ttwo\ud800" + "x" * 10_000)
    text = manager.recv(65536).decode()
    assert text.startswith("STATUS=one READY=1 two?x") and "\n" not in text
    assert len(text) == len("STATUS=") + protocol.LONGEST_VALUE


@pytest.mark.parametrize(
    "address", ["", "vsock:2:9999", "relative", "/nowhere/notify", "@nobody-listens-here", "/" * 300]
)
def test_where_nobody_listens_nothing_happens(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    assert not systemd.notify(READY=1)


def test_a_manager_that_does_not_read_is_not_waited_for(
    manager: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float | None] = []

    class Socket(socket.socket):
        def send(self, data: bytes) -> int:  # type: ignore[override]
            waits.append(self.gettimeout())
            return super().send(data)

    monkeypatch.setattr(protocol.socket, "socket", Socket)
    while systemd.notify(WATCHDOG=1):
        assert len(waits) < 100_000
    assert len(waits) > 1 and set(waits) == {0.0}


@pytest.mark.parametrize(
    ("microseconds", "pid", "seconds"),
    [
        ("30000000", None, 30.0), ("1500000", "own", 1.5), ("1", "other", None), ("", None, None), ("0", None, None),
        ("-5", None, None), ("x", None, None), ("²", None, None), (None, None, None),
    ],
)  # fmt: skip
def test_the_watchdog_is_for_the_process_it_names(
    microseconds: str | None, pid: str | None, seconds: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if microseconds is not None:
        monkeypatch.setenv("WATCHDOG_USEC", microseconds)
    if pid:
        monkeypatch.setenv("WATCHDOG_PID", str(os.getpid() + (pid == "other")))
    assert systemd.watchdog_seconds() == seconds


# ------------------------------------------------------------------------------------------------------------- sockets

PROGRAM = """\
import os, sys
os.environ["LISTEN_PID"] = sys.argv[1].replace("own", str(os.getpid()))
from faops.daemon import systemd
from faops.errors import DaemonError
try:
    found = systemd.inherited_sockets()
except DaemonError as error:
    sys.exit(str(error))
for passed in found:
    print(passed.getsockname(), passed.get_inheritable(), passed.fileno())
print(sorted(name for name in os.environ if name.startswith("LISTEN_")), systemd.inherited_sockets())
"""


def passed_on(*sockets: socket.socket, pid: str = "own", count: str = "") -> tuple[int, str, str]:
    """Runs PROGRAM with descriptors from 3 on as systemd would: (exit code, output, errors)."""

    def place() -> None:
        for number, each in enumerate(sockets):  # theirs are far above
            os.dup2(each.fileno(), protocol.FIRST_SOCKET + number, inheritable=True)

    numbers = tuple(range(protocol.FIRST_SOCKET, protocol.FIRST_SOCKET + len(sockets)))
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, pid],
        env={**os.environ, "LISTEN_FDS": count or str(len(sockets)), "LISTEN_FDNAMES": "faops.socket"},
        preexec_fn=place, pass_fds=numbers, capture_output=True, text=True,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


@contextlib.contextmanager
def high(family: int, kind: int) -> Iterator[socket.socket]:
    """A socket whose descriptor is none of those to which sockets are passed."""
    import fcntl

    with socket.socket(family, kind) as low:
        descriptor = fcntl.fcntl(low.fileno(), fcntl.F_DUPFD_CLOEXEC, 500)
    with socket.socket(fileno=descriptor) as made:
        yield made


def test_listening_sockets_are_taken_once(private_daemon: Path) -> None:
    with high(socket.AF_UNIX, socket.SOCK_STREAM) as first, high(socket.AF_UNIX, socket.SOCK_STREAM) as second:
        for each, name in ((first, "a.sock"), (second, "b.sock")):
            each.bind(str(private_daemon / name))
            each.listen()
        code, output, errors = passed_on(first, second)
    assert (code, errors) == (0, "")
    assert output.splitlines() == [
        f"{private_daemon / 'a.sock'} False 3",
        f"{private_daemon / 'b.sock'} False 4",
        "[] []",
    ]


def test_a_socket_that_listens_on_a_network_is_refused() -> None:
    with high(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        code, _, errors = passed_on(listener)
    assert code == 1
    assert errors == "LISTEN_FDS: descriptor 3 is a socket of AF_INET, SOCK_STREAM, expected a listening Unix socket\n"


@pytest.mark.parametrize("kind", ["SOCK_STREAM", "SOCK_DGRAM"])
def test_a_socket_that_does_not_listen_is_refused(kind: str, private_daemon: Path) -> None:
    with high(socket.AF_UNIX, getattr(socket, kind)) as bound:
        bound.bind(str(private_daemon / "a.sock"))
        code, _, errors = passed_on(bound)
    assert code == 1
    assert f"AF_UNIX, {kind}, expected a listening" in errors


def test_a_descriptor_that_is_no_socket_is_refused() -> None:
    """As when whoever started it closed what it passed, so that something else has its number."""
    code, _, errors = passed_on(count="1")
    assert code == 1
    assert errors.startswith("LISTEN_FDS: descriptor 3 is no socket")


@pytest.mark.parametrize("count", ["0", "x", "-1", "²"])
def test_without_sockets_there_are_none(count: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
    monkeypatch.setenv("LISTEN_FDS", count)
    assert systemd.inherited_sockets() == []


@pytest.mark.parametrize("pid", ["1", "", "x"])
def test_sockets_of_another_process_are_left_alone(pid: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LISTEN_PID", pid)
    monkeypatch.setenv("LISTEN_FDS", "3")
    assert systemd.inherited_sockets() == []
    assert "LISTEN_FDS" not in os.environ, "nor does a child take them for its own"


def test_a_refused_socket_stays_with_whoever_opened_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_INET) as passed:
        with pytest.raises(DaemonError):
            protocol._checked(passed.fileno())
        assert passed.getsockname()
