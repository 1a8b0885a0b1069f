"""Health, metrics, the description and the dashboard's files."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from faops._version import __version__
from faops.daemon.http import pages
from tests.daemon.http.support import FakeControl, InProcess


def test_health_and_readiness(ask: InProcess, control: FakeControl) -> None:
    assert ask.json("GET", "/healthz") == {"status": "ok"}
    assert ask.json("GET", "/readyz") == {"ready": True, "reason": ""}
    control.trouble = "looking for devices"
    assert ask.json("GET", "/readyz", status=503) == {"ready": False, "reason": "looking for devices"}
    assert ask.json("GET", "/healthz") == {"status": "ok"}


def test_the_description_describes_itself(ask: InProcess) -> None:
    found = ask.json("GET", "/openapi.json")
    assert found["openapi"].startswith("3.1") and found["info"]["x-faops-version"] == __version__
    assert ask("GET", "/openapi.json").content == ask("GET", "/openapi.json").content


def test_metrics_come_in_the_format_that_is_asked_for(ask: InProcess) -> None:
    plain = ask("GET", "/metrics")
    assert plain.headers["content-type"].startswith("text/plain; version=") and b"faops_jobs" in plain.content
    prometheus = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.2,*/*;q=0.1"
    new = ask("GET", "/metrics", headers={"accept": prometheus})
    assert new.headers["content-type"].startswith("application/openmetrics-text") and new.text.endswith("# EOF\n")


@pytest.fixture
def dashboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(pages, "DASHBOARD", tmp_path)
    files = {"index.html": "<p>", "dashboard.css": "p {}", "words.js": "1", "icon.svg": "<svg/>", "notes.md": "no"}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    return tmp_path


@pytest.mark.parametrize(
    ("path", "media_type", "text"),
    [
        ("/", "text/html; charset=utf-8", "<p>"),
        ("/dashboard.css", "text/css; charset=utf-8", "p {}"),
        ("/words.js", "text/javascript; charset=utf-8", "1"),
        ("/icon.svg", "image/svg+xml", "<svg/>"),
    ],
)
def test_the_dashboards_files(dashboard: Path, control: FakeControl, path: str, media_type: str, text: str) -> None:
    answer = InProcess(control)("GET", path)
    assert (answer.headers["content-type"], answer.text) == (media_type, text)
    assert answer.headers["cache-control"] == "no-cache"


def test_no_other_file_is_served(dashboard: Path, control: FakeControl) -> None:
    ask = InProcess(control)
    (dashboard / "later.js").write_text("2")
    for path in ("/notes.md", "/later.js", "/index.html", "/../app.py", "/%2e%2e%2fapp.py"):
        ask.problem("GET", path, 404)


def test_a_page_that_is_not_there_is_said_so(dashboard: Path, control: FakeControl) -> None:
    (dashboard / "index.html").unlink()
    assert "index.html cannot be read" in InProcess(control).problem("GET", "/", 404)["detail"]


def test_the_page_that_is_shipped_names_only_files_that_are_there() -> None:
    """Over its own address: nothing comes from elsewhere."""
    text = (pages.DASHBOARD / "index.html").read_text()
    named = re.findall(r"""(?:href|src)=["']([^"'#]+)["']""", text)
    assert named
    for name in named:
        path = name.removeprefix("./").removeprefix("/")
        assert path in ("metrics", "openapi.json") or (pages.DASHBOARD / path).is_file(), name
