"""Methods and media types, which all paths have in common."""

from __future__ import annotations

import pytest

from tests.daemon.http.support import DESCRIBED, FakeControl, InProcess

METHODS = {"get", "post", "delete", "put", "patch"}


def paths() -> list[str]:
    return [path.replace("{id}", "1").replace("{file}", "dashboard.css") for path in DESCRIBED["paths"]]


@pytest.mark.parametrize("path", paths())
def test_every_path_tells_its_methods_and_refuses_others(ask: InProcess, control: FakeControl, path: str) -> None:
    told = ask("OPTIONS", path)
    assert told.status_code == 204 and told.content == b""
    allowed = set(told.headers["allow"].split(", "))
    template = path.replace("/1", "/{id}").replace("dashboard.css", "{file}")
    described = {name.upper() for name in DESCRIBED["paths"][template] if name in METHODS}
    assert allowed == described | {"OPTIONS"} | ({"HEAD"} if "GET" in described else set())
    for method in ("GET", "POST", "DELETE", "PUT", "PATCH", "TRACE", "BREW"):
        if method not in allowed:
            answer = ask(method, path)
            assert (answer.status_code, answer.headers["allow"]) == (405, told.headers["allow"])
    assert control.told == []


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics", "/openapi.json", "/", "/v1/status", "/v1/jobs"])
def test_head_is_get_without_the_body(ask: InProcess, path: str) -> None:
    got, head = ask("GET", path), ask("HEAD", path)
    assert head.content == b"" and head.status_code == got.status_code == 200
    names = ("content-type", "cache-control", "content-security-policy")
    assert [head.headers[name] for name in names] == [got.headers[name] for name in names]


@pytest.mark.parametrize(
    "accept", ["*/*", "application/json", "application/*", "text/html, */*;q=0.1", "a/b,APPLICATION/JSON"]
)
def test_json_goes_to_whoever_takes_it(ask: InProcess, accept: str) -> None:
    ask.json("GET", "/v1/status", headers={"accept": accept})


@pytest.mark.parametrize("accept", ["text/html", "application/json;q=0", "application/json; q = 0.0", "json", "*/html"])
def test_and_to_nobody_else(ask: InProcess, accept: str) -> None:
    problem = ask.problem("GET", "/v1/status", 406, headers={"accept": accept})
    assert "expected application/json" in problem["detail"]


@pytest.mark.parametrize("path", ["/v1", "/v1/", "/v2/status", "/v1/status/", "/../etc/passwd", "/%2e%2e/x", "/x\ny"])
def test_elsewhere_is_nothing(ask: InProcess, path: str) -> None:
    assert "nothing at" in ask.problem("GET", path.replace("\n", "%0A"), 404)["detail"]
