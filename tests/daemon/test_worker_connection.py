"""The worker's end of the connection: requests in their order, pauses at once, and its end."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from faops.daemon import worker
from faops.daemon.worker import connection as connection_module
from faops.daemon.worker.connection import Connection
from faops.errors import PlanError

LIMIT = 30.0


class Daemon:
    """The other end."""

    def __init__(self, channel: socket.socket) -> None:
        channel.settimeout(LIMIT)
        self.channel = channel
        self.lines = channel.makefile("rb")

    def send(self, **request: Any) -> None:
        self.channel.sendall(json.dumps(request).encode() + b"\n")

    def hear(self) -> dict[str, Any]:
        return dict(json.loads(self.lines.readline()))

    def close(self) -> None:
        self.lines.close()
        self.channel.close()


@pytest.fixture
def left(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Set instead of ending this process."""
    event = threading.Event()
    monkeypatch.setattr(connection_module, "leave", event.set)
    return event


@pytest.fixture
def ends(left: threading.Event) -> Iterator[tuple[Daemon, Connection]]:
    ours, theirs = socket.socketpair()
    daemon, connection = Daemon(ours), Connection(theirs)
    connection.listen()
    yield daemon, connection
    daemon.close()
    assert left.wait(LIMIT)
    theirs.close()


class Waiting(threading.Thread):
    """Waits for leave to measure, and then has an ``outcome``."""

    def __init__(self, connection: Connection) -> None:
        super().__init__()
        self.connection, self.outcome = connection, ""
        self.start()

    def run(self) -> None:
        try:
            self.connection.wait_for_leave()
            self.outcome = "went"
        except SystemExit as error:
            self.outcome = f"exit {error.code}"

    def ended(self) -> str:
        self.join(LIMIT)
        return self.outcome


def test_requests_come_in_their_order(ends: tuple[Daemon, Connection]) -> None:
    daemon, connection = ends
    for serial in range(3):
        daemon.send(serial=serial, do="devices")
    assert [(connection.next() or {})["serial"] for _ in range(3)] == [0, 1, 2]
    connection.tell({"kind": "measured"})
    connection.send({"serial": 2, "value": None})
    assert daemon.hear() == {"serial": 2, "event": {"kind": "measured"}}
    assert daemon.hear() == {"serial": 2, "value": None}


def test_a_pause_counts_at_once(ends: tuple[Daemon, Connection]) -> None:
    daemon, connection = ends
    connection.wait_for_leave()
    daemon.send(do="pause")
    daemon.send(serial=1, do="devices")
    assert connection.next() is not None  # and so the pause has come
    waiting = Waiting(connection)
    daemon.send(do="pause")
    waiting.join(0.05)
    assert waiting.is_alive()
    daemon.send(do="go")
    assert waiting.ended() == "went"
    connection.wait_for_leave()


@pytest.mark.parametrize("paused", [False, True])
def test_it_is_told_to_end_between_measurements(ends: tuple[Daemon, Connection], paused: bool) -> None:
    daemon, connection = ends
    if paused:
        daemon.send(do="pause")
        daemon.send(serial=1, do="devices")
        connection.next()
        waiting = Waiting(connection)
    daemon.send(do="exit")
    assert connection.next() is None
    if not paused:
        waiting = Waiting(connection)
    assert waiting.ended() == "exit 0"


@pytest.mark.parametrize("last", [b"", b"no json\n", b'{"half'])
def test_it_ends_when_nothing_more_can_come(left: threading.Event, last: bytes) -> None:
    ours, theirs = socket.socketpair()
    connection = Connection(theirs)
    connection.listen()
    time.sleep(0)
    assert not left.is_set()
    ours.sendall(last)
    ours.close()
    assert left.wait(LIMIT)
    connection.send({"serial": 1})  # nobody hears it, and that is no error
    theirs.close()


def test_answers(
    ends: tuple[Daemon, Connection], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    daemon, connection = ends

    def refuse() -> None:
        raise PlanError("model: got 'x'")

    def fail() -> None:
        raise ZeroDivisionError

    answers = {"add": lambda one, two: one + two, "refuse": refuse, "fail": fail}
    monkeypatch.setattr(worker, "_answers", lambda given: answers)
    daemon.send(serial=1, do="add", one=1, two=2)
    daemon.send(serial=2, do="refuse")
    assert capfd.readouterr().err == ""
    daemon.send(serial=3, do="fail")
    daemon.send(serial=4, do="what")
    daemon.send(serial=5, do="add", three=3)
    daemon.send(do="exit")
    worker.serve(connection)
    assert daemon.hear() == {"serial": 1, "value": 3}
    assert daemon.hear() == {"serial": 2, "error": {"type": "PlanError", "message": "model: got 'x'"}}
    assert daemon.hear() == {"serial": 3, "error": {"type": "ZeroDivisionError", "message": "ZeroDivisionError"}}
    assert daemon.hear() == {"serial": 4, "error": {"type": "KeyError", "message": "'what'"}}
    assert daemon.hear()["error"]["type"] == "TypeError"
    told = capfd.readouterr().err
    assert told.count("Traceback") == 3  # of defects, for whoever looks at the output; none for what people do
    assert "PlanError" not in told
