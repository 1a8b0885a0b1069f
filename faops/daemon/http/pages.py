"""What is not below /v1: health, metrics, the API's description, and the dashboard's files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import yaml
from starlette.requests import Request
from starlette.responses import Response

from faops._version import __version__
from faops.daemon.control import Control
from faops.daemon.http.problems import ProblemError
from faops.daemon.http.resource import Handler, Resource
from faops.daemon.http.views import rendered

HERE = Path(__file__).parent
DESCRIPTION = HERE / "openapi.yaml"
DASHBOARD = HERE / "dashboard"
INDEX = "index.html"
MEDIA_TYPES = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}


def health_resources(control: Control) -> Sequence[Resource]:
    """Those for supervisors and monitoring."""

    async def health(request: Request) -> Response:
        return Response(rendered({"status": "ok"}), media_type="application/json")

    async def readiness(request: Request) -> Response:
        ready, reason = control.ready()
        return Response(
            rendered({"ready": ready, "reason": reason}), 200 if ready else 503, media_type="application/json"
        )

    async def metrics(request: Request) -> Response:
        content, media_type = control.metrics.rendered(request.headers.get("accept", ""))
        # Not as media_type, to which Response adds a charset of its own.
        return Response(content, headers={"content-type": media_type})

    return (
        Resource("/healthz", get=health),
        Resource("/readyz", get=readiness),
        Resource("/metrics", ("text/plain", "application/openmetrics-text"), get=metrics),
        Resource("/openapi.json", get=_description()),
    )


def _description() -> Handler:
    made: list[bytes] = []  # once, when somebody asks for it

    async def description(request: Request) -> Response:
        if not made:
            made.append(json.dumps(described()).encode())
        return Response(made[0], media_type="application/json")

    return description


def described() -> dict[str, object]:
    """The API's description, with the version of faops."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, where PyYAML has it
    found: dict[str, object] = yaml.load(DESCRIPTION.read_text(encoding="utf-8"), loader)
    info = found["info"]
    assert isinstance(info, dict)
    return {**found, "info": {**info, "x-faops-version": __version__}}


# -------------------------------------------------------------------------------------------------- dashboard


def page_resources() -> Sequence[Resource]:
    """The dashboard. Which files there are is looked up now: no path of a request reaches the disk."""
    found = sorted(path for path in DASHBOARD.glob("*") if path.suffix in MEDIA_TYPES)
    files = [_file("/" if path.name == INDEX else f"/{path.name}", path) for path in found]
    return files if any(path.name == INDEX for path in found) else [_file("/", DASHBOARD / INDEX), *files]


def _file(address: str, path: Path) -> Resource:
    media_type = MEDIA_TYPES[path.suffix]

    async def content(request: Request) -> Response:
        try:
            return Response(path.read_bytes(), media_type=media_type, headers={"cache-control": "no-cache"})
        except OSError as error:
            raise ProblemError(404, f"{path.name} cannot be read: {error.strerror or error}") from None

    return Resource(address, (media_type,), get=content)
