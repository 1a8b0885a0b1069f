"""The application: all paths of the API, for the socket or, with a token, for TCP."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response

from faops.daemon.control import Control
from faops.daemon.http import problems
from faops.daemon.http.api import Api
from faops.daemon.http.guard import Guard
from faops.daemon.http.pages import health_resources, page_resources
from faops.daemon.http.problems import ProblemError
from faops.daemon.queue import BacklogError, TransitionError, UnknownError
from faops.errors import DaemonError


def build(control: Control, tcp_token: str | None = None) -> Starlette:
    """The application over ``control``. With ``tcp_token`` it is to be served over TCP, and wants the token."""
    pages = page_resources()
    resources = [*Api(control).resources, *health_resources(control), *pages]
    free = {"/healthz", *(page.path for page in pages)}
    app = Starlette(
        routes=[resource.route for resource in resources],
        middleware=[Middleware(Guard, control=control, secret=tcp_token, free=free)],
        exception_handlers={
            ProblemError: _problem,
            HTTPException: _not_found,
            UnknownError: _unknown,
            TransitionError: _conflict,
            BacklogError: _too_many,
            DaemonError: _not_stored,
        },
    )
    app.router.redirect_slashes = False
    return app


# Starlette runs handlers that are no coroutines in a thread.


async def _problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, ProblemError)
    return problems.response_to(error)


async def _not_found(request: Request, error: Exception) -> Response:
    """Starlette itself raises an HTTPException for a path that it does not know, and for nothing else here."""
    return problems.response(404, f"there is nothing at {request.url.path[:80]!a}")


async def _unknown(request: Request, error: Exception) -> Response:
    return problems.response(404, str(error))


async def _conflict(request: Request, error: Exception) -> Response:
    return problems.response(409, str(error))


async def _too_many(request: Request, error: Exception) -> Response:
    return problems.response(503, str(error), headers={"retry-after": "10"})


async def _not_stored(request: Request, error: Exception) -> Response:
    """What else the queue raises: it cannot be read or written."""
    return problems.response(507, str(error))
