"""Listening: where, for whom, and that it ends."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import stat
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from faops.daemon.http import server
from faops.daemon.http.app import build
from faops.daemon.http.peer import Doorman
from faops.daemon.http.server import serve_tcp, serve_unix
from faops.errors import ArgumentError, DaemonError
from tests.daemon.http.support import FakeControl, Served, everything, one_answer

HEALTH = b"GET /healthz HTTP/1.1\r\nHost: faops\r\n\r\n"


@pytest.fixture
def doorman(control: FakeControl) -> Doorman:
    return Doorman(control.metrics.refused)


def run(work: Callable[[], Awaitable[Any]]) -> Any:
    async def whole() -> Any:
        return await asyncio.wait_for(work(), 30)

    return asyncio.run(whole())


# -------------------------------------------------------------------------------------------------- Unix


@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_the_socket_is_its_users_alone_and_goes_with_the_daemon(
    control: FakeControl, doorman: Doorman, private_daemon: Path, umask: int
) -> None:
    path = private_daemon / "s"

    async def look() -> None:
        listener = await serve_unix(build(control), path, doorman)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert os.umask(umask) == umask
        assert listener.url == f"http+unix://{path}"
        await listener.stop()
        await listener.stop()

    before = os.umask(umask)
    try:
        run(look)
    finally:
        os.umask(before)
    assert not path.exists()


def test_a_dead_daemons_socket_is_replaced(control: FakeControl, doorman: Doorman, private_daemon: Path) -> None:
    path = private_daemon / "s"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))

    async def replace() -> None:
        listener = await serve_unix(build(control), path, doorman)
        reader, writer = await asyncio.open_unix_connection(str(path))
        writer.write(HEALTH)
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        writer.close()
        await listener.stop()

    run(replace)


def test_what_is_no_socket_is_left_alone(control: FakeControl, doorman: Doorman, private_daemon: Path) -> None:
    path = private_daemon / "s"
    path.write_text("precious")
    with pytest.raises(DaemonError, match="in the way"):
        run(lambda: serve_unix(build(control), path, doorman))
    assert path.read_text() == "precious"
    with pytest.raises(DaemonError, match="no socket can be made there"):
        run(lambda: serve_unix(build(control), private_daemon / "none" / "s", doorman))
    with pytest.raises(DaemonError, match="no socket can be made there"):
        run(lambda: serve_unix(build(control), private_daemon / ("x" * 200), doorman))


def test_another_daemons_socket_is_not_removed_at_the_end(
    control: FakeControl, doorman: Doorman, private_daemon: Path
) -> None:
    path = private_daemon / "s"

    async def replaced() -> None:
        listener = await serve_unix(build(control), path, doorman)
        path.unlink()
        path.write_text("a later one's")
        await listener.stop()

    run(replaced)
    assert path.exists()


def test_an_inherited_socket_is_used_and_left(control: FakeControl, doorman: Doorman, private_daemon: Path) -> None:
    path = private_daemon / "s"
    inherited = socket.socket(socket.AF_UNIX)
    inherited.bind(str(path))
    inherited.listen()

    async def serve() -> None:
        listener = await serve_unix(build(control), inherited, doorman)
        async with httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(uds=str(path))) as client:
            assert (await client.get("http://faops/healthz")).json() == {"status": "ok"}
        await listener.stop()

    run(serve)
    assert path.exists()


# -------------------------------------------------------------------------------------------------- TCP


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
def test_the_loopback_with_its_token(control: FakeControl, doorman: Doorman, host: str) -> None:
    if host == "::1" and not has_ipv6():
        pytest.skip("this machine has no IPv6 loopback")

    async def serve() -> None:
        listener = await serve_tcp(build(control, "secret"), host, 0, doorman)
        assert listener.url.startswith("http://[::1]:" if host == "::1" else "http://127.0.0.1:")
        async with httpx.AsyncClient(base_url=listener.url, trust_env=False) as client:
            assert (await client.get("/v1/status")).status_code == 401
            allowed = {"authorization": "Bearer secret"}
            assert (await client.get("/v1/status", headers=allowed)).status_code == 200
            rebound = await client.get("/v1/status", headers={**allowed, "host": "evil.example"})
            assert rebound.status_code == 421
        await listener.stop()
        with pytest.raises(OSError):
            await asyncio.open_connection(*listener_address(listener.url))

    run(serve)


def listener_address(url: str) -> tuple[str, int]:
    parsed = httpx.URL(url)
    assert parsed.port is not None
    return parsed.host, parsed.port


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as found:
            found.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org", ""])
def test_no_other_address_unless_allowed(control: FakeControl, doorman: Doorman, host: str) -> None:
    with pytest.raises(ArgumentError, match="http"):
        run(lambda: serve_tcp(build(control, "secret"), host, 0, doorman))


def test_every_address_if_allowed(control: FakeControl, doorman: Doorman) -> None:
    async def serve() -> None:
        listener = await serve_tcp(build(control, "secret"), "0.0.0.0", 0, doorman, allow_remote=True)
        assert listener.socket.getsockname()[0] == "0.0.0.0"
        await listener.stop()

    run(serve)


def test_an_address_in_use_is_told(control: FakeControl, doorman: Doorman) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(DaemonError, match=rf"127\.0\.0\.1:{port} cannot be listened on: Address already in use"):
            run(lambda: serve_tcp(build(control, "secret"), "127.0.0.1", port, doorman))


# -------------------------------------------------------------------------------------------------- the end


def test_signals_stay_the_daemons(control: FakeControl, doorman: Doorman, private_daemon: Path) -> None:
    async def serve() -> None:
        before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
        listener = await serve_unix(build(control), private_daemon / "s", doorman)
        assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
        await listener.stop()

    run(serve)


def test_idle_connections_do_not_delay_the_end(served: Served) -> None:
    with served.connected() as idle, served.connected() as half, served.connected() as fresh:
        idle.sendall(HEALTH)
        assert one_answer(idle)[0] == 200
        half.sendall(b"GET /heal")
        began = time.monotonic()
        served.run(served.listener.stop())
        assert time.monotonic() - began < 15  # seconds; 0.2 on an idle machine
        for connection in (idle, half, fresh):
            assert connection.recv(1000) == b""


def test_a_request_under_way_is_answered_before_the_end(served: Served) -> None:
    body = b'{"seconds": 5}'
    with served.connected() as connection:
        connection.sendall(
            b"POST /v1/pause HTTP/1.1\r\nHost: f\r\nContent-Type: application/json\r\nExpect: 100-continue\r\n"
            b"Content-Length: %d\r\n\r\n" % len(body)
        )
        assert connection.recv(1000).startswith(b"HTTP/1.1 100")  # it is being read
        end = asyncio.run_coroutine_threadsafe(served.listener.stop(), served.loop)
        time.sleep(0.01)
        connection.sendall(body)
        assert one_answer(connection)[0] == 200
        assert everything(connection) == b""  # it was the last one
        end.result(30)
    assert served.control.told == [("pause", "", 5.0)]


def test_a_request_that_does_not_end_is_broken_off(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served.listener._server.config, "timeout_graceful_shutdown", 0.01)
    with served.connected() as connection:
        connection.sendall(
            b"POST /v1/pause HTTP/1.1\r\nHost: f\r\nContent-Type: application/json\r\nExpect: 100-continue\r\n"
            b"Content-Length: 5\r\n\r\n"
        )
        assert connection.recv(1000).startswith(b"HTTP/1.1 100")
        served.run(served.listener.stop())
        assert served.listener._task is not None and served.listener._task.done()
    assert served.control.told == []


def test_an_idle_server_sleeps(served: Served) -> None:
    """No tick: nothing is scheduled while nothing happens."""

    async def scheduled() -> int:
        handles = asyncio.get_running_loop()._scheduled
        return len([handle for handle in handles if not handle.cancelled()])

    assert served.run(scheduled()) == 0


def test_stopping_has_a_bound_that_systemd_allows() -> None:
    assert server.STOP_SECONDS + 2 * server.ABORT_SECONDS <= 3
