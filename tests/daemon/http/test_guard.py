"""What stands around every request: token and host over TCP, headers, a daemon about to end, defects."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import httpx
import pytest

from faops.daemon.http import guard
from tests.daemon.http.support import DESCRIBED, FakeControl, InProcess

TOKEN = "a-token"
HERE = {"authorization": f"Bearer {TOKEN}"}
FREE = {"/healthz", "/", "/dashboard.css"}


def paths() -> list[str]:
    return [path.replace("{id}", "1").replace("{file}", "dashboard.css") for path in DESCRIBED["paths"]]


@pytest.fixture
def over_tcp(control: FakeControl) -> InProcess:
    return InProcess(control, TOKEN)


# -------------------------------------------------------------------------------------------------- token


@pytest.mark.parametrize("path", [*paths(), "/elsewhere"])
def test_all_but_the_page_wants_a_token(over_tcp: InProcess, control: FakeControl, path: str) -> None:
    for method in ("GET", "POST", "DELETE", "OPTIONS"):
        answer = over_tcp(method, path)
        assert (answer.status_code == 401) == (path not in FREE), f"{method} {path}: {answer.status_code}"
        if path not in FREE:
            assert answer.headers["www-authenticate"] == "Bearer" and TOKEN not in answer.text
    assert control.told == []


@pytest.mark.parametrize(
    "given",
    [
        "",
        "Bearer",
        "Bearer ",
        "Bearer a-toke",
        "Bearer a-token2",
        "Basic a-token",
        "a-token",
        "Bearer é",
        "Bearer a-token a-token",
    ],
)
def test_another_token_is_none(over_tcp: InProcess, given: str) -> None:
    over_tcp.problem("GET", "/v1/status", 401, headers=[(b"authorization", given.encode("latin-1"))])


@pytest.mark.parametrize("given", [f"Bearer {TOKEN}", f"bearer {TOKEN}", f"BEARER  {TOKEN} "])
def test_the_token_opens(over_tcp: InProcess, given: str) -> None:
    over_tcp.json("GET", "/v1/status", headers={"authorization": given})


def test_the_socket_wants_none(ask: InProcess) -> None:
    ask.json("GET", "/v1/status")
    ask.json("GET", "/v1/status", headers={"host": "whatever.example"})


# -------------------------------------------------------------------------------------------------- host


@pytest.mark.parametrize("host", ["127.0.0.1:8741", "localhost:8741", "LOCALHOST:8741"])
def test_the_loopbacks_names_are_known(over_tcp: InProcess, host: str) -> None:
    over_tcp.json("GET", "/v1/status", headers={**HERE, "host": host})


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8741",
        "127.0.0.1",
        "127.0.0.1:80",
        "localhost:8742",
        "localhost.evil.example:8741",
        "",
    ],
)
@pytest.mark.parametrize("path", ["/v1/status", "/", "/healthz"])
def test_other_names_for_it_are_not(over_tcp: InProcess, host: str, path: str) -> None:
    """A page of another site could pass for one of ours otherwise: even the free paths are not for it."""
    over_tcp.problem("GET", path, 421, headers={**HERE, "host": host})


@pytest.mark.parametrize(
    ("server", "host", "status"),
    [
        ("http://[::1]:8741", "[::1]:8741", 200),
        ("http://[::1]:8741", "localhost:8741", 200),
        ("http://[::1]:8741", "evil.example:8741", 421),
        ("http://127.0.0.1:80", "127.0.0.1", 200),
        ("http://127.0.0.1:80", "localhost", 200),
        ("http://127.0.0.1:80", "evil.example", 421),
        (
            "http://192.0.2.1:8741",
            "gpu7.example:8741",
            200,
        ),  # allowed by its user, and the token is wanted all the same
    ],
)
def test_of_each_address(control: FakeControl, server: str, host: str, status: int) -> None:
    answer = asyncio.run(_asked(control, server, host))
    assert answer == status


async def _asked(control: FakeControl, server: str, host: str) -> int:
    """By hand, as httpx leaves out the port 80 of a URL."""
    url = httpx.URL(server)
    statuses: list[int] = []

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    scope = {
        "type": "http", "method": "GET", "path": "/v1/status", "query_string": b"", "raw_path": b"/v1/status",
        "server": (url.host, url.port or 80), "scheme": "http", "root_path": "", "client": None, "http_version": "1.1",
        "headers": [(b"host", host.encode()), (b"authorization", f"Bearer {TOKEN}".encode())],
    }  # fmt: skip
    await InProcess(control, TOKEN).app(scope, receive, send)
    return statuses[0]


# -------------------------------------------------------------------------------------------------- headers


@pytest.mark.parametrize("path", [*paths(), "/elsewhere", "/v1/jobs?limit=0"])
def test_every_answer_has_the_headers_that_keep_browsers_careful(ask: InProcess, path: str) -> None:
    for method in ("GET", "OPTIONS", "PUT"):
        headers = ask(method, path).headers
        assert headers["x-content-type-options"] == "nosniff" and headers["referrer-policy"] == "no-referrer"
        policy = headers["content-security-policy"]
        assert "default-src 'self'" in policy and "frame-ancestors 'none'" in policy and "unsafe" not in policy
        assert headers["cache-control"] == (
            "no-cache" if method == "GET" and path in FREE - {"/healthz"} else "no-store"
        )
        assert headers["date"].endswith("GMT")
        assert "server" not in headers and "access-control-allow-origin" not in headers


# -------------------------------------------------------------------------------------------------- stopping, defects


def test_a_daemon_that_ends_is_read_and_not_changed(ask: InProcess, control: FakeControl) -> None:
    control.stopping = True
    for method, path in (
        ("POST", "/v1/pause"),
        ("POST", "/v1/submissions"),
        ("DELETE", "/v1/jobs/1"),
        ("POST", "/v1/http"),
    ):
        assert "about to end" in ask.problem(method, path, 503)["detail"]
    assert control.told == []
    ask.json("GET", "/v1/status")
    ask.json("POST", "/v1/stop", status=202)


def test_a_defect_of_ours_is_one_line_and_no_traceback(
    ask: InProcess, control: FakeControl, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(control, "status", lambda: 1 / 0)
    with caplog.at_level(logging.INFO, logger="faops"):
        problem = ask.problem("GET", "/v1/status", 500)
    assert "defect" in problem["detail"] and "Zero" not in problem["detail"]
    (record,) = caplog.records
    assert record.levelname == "ERROR" and "ZeroDivisionError" in str(record.__dict__["fields"])
    assert control.metrics.registry.get_sample_value("faops_errors_total", {"kind": "defect"}) == 1


def test_what_clients_do_wrong_is_no_line_at_all(ask: InProcess, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        ask("GET", "/v1/jobs?limit=0")
        ask("PUT", "/v1/status")
        ask("GET", "/elsewhere")
        ask("POST", "/v1/pause", content=b"{", headers={"content-type": "application/json"})
    assert [record for record in caplog.records if record.name.startswith(("faops", "uvicorn"))] == []


def test_requests_are_counted_by_the_path_of_the_description(ask: InProcess, control: FakeControl) -> None:
    for path in ("/v1/jobs/1", "/v1/jobs/2", "/elsewhere/3", "/else"):
        ask("GET", path)
    ask("BREW", "/v1/status")
    value = control.metrics.registry.get_sample_value
    assert value("faops_http_requests_total", {"method": "GET", "path": "/v1/jobs/{id}", "status": "404"}) == 2
    assert value("faops_http_requests_total", {"method": "GET", "path": guard.ELSEWHERE, "status": "404"}) == 2
    assert value("faops_http_requests_total", {"method": "other", "path": "/v1/status", "status": "405"}) == 1
    assert value("faops_http_request_duration_seconds_count") == 5
