"""What each path below /v1 does."""

from __future__ import annotations

from typing import Any

import pytest

from faops.daemon.http import views
from faops.daemon.queue import FullError, Queue
from tests.daemon.http.support import CANNOT_LISTEN, NO_ADDRESS, RESULT, FakeControl, InProcess, task


def add(control: FakeControl, count: int = 1, hits: int = 1) -> list[int]:
    return [job.id for job in control.queue.missed([(task(number), hits * number) for number in range(1, count + 1)])]


def finished(control: FakeControl, **changes: Any) -> int:
    (job,) = [job.id for job in control.queue.missed([(task(99), 1)])]
    control.queue.begin(job)
    control.queue.finish(job, {**RESULT, **changes}, "done")
    return job


# -------------------------------------------------------------------------------------------------- jobs


def test_a_job_tells_all_about_itself(ask: InProcess, control: FakeControl) -> None:
    (number,) = add(control, hits=7)
    shown = ask.json("GET", f"/v1/jobs/{number}")
    facts = {name: shown[name] for name in ("id", "device", "identity", "key", "problem", "shape", "source", "state")}
    assert facts == {
        "id": number,
        "device": "cpu",
        "identity": "cpu-1t",
        "key": "key-1",
        "problem": "forward of 1",
        "shape": {"op": "forward", "sq": 1},
        "source": "miss",
        "state": "waiting",
    }
    assert (shown["hits"], shown["priority"], shown["attempts"]) == (7, pytest.approx(0.007), 0)
    assert (shown["begun"], shown["finished"], shown["not_before"], shown["result"]) == (None, None, None, None)
    assert shown["created"].endswith("Z") and not shown["has_heat_map"]


def test_a_finished_job_has_a_result_and_its_heat_map_apart(ask: InProcess, control: FakeControl) -> None:
    number = finished(control)
    shown = ask.json("GET", f"/v1/jobs/{number}")
    assert shown["result"] == {name: value for name, value in RESULT.items() if name != "heat_map"}
    assert shown["has_heat_map"] and shown["finished"] and shown["message"] == "done"
    heat_map = ask("GET", f"/v1/jobs/{number}/heat-map")
    assert heat_map.text == "<table>é</table>" and heat_map.headers["content-type"] == "text/html; charset=utf-8"


def test_a_job_without_a_heat_map_says_so(ask: InProcess, control: FakeControl) -> None:
    number = finished(control, heat_map="")
    assert "no heat map" in ask.problem("GET", f"/v1/jobs/{number}/heat-map", 404)["detail"]
    assert not ask.json("GET", f"/v1/jobs/{number}")["has_heat_map"]


def test_waiting_jobs_come_in_the_order_in_which_they_run(ask: InProcess, control: FakeControl) -> None:
    numbers = add(control, 4)  # the later, the more hits
    shown = ask.json("GET", "/v1/jobs", params={"state": "waiting"})
    assert [job["id"] for job in shown["jobs"]] == numbers[::-1]


@pytest.mark.parametrize("states", [["waiting"], [], ["waiting", "done"]])
def test_pages_go_through_all_jobs_once(ask: InProcess, control: FakeControl, states: list[str]) -> None:
    numbers = add(control, 5)
    seen: list[int] = []
    before: dict[str, int] = {}
    for length in (2, 2, 1):
        page = ask.json("GET", "/v1/jobs", params={"state": states, "limit": 2, **before})
        assert len(page["jobs"]) == length
        seen += [job["id"] for job in page["jobs"]]
        before = {"before": page["next"]}
    assert page["next"] is None and sorted(seen) == numbers


def test_jobs_are_chosen_by_state(ask: InProcess, control: FakeControl) -> None:
    first, second, _ = add(control, 3)
    control.queue.cancel(first)
    control.queue.begin(second)
    for states, expected in (("cancelled", [first]), ("done", []), (["cancelled", "running"], [second, first])):
        found = ask.json("GET", "/v1/jobs", params={"state": states})["jobs"]
        assert [job["id"] for job in found] == expected


@pytest.mark.parametrize(
    ("query", "field", "expected"),
    [
        ("limit=0", "limit", "got '0', expected a whole number from 1 to 1000"),
        ("limit=1001", "limit", "from 1 to 1000"),
        ("limit=ten", "limit", "got 'ten'"),
        ("limit=%EF%BC%91", "limit", "expected a whole number"),
        ("limit=" + "9" * 5000, "limit", "(5002 characters)"),
        ("limit=", "limit", "got ''"),
        ("limit=1&limit=2", "limit", "given twice"),
        ("before=0", "before", "expected a whole number"),
        ("state=lost", "state", "expected one of waiting, running, done, quarantined, cancelled"),
        ("states=done", "states", "there is no such name, expected limit, before, state"),
        ("%00=1", "\x00", "there is no such name"),
    ],
)
def test_wrong_parameters_are_named(ask: InProcess, query: str, field: str, expected: str) -> None:
    problem = ask.problem("GET", f"/v1/jobs?{query}", 422)
    assert problem["field"] == field and expected in problem["detail"] and len(problem["detail"]) < 300


@pytest.mark.parametrize("path", ["/v1/jobs/1", "/v1/submissions/1", "/v1/jobs/1/heat-map"])
@pytest.mark.parametrize("number", ["1", "0", "-1", "x", "1.0", "9" * 30, "%F0%9D%9F%8F", "%00"])
def test_what_is_not_there_is_not_found(ask: InProcess, path: str, number: str) -> None:
    assert "there is no" in ask.problem("GET", path.replace("/1", f"/{number}", 1), 404)["detail"]


def test_a_page_begins_behind_a_job_that_is_there(ask: InProcess) -> None:
    assert "no job 77" in ask.problem("GET", "/v1/jobs?before=77", 404)["detail"]


def test_a_job_is_cancelled_and_retried(ask: InProcess, control: FakeControl) -> None:
    (number,) = add(control)
    assert ask.json("DELETE", f"/v1/jobs/{number}")["state"] == "cancelled"
    assert f"job {number}" in ask.problem("DELETE", f"/v1/jobs/{number}", 409)["detail"]
    control.told.clear()
    assert ask.json("POST", f"/v1/jobs/{number}/retry")["state"] == "waiting"
    assert control.told == [("wake",)]
    control.queue.begin(number)
    ask.problem("POST", f"/v1/jobs/{number}/retry", 409)


@pytest.mark.parametrize(("method", "path"), [("DELETE", "/v1/jobs/5"), ("POST", "/v1/jobs/5/retry")])
def test_an_unknown_job_is_not_changed(ask: InProcess, method: str, path: str) -> None:
    ask.problem(method, path, 404)


def test_winners_are_the_jobs_that_found_one(ask: InProcess, control: FakeControl) -> None:
    add(control, 3)
    number = finished(control)
    assert [job["id"] for job in ask.json("GET", "/v1/winners?limit=2")["winners"]] == [number]
    assert ask.problem("GET", "/v1/winners?limit=-1", 422)["field"] == "limit"


# -------------------------------------------------------------------------------------------------- submissions


def test_a_submission_is_kept_and_told_where(ask: InProcess, control: FakeControl) -> None:
    answer = ask("POST", "/v1/submissions", json={"shapes": ["sq=64,h=2,d=64"], "force": True})
    assert answer.status_code == 202 and answer.headers["location"] == f"/v1/submissions/{answer.json()['id']}"
    assert control.told == [("wake",)]
    kept = control.queue.next_submission()
    assert kept is not None and kept.request == {"shapes": ["sq=64,h=2,d=64"], "force": True}
    assert ask.json("GET", answer.headers["location"]) == answer.json()
    jobs = control.queue.expanded(kept.id, [task()], [("a decode", "too large")], True)
    shown = ask.json("GET", answer.headers["location"])
    assert (shown["state"], shown["jobs"]) == ("expanded", [jobs[0].id]) and "too large" in shown["message"]


def test_an_empty_submission_is_none(ask: InProcess, control: FakeControl) -> None:
    for body in (None, {}):
        assert ask.problem("POST", "/v1/submissions", 422, json=body)["field"] == "body"
    assert control.queue.next_submission() is None


# -------------------------------------------------------------------------------------------------- the daemon


def test_pausing_and_resuming(ask: InProcess, control: FakeControl) -> None:
    assert ask.json("POST", "/v1/pause", json={"reason": "a benchmark", "seconds": 60})["state"] == "paused"
    assert ask.json("POST", "/v1/pause")["paused"]["reason"] == ""
    assert ask.json("POST", "/v1/pause", json={"seconds": None})["state"] == "paused"
    assert ask.json("POST", "/v1/resume")["state"] == "idle"
    assert ask.json("POST", "/v1/resume", json={})["state"] == "idle"
    assert control.told == [("pause", "a benchmark", 60.0), ("pause", "", None), ("pause", "", None)] + 2 * [
        ("resume",)
    ]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"seconds": 0}, "seconds"),
        ({"seconds": -1}, "seconds"),
        ({"seconds": True}, "seconds"),
        ({"seconds": 1e9}, "seconds"),
        ({"seconds": "60"}, "seconds"),
        ({"reason": 5}, "reason"),
        ({"reason": "x" * 201}, "reason"),
        ({"reason": "two\nlines"}, "reason"),
        ({"for": "30m"}, "for"),
    ],
)
def test_a_wrong_pause_is_refused(ask: InProcess, control: FakeControl, body: dict[str, Any], field: str) -> None:
    assert ask.problem("POST", "/v1/pause", 422, json=body)["field"] == field
    assert control.told == []


def test_the_listener_is_opened(ask: InProcess, control: FakeControl) -> None:
    assert ask.json("POST", "/v1/http")["url"] == "http://127.0.0.1:8741/#token=t"
    for address in ("127.0.0.1:0", "[::1]:99", "localhost:65535", "127.255.0.9:80"):
        assert ask.json("POST", "/v1/http", json={"address": address})["url"].startswith(f"http://{address}")
    assert control.told[1] == ("open_http", "127.0.0.1:0")


@pytest.mark.parametrize(
    "address", ["8741", "0.0.0.0:80", "8.8.8.8:80", "[::]:80", "127.0.0.1:65536", "example.org:80", "", 5, "127.1:80"]
)
def test_no_address_but_the_loopbacks_is_opened(ask: InProcess, control: FakeControl, address: Any) -> None:
    assert ask.problem("POST", "/v1/http", 422, json={"address": address})["field"] == "address"
    assert control.told == []


def test_a_listener_that_cannot_be_opened_says_why(ask: InProcess, control: FakeControl) -> None:
    control.opening = CANNOT_LISTEN
    assert "Permission denied" in ask.problem("POST", "/v1/http", 409)["detail"]
    control.opening = NO_ADDRESS
    assert "8.8.8.8" in ask.problem("POST", "/v1/http", 422)["detail"]


def test_stopping(ask: InProcess, control: FakeControl) -> None:
    assert ask.json("POST", "/v1/stop", status=202) == {"state": "stopping"}
    assert control.told == [("stop",)]


@pytest.mark.parametrize("path", ["/v1/resume", "/v1/stop", "/v1/jobs/1/retry"])
def test_a_body_that_would_be_ignored_is_refused(ask: InProcess, control: FakeControl, path: str) -> None:
    assert "expected none" in ask.problem("POST", path, 400, json={"seconds": 5})["detail"]
    assert ask.problem("POST", f"{path}?force=1", 422)["field"] == "force"
    assert control.told == []


# -------------------------------------------------------------------------------------------------- the disk


def test_a_full_disk_is_told(ask: InProcess, control: FakeControl, monkeypatch: pytest.MonkeyPatch) -> None:
    (number,) = add(control)

    def full(*arguments: Any) -> Any:
        raise FullError("the queue cannot be written: database or disk is full")

    for name in ("submit", "retry", "cancel", "jobs", "job", "submission", "winners", "heat_map"):
        monkeypatch.setattr(Queue, name, full)
    requests: list[tuple[str, str, Any]] = [
        ("POST", "/v1/submissions", {"model": "x"}),
        ("POST", f"/v1/jobs/{number}/retry", None),
        ("DELETE", f"/v1/jobs/{number}", None),
        ("GET", "/v1/jobs", None),
        ("GET", f"/v1/jobs/{number}", None),
        ("GET", f"/v1/jobs/{number}/heat-map", None),
        ("GET", "/v1/winners", None),
        ("GET", "/v1/submissions/1", None),
    ]
    for method, path, body in requests:
        assert "disk is full" in ask.problem(method, path, 507, json=body)["detail"]


def test_too_many_submissions_wait(ask: InProcess, control: FakeControl, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("faops.daemon.queue.submissions.MOST_WAITING", 1)
    first, second = (ask("POST", "/v1/submissions", json={"model": "x"}) for _ in range(2))
    assert (first.status_code, second.status_code, second.headers["retry-after"]) == (202, 503, "10")


# -------------------------------------------------------------------------------------------------- views


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0.0, "1970-01-01T00:00:00.000Z"),
        (1769860800.1239, "2026-01-31T12:00:00.123Z"),
        (None, None),
        (1e300, None),
        (-1e15, None),
        (float("nan"), None),
        (float("inf"), None),
    ],
)
def test_times_are_shown_in_utc(seconds: float | None, expected: str | None) -> None:
    assert views.time(seconds) == expected


def test_numbers_that_json_lacks_become_null() -> None:
    hostile = {"a": [float("inf"), {"b": float("nan")}], "c": (1.5, "é\ud800")}
    assert views.rendered(hostile) == b'{"a":[null,{"b":null}],"c":[1.5,"\\u00e9\\ud800"]}'
