"""One connection: whose it is, and that it neither dawdles nor breaks what serves the others.

uvicorn's protocol class on h11 does the rest. Of it is used what has been there from uvicorn 0.30 on: the methods of
asyncio's protocols, ``send_400_response`` and ``shutdown``, the attributes ``conn``, ``connections``, ``cycle`` and
``transport``.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import struct
import sys
import time
from collections.abc import Callable
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from faops.daemon import log
from faops.daemon.http import problems

HEAD_SECONDS = 10.0  # until the head of a request is there
IDLE_SECONDS = 10  # between two requests of a connection
WRITE_SECONDS = 30.0  # in which a client must read what of its answer is left, once that does not fit a buffer
MOST_CONNECTIONS = 1024
SPARE_DESCRIPTORS = 256  # for the queue, the children and the log
FEWEST_CONNECTIONS = 64
LOG_SECONDS = 60.0  # between two lines about connections that were refused

# Why a connection is not taken, in metrics.
STRANGER = "user"
FULL = "full"

_PEER = struct.Struct("3i")  # struct ucred: pid, uid, gid
_XUCRED = struct.Struct("=IIh2x16I")  # struct xucred: version, uid, number of groups, groups
_SOL_LOCAL = 0
_LOCAL_PEERCRED = 1

logger = log.get("http")

# In place of uvicorn's own: what a client sends is no line of our log, and defects are told by the guard.
_silent = logging.getLogger("uvicorn.silent")
_silent.setLevel(logging.CRITICAL + 1)


def peer_uid(connection: Any) -> int:
    """The user at the other end of a Unix socket. Raises OSError where the system does not say."""
    if sys.platform == "linux":
        _, uid, _ = _PEER.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
        return int(uid)
    return int(_XUCRED.unpack(connection.getsockopt(_SOL_LOCAL, _LOCAL_PEERCRED, _XUCRED.size))[1])


def most_connections() -> int:
    """How many connections are served at once: less where few descriptors are allowed, of which each takes one."""
    import resource

    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if allowed == resource.RLIM_INFINITY:
        return MOST_CONNECTIONS
    return max(FEWEST_CONNECTIONS, min(MOST_CONNECTIONS, allowed - SPARE_DESCRIPTORS))


class Doorman:
    """Says which connections are taken, for all of a daemon's listeners. ``refused`` is told a word for each that is
    not, and the log once in a while."""

    def __init__(self, refused: Callable[[str], None], uid: int | None = None, most: int | None = None) -> None:
        self.refused = refused
        self.uid = os.geteuid() if uid is None else uid
        self.most = most_connections() if most is None else most
        self._logged = -LOG_SECONDS
        self._untold = 0

    def objection(self, connection: Any, count: int) -> str:
        """Why a connection is not taken, in a word; "" where it is. ``count`` are open with it."""
        if count > self.most:
            return FULL
        if connection is None or connection.family != getattr(socket, "AF_UNIX", None):
            return ""
        try:
            return "" if peer_uid(connection) == self.uid else STRANGER
        except (OSError, struct.error):
            return STRANGER

    def note(self, reason: str) -> None:
        """Count a connection that was not taken."""
        self.refused(reason)
        self._untold += 1
        now = time.monotonic()
        if now - self._logged >= LOG_SECONDS:
            words = "of another user" if reason == STRANGER else f"beyond {self.most}"
            logger.warning("connection_refused", f"a connection {words} was closed", connections=self._untold)
            self._logged, self._untold = now, 0


class Connection(H11Protocol):
    """uvicorn's protocol with a doorman and limits of time."""

    def __init__(self, *arguments: Any, doorman: Doorman, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.doorman = doorman
        self.logger = _silent
        self._head_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None

    @property
    def answering(self) -> bool:
        """Whether a request is being answered."""
        return self.cycle is not None and not self.cycle.response_complete

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take it, or close it at once."""
        super().connection_made(transport)  # type: ignore[arg-type]
        objection = self.doorman.objection(transport.get_extra_info("socket"), len(self.connections))
        if objection:
            self.doorman.note(objection)
            if objection == FULL:
                self.refuse(503, "too many connections")
            self.transport.close()
            return
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the timers."""
        self._cancel_timers()
        super().connection_lost(exc)
        self._unset_keepalive_if_required()

    def data_received(self, data: bytes) -> None:
        """Bytes of requests. While none is being answered, the next head must be complete in time, whether its bytes
        come one by one or are the rest of a body that nobody reads any more."""
        if self.transport.is_closing():
            return
        super().data_received(data)
        if self.answering:
            self._stop_expecting()
        else:
            self._expect_head()

    def eof_received(self) -> bool:  # type: ignore[override]
        """The client sends no more. One whose request is complete still gets its answer."""
        if not self.answering or self.cycle.more_body:
            return False
        self.cycle.keep_alive = False
        return True

    def pause_writing(self) -> None:
        """The client does not read its answer: not for ever."""
        super().pause_writing()
        if self._write_timer is None:
            self._write_timer = self.loop.call_later(WRITE_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        """The client reads again."""
        super().resume_writing()
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def shutdown(self) -> None:
        """The daemon ends: a request that is being answered is the last one."""
        if self.answering:
            self.cycle.keep_alive = False
        else:
            self.transport.close()

    def send_400_response(self, msg: str) -> None:
        """What came is no HTTP."""
        if self.answering:
            self.cycle.disconnected = True  # the body of a request whose answer is not there yet
            self.cycle.message_event.set()
        self.doorman.refused("malformed")
        self.refuse(400, "this is no request of HTTP/1.1")
        self.transport.close()

    def refuse(self, status: int, detail: str) -> None:
        """Write an answer without asking the application, as far as one may be written now."""
        answer = problems.response(status, detail, headers={"connection": "close"})
        head = h11.Response(status_code=status, headers=answer.raw_headers, reason=b"")
        with contextlib.suppress(h11.LocalProtocolError):  # another answer is under way
            for event in (head, h11.Data(data=bytes(answer.body)), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")

    def _expect_head(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(HEAD_SECONDS, self._head_missing)

    def _stop_expecting(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_missing(self) -> None:
        self._head_timer = None
        if self.conn.our_state is h11.IDLE:
            self.doorman.refused("slow")
            self.refuse(408, f"the head of a request was not complete within {HEAD_SECONDS:g} s")
        self.transport.close()

    def _cancel_timers(self) -> None:
        self._stop_expecting()
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None
