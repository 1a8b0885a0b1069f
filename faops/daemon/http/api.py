"""The paths below /v1: each handler checks what it was asked, asks the queue or the daemon, and shows the answer."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

from starlette.requests import Request
from starlette.responses import Response

from faops.daemon.control import Control
from faops.daemon.http import checks, submissions, views
from faops.daemon.http.problems import ProblemError, wrong
from faops.daemon.http.requests import body_of, decimal, no_body, query_of
from faops.daemon.http.resource import JSON, Resource
from faops.daemon.jobs import STATES, Job
from faops.errors import ArgumentError, DaemonError
from faops.settings import split_address

LIMIT = 100  # of a list, where none is asked for
HIGHEST_LIMIT = 1000
HIGHEST_ID = 2**53 - 1  # beyond it a number is no whole one in JavaScript
LONGEST_PAUSE = 366 * 86400.0  # seconds
LONGEST_REASON = 200

_limit = decimal(1, HIGHEST_LIMIT)
_pause = checks.fields(
    {"reason": checks.text(LONGEST_REASON, shortest=0), "seconds": checks.or_null(checks.seconds(LONGEST_PAUSE))}
)


def loopback(field: str, value: object) -> str:
    """An address of this machine that no other one reaches: host:port."""
    expected = "an address of the loopback such as 127.0.0.1:8741"
    text = checks.text(100)(field, value)
    try:
        host, _ = split_address(text)
        is_loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        raise wrong(field, value, expected) from None
    if not is_loopback:
        raise wrong(field, value, expected)
    return text


_http = checks.fields({"address": checks.or_null(loopback)})


def shown(value: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """An answer in JSON."""
    return Response(views.rendered(value), status, headers, JSON[0])


class Api:
    """The handlers, over what they may see of the daemon."""

    def __init__(self, control: Control) -> None:
        self.control = control
        self.queue = control.queue

    @property
    def resources(self) -> Sequence[Resource]:
        """Every path below /v1."""
        return (
            Resource("/v1/status", get=self.status),
            Resource("/v1/jobs", get=self.jobs),
            Resource("/v1/jobs/{id}", get=self.job, delete=self.cancel),
            Resource("/v1/jobs/{id}/retry", post=self.retry),
            Resource("/v1/jobs/{id}/heat-map", ("text/html",), get=self.heat_map),
            Resource("/v1/winners", get=self.winners),
            Resource("/v1/submissions", post=self.submit),
            Resource("/v1/submissions/{id}", get=self.submission),
            Resource("/v1/pause", post=self.pause),
            Resource("/v1/resume", post=self.resume),
            Resource("/v1/http", post=self.open_http),
            Resource("/v1/stop", post=self.stop),
        )

    # ------------------------------------------------------------------------------------------ jobs

    async def jobs(self, request: Request) -> Response:
        asked = query_of(
            request,
            {"limit": _limit, "before": decimal(1, HIGHEST_ID)},
            {"state": checks.one_of(STATES)},
        )
        limit, before = asked.get("limit", LIMIT), asked.get("before")
        states = list(dict.fromkeys(asked.get("state", STATES)))
        found = self.queue.jobs(states, limit + 1, before)
        listed = found[:limit]
        return shown({"jobs": _shown(listed), "next": listed[-1].id if len(found) > limit else None})

    async def winners(self, request: Request) -> Response:
        asked = query_of(request, {"limit": _limit})
        return shown({"winners": _shown(self.queue.winners(asked.get("limit", LIMIT)))})

    async def job(self, request: Request) -> Response:
        query_of(request, {})
        return shown(views.job(self.queue.job(_id(request, "job"))))

    async def heat_map(self, request: Request) -> Response:
        query_of(request, {})
        number = _id(request, "job")
        fragment = self.queue.heat_map(number)
        if not fragment:
            raise ProblemError(404, f"job {number} has no heat map")
        return Response(fragment.encode("utf-8", "replace"), media_type="text/html")

    async def cancel(self, request: Request) -> Response:
        query_of(request, {})
        await no_body(request)
        return shown(views.job(self.control.cancel(_id(request, "job"))))

    async def retry(self, request: Request) -> Response:
        query_of(request, {})
        await no_body(request)
        job = self.queue.retry(_id(request, "job"))
        self.control.wake()
        return shown(views.job(job))

    # ------------------------------------------------------------------------------------------ submissions

    async def submit(self, request: Request) -> Response:
        query_of(request, {})
        asked = await body_of(request, submissions.check)
        if not asked:
            raise ProblemError(
                422, f"body: got nothing, expected exactly one of {', '.join(submissions.SOURCES)}", "body"
            )
        kept = self.queue.submit(asked)
        self.control.wake()
        return shown(views.submission(kept), 202, {"location": f"/v1/submissions/{kept.id}"})

    async def submission(self, request: Request) -> Response:
        query_of(request, {})
        return shown(views.submission(self.queue.submission(_id(request, "submission"))))

    # ------------------------------------------------------------------------------------------ the daemon

    async def status(self, request: Request) -> Response:
        query_of(request, {})
        return shown(self.control.status())

    async def pause(self, request: Request) -> Response:
        query_of(request, {})
        asked = await body_of(request, _pause)
        self.control.pause(asked.get("reason", ""), asked.get("seconds"))
        return shown(self.control.status())

    async def resume(self, request: Request) -> Response:
        query_of(request, {})
        await no_body(request)
        self.control.resume()
        return shown(self.control.status())

    async def open_http(self, request: Request) -> Response:
        query_of(request, {})
        asked = await body_of(request, _http)
        try:
            url = await self.control.open_http(asked.get("address"))
        except ArgumentError as error:
            raise ProblemError(422, str(error), "address") from None
        except DaemonError as error:
            raise ProblemError(409, str(error), "address") from None
        return shown({"url": url})

    async def stop(self, request: Request) -> Response:
        query_of(request, {})
        await no_body(request)
        self.control.stop()
        return shown({"state": "stopping"}, 202)


def _shown(jobs: Sequence[Job]) -> list[dict[str, object]]:
    return [views.job(job) for job in jobs]


def _id(request: Request, what: str) -> int:
    """The number in the path."""
    text = request.path_params["id"]
    if not (text.isascii() and text.isdecimal() and len(text) <= 16 and 1 <= int(text) <= HIGHEST_ID):
        raise ProblemError(404, f"there is no {what} {text[:40]!a}")
    return int(text)
