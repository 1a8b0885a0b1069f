"""One path of the API: its methods, and what all paths do alike."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from faops.daemon.http.problems import ProblemError

JSON = ("application/json",)

Handler = Callable[[Request], Awaitable[Response]]


class Resource:
    """Answers the methods that have a handler, HEAD with GET's, OPTIONS with what there is, and refuses the others.

    ``offered`` are the media types of its answers. ``path`` is the one of the API's description, left in the scope as
    "template" for the metrics.
    """

    def __init__(self, path: str, offered: Sequence[str] = JSON, **handlers: Handler) -> None:
        self.path = path
        self.offered = offered
        self.handlers = {name.upper(): handler for name, handler in handlers.items()}
        methods = {*self.handlers, "OPTIONS", *(("HEAD",) if "GET" in self.handlers else ())}
        self.allow = {"allow": ", ".join(sorted(methods))}

    @property
    def route(self) -> Route:
        """The resource at its place."""
        return Route(self.path, self)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["template"] = self.path
        request = Request(scope, receive)
        answer = await self._answer(request)
        await answer(scope, receive, send)

    async def _answer(self, request: Request) -> Response:
        method = request.method
        if method == "OPTIONS":
            return Response(status_code=204, headers=self.allow)
        handler = self.handlers.get("GET" if method == "HEAD" else method)
        if handler is None:
            detail = f"method: got {method[:40]!a}, expected one of {self.allow['allow']}"
            raise ProblemError(405, detail, headers=self.allow)
        if not _accepts(request.headers.getlist("accept"), self.offered):
            raise ProblemError(406, f"Accept: expected {' or '.join(self.offered)} to be in it")
        return await handler(request)  # of HEAD's answer the server sends no body


def _accepts(headers: Sequence[str], offered: Sequence[str]) -> bool:
    """Whether one of the media types offered is in an Accept header; there may be none."""
    ranges = [part for header in headers for part in header.lower().split(",") if part.strip()]
    if not ranges:
        return True
    return any(_matches(part, media_type) for part in ranges for media_type in offered)


def _matches(part: str, media_type: str) -> bool:
    name, *parameters = (piece.strip() for piece in part.split(";"))
    refused = any(parameter.replace(" ", "") in ("q=0", "q=0.0", "q=0.00", "q=0.000") for parameter in parameters)
    return not refused and name in (media_type, f"{media_type.partition('/')[0]}/*", "*/*")
