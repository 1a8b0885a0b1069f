"""Errors as problem documents (RFC 9457)."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus

from starlette.responses import Response

from faops.daemon.http.views import rendered
from faops.errors import FaopsError

MEDIA_TYPE = "application/problem+json"
# Python's words for these differ from version to version.
TITLES = {413: "Content Too Large", 422: "Unprocessable Content"}


class ProblemError(FaopsError):
    """A request cannot be served; ``field`` names what of it is to blame."""

    def __init__(
        self, status: int, detail: str, field: str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        self.status, self.detail, self.field, self.headers = status, detail, field, headers
        super().__init__(detail)


def wrong(field: str, value: object, expected: str) -> ProblemError:
    """A field or parameter has a wrong value."""
    return ProblemError(422, f"{field}: got {shown(value)}, expected {expected}", field)


def shown(value: object) -> str:
    """A value from a request in a message: short, whatever it was."""
    text = ascii(value)
    return text if len(text) <= 80 else f"{text[:60]}... ({len(text)} characters)"


def response(status: int, detail: str, field: str | None = None, headers: Mapping[str, str] | None = None) -> Response:
    """The document, as an answer."""
    title = TITLES.get(status) or HTTPStatus(status).phrase
    content = {"title": title, "status": status, "detail": detail, **({"field": field} if field else {})}
    return Response(rendered(content), status, dict(headers or {}), MEDIA_TYPE)


def response_to(error: ProblemError) -> Response:
    """The answer that tells of an error."""
    return response(error.status, error.detail, error.field, error.headers)
