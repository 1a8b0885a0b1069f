"""`faops daemon pause`, `resume` and `open`."""

from __future__ import annotations

import webbrowser

import pytest

from tests.cli.conftest import Faops
from tests.cli.daemon.support import FakeDaemon, refusal, status
from tests.cli.support import document, refused

PAUSED = status(state="paused", paused={"reason": "a benchmark", "until": None})
URL = "http://127.0.0.1:8741/#token=0123"


@pytest.fixture(autouse=True)
def orders(daemon: FakeDaemon) -> None:
    daemon.answers.update({"POST /v1/pause": PAUSED, "POST /v1/resume": status(), "POST /v1/http": {"url": URL}})


def test_pause(faops: Faops, daemon: FakeDaemon) -> None:
    done = faops("daemon", "pause", "--for", "30m", "--reason", "a benchmark")
    assert done.stdout == "paused: a benchmark; `faops daemon resume` goes on\n"
    (sent,) = daemon.asked("POST /v1/pause")
    assert sent == {"reason": "a benchmark", "seconds": 1800.0}
    assert document(faops("daemon", "pause", "--json"))["paused"] == PAUSED["paused"]
    assert not (daemon.asked("POST /v1/pause")[-1] or {}).get("seconds")


def test_wrong_times(faops: Faops, daemon: FakeDaemon) -> None:
    refused(faops("daemon", "pause", "--for", "soon"), "'soon'", code=2)
    refused(faops("daemon", "pause", "--for", "9000h"), "a year", code=2)
    assert daemon.asked("POST") == []


def test_resume(faops: Faops) -> None:
    assert faops("daemon", "resume").stdout == "idle: there is nothing to tune\n"
    assert document(faops("daemon", "resume", "--json"))["state"] == "idle"


def test_open_shows_the_page(faops: Faops, daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []
    monkeypatch.setattr(webbrowser, "open", lambda url: not shown.append(url))
    assert faops("daemon", "open", "--http", "127.0.0.1:8741").stdout == ""
    assert shown == [URL] and daemon.asked("POST /v1/http") == [{"address": "127.0.0.1:8741"}]
    assert faops("daemon", "open", "--print").stdout == f"{URL}\n"
    assert document(faops("daemon", "open", "--json"))["url"] == URL
    assert shown == [URL]


def test_open_without_a_browser(faops: Faops, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webbrowser, "open", lambda url: False)
    assert faops("daemon", "open").stdout == f"{URL}\n"


def test_open_refuses(faops: Faops, daemon: FakeDaemon) -> None:
    refused(faops("daemon", "open", "--http", "8741"), "'8741'", "host:port", code=2)
    daemon.answers["POST /v1/http"] = refusal(409, "it listens on 127.0.0.1:1 already")
    refused(faops("daemon", "open"), "it listens on 127.0.0.1:1 already")
