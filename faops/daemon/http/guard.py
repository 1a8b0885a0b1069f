"""What stands around every request: who may ask over TCP, headers of every answer, metrics, and defects of ours."""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Callable, Collection, Sequence
from email.utils import formatdate

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from faops.daemon import log
from faops.daemon.control import Control
from faops.daemon.http import problems, token
from faops.daemon.http.problems import ProblemError

Header = tuple[bytes, bytes]

READING = ("GET", "HEAD", "OPTIONS")
STOP = "/v1/stop"
SECURITY = (
    (
        b"content-security-policy",
        b"default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; object-src 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
)
ELSEWHERE = "other"  # in metrics: a path that there is not

logger = log.get("http")


class Guard:
    """Middleware of the application.

    With ``secret`` it is reached over TCP: every path but those that are ``free`` wants the token, and on the loopback
    the name asked for must be the loopback's, so that no page of another site can pass for one of ours.
    """

    def __init__(self, app: ASGIApp, control: Control, secret: str | None, free: Collection[str]) -> None:
        self.app, self.control, self.secret, self.free = app, control, secret, free

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":  # there are no web sockets
            return
        began = time.perf_counter()
        status = 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": _complete(message["headers"])}
            await send(message)

        try:
            await self._answer(scope, receive, send_with_headers, lambda: status > 0)
        finally:
            template = scope.get("template", ELSEWHERE)
            self.control.metrics.answered(scope["method"], template, status, time.perf_counter() - began)

    async def _answer(self, scope: Scope, receive: Receive, send: Send, begun: Callable[[], bool]) -> None:
        try:
            self._admit(scope)
            await self.app(scope, receive, send)
        except ProblemError as error:
            await problems.response_to(error)(scope, receive, send)
        except ClientDisconnect:
            pass  # nobody is left to be answered
        except Exception as error:
            logger.exception("defect", "a defect of faops", error=error, method=scope["method"], path=scope["path"])
            self.control.metrics.failed("defect")
            if not begun():
                await _defect()(scope, receive, send)

    def _admit(self, scope: Scope) -> None:
        """Raises ProblemError for a request that goes no further."""
        if self.secret is not None:
            headers = Headers(scope=scope)
            _check_host(scope, headers)
            if scope["path"] not in self.free:
                _check_token(headers, self.secret)
        if self.control.stopping and scope["method"] not in READING and scope["path"] != STOP:
            raise ProblemError(503, "the daemon is about to end")


def _complete(headers: Sequence[Header]) -> list[Header]:
    """The headers of an answer with those that every answer has."""
    kept = [] if any(name == b"cache-control" for name, _ in headers) else [(b"cache-control", b"no-store")]
    return [*headers, *kept, *SECURITY, (b"date", formatdate(usegmt=True).encode())]


def _defect() -> Response:
    return problems.response(500, "a defect of faops; its log says more")


def _check_token(headers: Headers, secret: str) -> None:
    scheme, _, given = headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token.equal(given.strip(), secret):
        found = "another token" if scheme.lower() == "bearer" else "no token"
        raise ProblemError(
            401, f"Authorization: got {found}, expected Bearer TOKEN", headers={"www-authenticate": "Bearer"}
        )


def _check_host(scope: Scope, headers: Headers) -> None:
    """Refuse a name that is not the loopback's, where that is what was connected to.

    A page of another site may have made its own name one of this machine's addresses; its name stays in Host.
    """
    address, port = scope.get("server") or ("", None)
    if not _is_loopback(address):
        return
    names = {f"{name}:{port}" for name in (address, f"[{address}]", "localhost")}
    host = headers.get("host", "").lower()
    if host not in names and not (port == 80 and f"{host}:80" in names):
        raise ProblemError(421, f"Host: got {host[:80]!a}, expected {' or '.join(sorted(names))}")


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False
