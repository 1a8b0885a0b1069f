"""Connections over a real socket: whose they are, slow ones, malformed ones, too many."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from faops.daemon.http import peer, requests
from tests.daemon.http.support import RESULT, Served, everything, one_answer, problem_in, task, until

HEAD = b"GET /healthz HTTP/1.1\r\nHost: faops\r\n"
HEALTH = HEAD + b"\r\n"
OK = b'{"status":"ok"}'
NOBODY = 65534


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """All limits of time are short."""
    monkeypatch.setattr(peer, "HEAD_SECONDS", 0.05)
    monkeypatch.setattr(peer, "WRITE_SECONDS", 0.05)
    monkeypatch.setattr(requests, "BODY_SECONDS", 0.05)


def post(body: bytes, headers: bytes = b"") -> bytes:
    return b"POST /v1/pause HTTP/1.1\r\nHost: faops\r\nContent-Type: application/json\r\n" + headers + b"\r\n" + body


def answers(served: Served) -> None:
    """Fail unless the daemon still answers."""
    with served.connected() as connection:
        connection.sendall(HEALTH)
        assert one_answer(connection) == (200, OK)


# -------------------------------------------------------------------------------------------------- whose


def test_our_own_connections_are_served_again_and_again(served: Served) -> None:
    with served.connected() as connection:
        for _ in range(3):
            connection.sendall(HEALTH)
            assert one_answer(connection) == (200, OK)
    assert served.count("faops_refused_connections_total", reason="user") == 0


@pytest.fixture
def strange(private_daemon: Path) -> Iterator[Served]:
    """A daemon that takes this process for another user's."""
    served = Served(private_daemon, uid=os.geteuid() + 1)
    yield served
    served.close()


def test_another_users_connection_is_closed_unread(strange: Served, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="faops"):
        for _ in range(5):
            assert strange.sends(HEALTH) == b""
    until(lambda: strange.count("faops_refused_connections_total", reason="user") == 5)
    assert strange.count("faops_http_requests_total", method="GET", path="/healthz", status="200") == 0
    assert [record.message for record in caplog.records] == ["a connection of another user was closed"]


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="becomes another user, which root alone can")
def test_a_process_of_another_user_is_refused(served: Served, private_daemon: Path) -> None:
    """Nothing but the check of the peer's user stands in its way: directory and socket are opened for this test."""
    private_daemon.chmod(0o711)
    served.path.chmod(0o777)
    assert connects_as(NOBODY, served) == b"connected, then closed"
    assert connects_as(0, served).startswith(b"HTTP/1.1 200")
    served.path.chmod(0o600)
    assert connects_as(NOBODY, served) == b"Permission denied"
    until(lambda: served.count("faops_refused_connections_total", reason="user") == 1)


def connects_as(uid: int, served: Served) -> bytes:
    """What a child of that user sees of the daemon."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setresuid(uid, uid, uid)
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(30)
                connection.connect(str(served.path))
                with contextlib.suppress(OSError):
                    connection.sendall(HEAD + b"Connection: close\r\n\r\n")
                os.write(writer, everything(connection) or b"connected, then closed")
        except OSError as error:
            os.write(writer, (error.strerror or str(error)).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        found = file.read()
    os.waitpid(child, 0)
    return found


def test_who_cannot_be_told_is_refused() -> None:
    class Mute:
        family = socket.AF_UNIX

        def getsockopt(self, *arguments: int) -> bytes:
            raise OSError(95, "Operation not supported")

    reasons: list[str] = []
    doorman = peer.Doorman(reasons.append)
    assert doorman.objection(Mute(), 1) == peer.STRANGER
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert doorman.objection(ours, 1) == ""
        assert peer.Doorman(reasons.append, uid=NOBODY - 1).objection(ours, 1) == peer.STRANGER


# -------------------------------------------------------------------------------------------------- how many


def test_too_many_connections_are_turned_away_and_the_others_served(private_daemon: Path) -> None:
    served = Served(private_daemon, most=3)
    try:
        with served.connected() as first, served.connected() as second, served.connected() as third:
            for connection in (first, second, third):
                connection.sendall(HEALTH)
                assert one_answer(connection) == (200, OK)
            refused = served.sends(b"")
            assert refused.startswith(b"HTTP/1.1 503") and problem_in(refused)["status"] == 503
            first.sendall(HEALTH)
            assert one_answer(first) == (200, OK)
        until(lambda: not served.listener._server.server_state.connections)
        answers(served)
        assert served.count("faops_refused_connections_total", reason="full") == 1
    finally:
        served.close()


def test_few_descriptors_allow_few_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    import resource

    for allowed, most in ((1_000_000, 1024), (resource.RLIM_INFINITY, 1024), (1024, 768), (256, 64)):
        monkeypatch.setattr(resource, "getrlimit", lambda _, allowed=allowed: (allowed, allowed))
        assert peer.most_connections() == most


# -------------------------------------------------------------------------------------------------- slow


@pytest.mark.parametrize("begun", [b"", b"GET /hea", HEAD, HEALTH[:-1]])
def test_a_head_that_does_not_come_ends_its_connection(served: Served, impatient: None, begun: bytes) -> None:
    answer = served.sends(begun)
    assert answer.startswith(b"HTTP/1.1 408") and "head" in problem_in(answer)["detail"]
    assert served.count("faops_refused_connections_total", reason="slow") == 1


def test_a_head_that_drips_is_not_waited_for_longer(served: Served, impatient: None) -> None:
    with served.connected() as connection:
        connection.sendall(HEAD)
        connection.settimeout(0.01)
        for _ in range(3000):
            try:
                connection.sendall(b"X-Drop: 1\r\n")
                if connection.recv(1):
                    break
            except TimeoutError:
                continue
            except OSError:
                break
        else:
            pytest.fail("it waits for ever")
    until(lambda: not served.listener._server.server_state.connections)


def test_more_bytes_are_no_more_time(served: Served) -> None:
    with served.connected() as connection:
        connections = served.listener._server.server_state.connections
        connection.sendall(HEAD)
        until(lambda: bool(connections))
        (taken,) = connections
        timer = taken._head_timer
        connection.sendall(b"X: 1\r\n")
        until(lambda: b"X: 1" in taken.conn.trailing_data[0])
        assert timer is taken._head_timer is not None


def test_nor_is_the_next_one_of_a_connection(served: Served, impatient: None) -> None:
    with served.connected() as connection:
        connection.sendall(HEALTH)
        assert one_answer(connection) == (200, OK)
        connection.sendall(b"GET /healthz")
        assert everything(connection).startswith(b"HTTP/1.1 408")


def test_a_body_that_does_not_come_is_408(served: Served, impatient: None) -> None:
    answer = served.sends(post(b'{"sec', b"Content-Length: 20\r\n"))
    assert answer.startswith(b"HTTP/1.1 408") and "not all of it came" in problem_in(answer)["detail"]


def test_a_body_that_nobody_reads_does_not_hold_its_connection(served: Served, impatient: None) -> None:
    with served.connected() as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: f\r\nContent-Length: 1000000\r\n\r\n")
        assert one_answer(connection) == (200, OK)
        try:
            for _ in range(10_000):
                connection.sendall(b"x")
                if not served.listener._server.server_state.connections:
                    break
        except (BrokenPipeError, ConnectionResetError):
            pass
    until(lambda: not served.listener._server.server_state.connections)


def test_an_answer_that_nobody_reads_does_not_hold_its_connection(served: Served, impatient: None) -> None:
    (job,) = served.control.queue.missed([(task(), 1)])
    served.control.queue.begin(job.id)
    served.control.queue.finish(job.id, {**RESULT, "heat_map": "x" * 4_000_000}, "")
    with served.connected() as connection:
        connection.sendall(b"GET /v1/jobs/%d/heat-map HTTP/1.1\r\nHost: f\r\n\r\n" % job.id)
        until(lambda: bool(served.listener._server.server_state.connections))
        until(lambda: not served.listener._server.server_state.connections)
    answers(served)


def test_a_patient_daemon_waits_for_a_slow_client(served: Served) -> None:
    """The limits are not so short that they meet who only pauses between two packets."""
    with served.connected() as connection:
        for byte in post(b'{"seconds": 5}', b"Content-Length: 14\r\n"):
            connection.sendall(bytes([byte]))
        assert one_answer(connection)[0] == 200
    assert served.control.told == [("pause", "", 5.0)]


# -------------------------------------------------------------------------------------------------- half-closed


def test_a_client_that_sends_no_more_gets_its_answer(served: Served) -> None:
    assert served.sends(HEALTH, half_close=True).endswith(OK)
    assert served.sends(post(b"{}", b"Content-Length: 2\r\n"), half_close=True).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    "content", [b"", b"GET", HEAD, post(b"{", b"Content-Length: 2\r\n"), post(b"", b"Transfer-Encoding: chunked\r\n")]
)
def test_half_a_request_changes_nothing(served: Served, content: bytes) -> None:
    served.sends(content, half_close=True)
    until(lambda: not served.listener._server.server_state.connections)
    answers(served)
    assert served.control.told == []


def test_a_client_that_goes_away_is_no_defect(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    for content in (HEALTH, HEALTH * 50, post(b"{", b"Content-Length: 2\r\n")):
        with served.connected() as connection:
            connection.sendall(content)
    until(lambda: not served.listener._server.server_state.connections)
    answers(served)
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


# -------------------------------------------------------------------------------------------------- malformed


@pytest.mark.parametrize(
    "content",
    [
        b"\x16\x03\x01\x02\x00\x01\x00",  # TLS
        b"GET\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\n\r\n",  # without Host
        b"GET http://[/ HTTP/1.1\r\nHost f\r\n\r\n",
        b"GET /a b HTTP/1.1\r\nHost: f\r\n\r\n",
        HEAD + b"X: \x00\r\n\r\n",
        HEAD + b"Content-Length: -1\r\n\r\n",
        HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n",
        HEAD + b"X: " + b"x" * 1_000_000 + b"\r\n\r\n",
        post(b"zz\r\n{}\r\n", b"Transfer-Encoding: chunked\r\n"),
    ],
)  # fmt: skip
def test_what_is_no_http_is_told_so(served: Served, content: bytes) -> None:
    answer = served.sends(content)
    assert answer.startswith(b"HTTP/1.1 400") and "HTTP/1.1" in problem_in(answer)["detail"]
    answers(served)
    assert served.control.told == []


def test_a_chunk_that_breaks_after_the_answer_closes(served: Served) -> None:
    with served.connected() as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: f\r\nTransfer-Encoding: chunked\r\n\r\n")
        assert one_answer(connection) == (200, OK)
        connection.sendall(b"no chunk\r\n")
        assert everything(connection) == b""


@pytest.mark.parametrize("headers", [b"Content-Length: 3000000\r\n", b"Transfer-Encoding: chunked\r\n"])
def test_an_oversized_body_is_told_so_while_it_is_sent(served: Served, headers: bytes) -> None:
    body = b" " * 3_000_000
    content = (
        body
        if b"Length" in headers
        else b"".join(b"10000\r\n" + b" " * 65536 + b"\r\n" for _ in range(40)) + b"0\r\n\r\n"
    )
    with served.connected() as connection:
        connection.sendall(post(content, headers))
        status, answer = one_answer(connection)
        assert status == 413 and "1048576" in json.loads(answer)["detail"]
        connection.sendall(HEALTH)  # the connection goes on
        assert one_answer(connection) == (200, OK)


@pytest.mark.parametrize(
    "extra",
    [
        b"Upgrade: websocket\r\nConnection: Upgrade\r\n",
        b"Upgrade: h2c\r\nConnection: upgrade\r\n",
        b"Expect: 100-continue\r\n",
    ],
)
def test_what_is_not_offered_is_passed_over(served: Served, extra: bytes, caplog: pytest.LogCaptureFixture) -> None:
    with served.connected() as connection:
        connection.sendall(HEAD + extra + b"\r\n")
        assert one_answer(connection) == (200, OK)
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_a_client_may_ask_before_it_sends(served: Served) -> None:
    with served.connected() as connection:
        connection.sendall(post(b"", b"Content-Length: 2\r\nExpect: 100-continue\r\n"))
        assert connection.recv(1000).startswith(b"HTTP/1.1 100")
        connection.sendall(b"{}")
        assert one_answer(connection)[0] == 200


LINES = st.binary(max_size=12) | st.sampled_from(
    [
        *(b"GET / HTTP/1.1", b"POST /v1/pause HTTP/1.1", b"DELETE /v1/jobs/1 HTTP/1.0", b"CONNECT a:1 HTTP/1.1"),
        *(b"HEAD * HTTP/1.1", b"OPTIONS * HTTP/1.1", b"GET /v1/jobs?%ff=%00 HTTP/1.1", b"GET http://x/%%% HTTP/1.1"),
        *(b"Host: f", b"Host: \xff", b"", b"Content-Length: 5", b"Content-Length: 99999999999999999999"),
        *(b"Transfer-Encoding: chunked", b"Transfer-Encoding: gzip", b"Content-Type: application/json"),
        *(b"Connection: close", b"Expect: 100-continue", b"Upgrade: websocket", b"Accept: ;;,,q=", b" folded"),
        *(b"Authorization: Bearer", b"{}", b"5", b'5\r\n{"a":\r\n0\r\n'),
    ]
)


@given(lines=st.lists(LINES, max_size=7), end=st.sampled_from([b"\r\n\r\n", b"\n\n", b""]))
@example(lines=[b"CONNECT a:1 HTTP/1.1", b"Host: f", b"", b"more"], end=b"")
@example(lines=[b"POST /v1/pause HTTP/1.1", b"Host: f", b"Transfer-Encoding: chunked", b"", b"5"], end=b"\r\n\r\n")
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_comes_the_daemon_goes_on(served: Served, lines: list[bytes], end: bytes) -> None:
    """No answer is a 500, every connection ends, and nothing is left of it."""
    answer = served.sends(b"\r\n".join(lines) + end, half_close=True)
    assert answer == b"" or answer.startswith(b"HTTP/1.")
    assert b"HTTP/1.1 500" not in answer
    until(lambda: not served.listener._server.server_state.connections)
    answers(served)
    assert served.complaints == []


def test_the_timers_of_a_connection_end_with_it(served: Served) -> None:
    """Or a closed connection would be kept in memory for as long."""
    served.sends(HEAD + b"Connection: close\r\n\r\n")
    for content in (b"", HEAD):
        with served.connected() as connection:
            connection.sendall(content)
            until(lambda: bool(served.listener._server.server_state.connections))
    until(lambda: not served.listener._server.server_state.connections)

    async def timers() -> int:
        handles = asyncio.get_running_loop()._scheduled
        return sum("Connection" in repr(handle) for handle in handles if not handle.cancelled())

    assert served.run(timers()) == 0
