"""`faops daemon status`: what it prints of what the daemon answers."""

from __future__ import annotations

from typing import Any

import pytest

from tests.cli.conftest import Faops
from tests.cli.daemon.support import FakeDaemon, device, job, running, status
from tests.cli.support import document, refused


def told(faops: Faops, daemon: FakeDaemon, **changed: Any) -> str:
    daemon.answers["GET /v1/status"] = status(**changed)
    result = faops("daemon", "status")
    assert result.exit_code == 0, result.output
    return str(result.stdout)


def test_an_idle_daemon(faops: Faops, daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")
    lines = told(faops, daemon).splitlines()
    assert lines[0].split(maxsplit=1) == ["state", "idle: there is nothing to tune"]
    assert lines[1].startswith("since    2026-01-31 ") and lines[1].endswith("(2 h 5 min)")
    assert lines[2].split(maxsplit=1) == ["process", "4711, 50 MiB, faops 0.1.0"]
    assert lines[3].split(maxsplit=1) == ["jobs", "12 done"]
    assert lines[4] == "so far   12 problems tuned in 6 min 12 s, 5 faster than the default"
    assert lines[6].split() == ["device", "name", "gate", "why", "waiting", "child"]
    assert lines[7].split() == ["cpu", "Xeon", "open", "idle", "for", "40", "s", "0", "-"]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"state": "stopping"}, "stopping"),
        ({"state": "tuning", "jobs": {"running": 1}}, "tuning the last problem"),
        ({"state": "tuning", "jobs": {"running": 1, "waiting": 2}}, "tuning; 2 problems more to come"),
        ({"state": "paused", "paused": {"reason": "", "until": None}}, "paused; `faops daemon resume` goes on"),
        ({"state": "paused", "paused": {"reason": "a test", "until": "2026-01-31T12:00:00Z"}}, ":00: a test; `faops"),
        ({"state": "waiting", "jobs": {"waiting": 1}, "devices": []}, "its devices are not known yet"),
        ({"state": "waiting", "jobs": {"waiting": 1}}, "waiting with 1 problem: about to begin"),
        ({"state": "waiting", "devices": [device(open=False, reason="busy")]}, "waiting with 0 problems: busy"),
        ({"state": "dreaming"}, "dreaming"),
    ],
)
def test_the_state_in_words(faops: Faops, daemon: FakeDaemon, changed: dict[str, Any], words: str) -> None:
    daemon.answers["GET /v1/jobs"] = {"jobs": [job()], "next": None}
    assert words in told(faops, daemon, **changed).splitlines()[0]


def test_why_it_waits_names_the_gates_of_devices_with_jobs(faops: Faops, daemon: FakeDaemon) -> None:
    busy, other = device(open=False, reason="in use"), {**device(open=False, reason="hot"), "waiting": 0}
    first = told(faops, daemon, state="waiting", jobs={"waiting": 2}, devices=[other, busy]).splitlines()[0]
    assert first.endswith("waiting with 2 problems: in use")
    idle = {**device(), "waiting": 2}
    first = told(faops, daemon, state="waiting", jobs={"waiting": 2}, devices=[other, idle]).splitlines()[0]
    assert first.endswith("waiting with 2 problems: about to begin")


def test_a_job_that_waits_after_a_failure(faops: Faops, daemon: FakeDaemon) -> None:
    daemon.answers["GET /v1/jobs"] = {"jobs": [job(6, not_before="2026-01-31T12:00:30Z")], "next": None}
    assert "job 6 is tried again at 2026-" in told(faops, daemon, state="waiting", jobs={"waiting": 1}).splitlines()[0]
    assert [name for name, _ in daemon.requests if "/v1/jobs" in name] == ["GET /v1/jobs?state=waiting&limit=1"]


def test_the_job_at_work(faops: Faops, daemon: FakeDaemon) -> None:
    text = told(faops, daemon, state="tuning", running=[running()])
    assert "job 17 on cpu: forward float32 b1 17x512" in text
    assert text.splitlines()[-1] == "  12 of 59 timings, best 3.5 ms, 0:21 gone, about 0:40 left"
    begun = running(planned=None, best_seconds=None, remaining_seconds=None, doing="preparing")
    assert told(faops, daemon, running=[begun]).splitlines()[-1] == "  preparing, 0:21 gone"
    assert "stands still while other programs work" in told(faops, daemon, running=[running(yielding=True)])


def test_child_page_errors_and_unknown_fields(faops: Faops, daemon: FakeDaemon) -> None:
    with_child = {**device(), "worker": {"pid": 99, "memory_bytes": None}, "novelty": 1}
    totals = {"tuned": 1, "won": 0, "seconds_tuning": 0.5, "rejected_samples": 0, "errors": 2}
    text = told(faops, daemon, devices=[with_child], http="http://127.0.0.1:8741", totals=totals, novelty=[])
    assert "99, -" in text
    assert "http://127.0.0.1:8741 (`faops daemon open`)" in text
    assert "1 problem tuned in 0 s, 0 faster than the default, 2 errors" in text


def test_json_is_what_the_daemon_says(faops: Faops, daemon: FakeDaemon) -> None:
    shown = document(faops("daemon", "status", "--json"))
    assert shown.pop("command") == "daemon status" and shown.pop("schema_version") == 1
    assert shown == status()


def test_no_daemon(faops: Faops) -> None:
    refused(faops("daemon", "status"), "no daemon", "faops daemon start")
    refused(faops("daemon", "status", "--json"), "faops daemon start")


def test_an_error_of_the_daemon_is_told_in_its_words(faops: Faops, daemon: FakeDaemon) -> None:
    daemon.answers["GET /v1/status"] = (507, {"title": "Full", "status": 507, "detail": "the disk is full"})
    refused(faops("daemon", "status"), "the disk is full")
