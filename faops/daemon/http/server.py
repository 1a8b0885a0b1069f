"""Lets the application listen: on a Unix socket, or on an address of this machine. Inside the loop that runs."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import socket
import stat
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from faops.daemon.http.peer import IDLE_SECONDS, Connection, Doorman
from faops.errors import ArgumentError, DaemonError

STOP_SECONDS = 2  # that requests under way get, once the daemon ends
ABORT_SECONDS = 0.5  # and then until their tasks are gone
BACKLOG = 1024
LARGEST_HEAD = 1 << 16  # bytes of a request's head that have come without its end
PRIVATE = 0o177  # the umask that leaves a socket to its user


class Listener:
    """An application that listens on one socket; made by :func:`serve_unix` and :func:`serve_tcp`."""

    def __init__(self, app: ASGIApp, bound: socket.socket, doorman: Doorman, tidy: Callable[[], None]) -> None:
        self.socket = bound
        self._server = _Server(_configured(app, doorman))
        self._tidy = tidy
        self._task: asyncio.Task[None] | None = None

    @property
    def url(self) -> str:
        """Where to reach it: http://127.0.0.1:8741, or http+unix and the path."""
        name = self.socket.getsockname()
        if self.socket.family in (socket.AF_INET, socket.AF_INET6):
            host = f"[{name[0]}]" if ":" in name[0] else name[0]
            return f"http://{host}:{name[1]}"
        return f"http+unix://{name}"

    async def start(self) -> None:
        """Begin to listen."""
        self._task = asyncio.create_task(self._server.serve(sockets=[self.socket]))
        began = asyncio.create_task(self._server.began.wait())
        await asyncio.wait({self._task, began}, return_when=asyncio.FIRST_COMPLETED)
        began.cancel()
        if self._task.done():
            self._task.result()

    async def stop(self) -> None:
        """Take no more connections, let requests under way end for STOP_SECONDS, close the rest; again does nothing."""
        self._server.end()
        try:
            if self._task is not None:
                await asyncio.wait({self._task}, timeout=STOP_SECONDS + ABORT_SECONDS)
                self._server.abort()
                await asyncio.wait({self._task}, timeout=ABORT_SECONDS)
                self._task.cancel()
        finally:
            self.socket.close()
            tidy, self._tidy = self._tidy, _nothing
            tidy()


class _Server(uvicorn.Server):
    """uvicorn's server without signal handlers, which are the daemon's, and without ticks: an idle daemon sleeps."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.began = asyncio.Event()
        self._ended = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.began.set()

    async def main_loop(self) -> None:
        await self._ended.wait()

    def end(self) -> None:
        self._ended.set()

    def abort(self) -> None:
        """Close the connections that are left."""
        for connection in list(self.server_state.connections):
            transport: Any = getattr(connection, "transport", None)
            if transport is not None:
                transport.abort()


def _configured(app: ASGIApp, doorman: Doorman) -> uvicorn.Config:
    protocol: Any = partial(Connection, doorman=doorman)  # called as the class would be
    return uvicorn.Config(
        app,
        http=protocol,
        ws="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        access_log=False,
        proxy_headers=False,  # nobody stands in between, so nobody's word for an address is taken
        server_header=False,
        date_header=False,  # the application's: uvicorn's needs a tick
        backlog=BACKLOG,
        h11_max_incomplete_event_size=LARGEST_HEAD,
        timeout_keep_alive=IDLE_SECONDS,
        timeout_graceful_shutdown=STOP_SECONDS,
    )


def _nothing() -> None:
    pass


# -------------------------------------------------------------------------------------------------- Unix


async def serve_unix(app: ASGIApp, where: Path | socket.socket, doorman: Doorman) -> Listener:
    """Listen on a Unix socket: a path, or a socket that somebody else has bound and will remove.

    Whoever calls it holds the daemon's lock, so a socket that lies at the path is a dead daemon's and is replaced.
    Raises DaemonError where that cannot be.
    """
    if isinstance(where, socket.socket):
        listener = Listener(app, where, doorman, _nothing)
    else:
        bound = _bind(where)
        listener = Listener(app, bound, doorman, partial(_remove, where, _inode(where)))
    await listener.start()
    return listener


def _bind(path: Path) -> socket.socket:
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(PRIVATE)
    try:
        _remove_dead(path)
        bound.bind(str(path))
        bound.listen(BACKLOG)
    except OSError as error:
        bound.close()
        raise DaemonError(f"{path}: no socket can be made there: {error.strerror or error}") from None
    except BaseException:
        bound.close()
        raise
    finally:
        os.umask(before)
    return bound


def _remove_dead(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise DaemonError(f"{path} is in the way: it is no socket")
        path.unlink()


def _inode(path: Path) -> int | None:
    try:
        return path.lstat().st_ino
    except OSError:
        return None


def _remove(path: Path, inode: int | None) -> None:
    """Remove our socket, unless something else lies in its place by now."""
    with contextlib.suppress(OSError):
        if inode is not None and _inode(path) == inode:
            path.unlink()


# -------------------------------------------------------------------------------------------------- TCP


async def serve_tcp(app: ASGIApp, host: str, port: int, doorman: Doorman, allow_remote: bool = False) -> Listener:
    """Listen on an address of this machine, of the loopback unless ``allow_remote``; port 0 is any free one.

    ``app`` must be one that wants a token. Raises ArgumentError for another host, and DaemonError where it cannot
    listen.
    """
    address = numeric(host)
    if not allow_remote and not ipaddress.ip_address(address).is_loopback:
        raise ArgumentError("http", repr(f"{host}:{port}"), "an address of the loopback; --allow-remote takes others")
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((address, port))
        bound.listen(BACKLOG)
    except OSError as error:
        bound.close()
        raise DaemonError(f"http: {host}:{port} cannot be listened on: {error.strerror or error}") from None
    listener = Listener(app, bound, doorman, _nothing)
    await listener.start()
    return listener


def numeric(host: str) -> str:
    """A host as a number; of names only localhost is known. Raises ArgumentError."""
    if host == "localhost":
        return "127.0.0.1"
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        raise ArgumentError("http", repr(host), "an address in numbers, such as 127.0.0.1, or localhost") from None
