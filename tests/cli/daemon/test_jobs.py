"""`faops daemon jobs`, `cancel` and `retry`."""

from __future__ import annotations

from urllib.parse import parse_qs, urlsplit

import pytest

from tests.cli.conftest import Faops
from tests.cli.daemon.support import Data, FakeDaemon, job, refusal, result
from tests.cli.support import document, refused

JOBS = [
    job(1, "done"),
    job(2, "done", result=result(is_default=True, speedup=1.0)),
    job(3, "done", result=result(status="warm")),
    job(4, "quarantined", message="its process died", attempts=3, source="submission", hits=1),
    job(5, "waiting"),
    job(6, "waiting", attempts=1, not_before="2026-01-31T12:00:30Z", message="timed out"),
    job(7, "running"),
    job(8, "cancelled", message="cancelled"),
]


@pytest.fixture(autouse=True)
def some_jobs(daemon: FakeDaemon) -> None:
    """GET /v1/jobs gives as many of the one state as are asked for; those that wait have no pages."""
    usual = daemon.answer

    def answer(method: str, target: str, body: object) -> tuple[int, Data]:
        parts = urlsplit(target)
        if (method, parts.path) != ("GET", "/v1/jobs"):
            return usual(method, target, body)
        query = parse_qs(parts.query)
        found = [one for one in JOBS if one["state"] in query["state"]]
        limit = int(query["limit"][0])
        more = len(found) > limit and query["state"] != ["waiting"]
        return 200, {"jobs": found[:limit], "next": found[limit - 1]["id"] if more else None}

    daemon.answer = answer  # type: ignore[method-assign]


def rows(text: str) -> dict[int, str]:
    return {int(line.split()[0]): line for line in text.splitlines() if line.split()[0].isdigit()}


def test_all_jobs_in_the_order_of_interest(faops: Faops) -> None:
    done = faops("daemon", "jobs")
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[0].split() == ["job", "state", "problem", "device", "calls", "outcome"]
    listed = rows(done.stdout)
    assert list(listed) == [7, 5, 6, 4, 1, 2, 3, 8]
    assert listed[1].endswith("4096   1.23x by torch.blockwise_forward")
    assert listed[2].endswith("nothing faster than the default")
    assert listed[3].endswith("1.23x by torch.blockwise_forward, tuned before")
    assert listed[4].endswith("cpu     -      its process died")
    assert listed[5].endswith("takes about 30 s")
    assert "failed 1 time, again at 2026-" in listed[6] and listed[6].endswith(": timed out")


def test_states_and_limits(faops: Faops) -> None:
    assert list(rows(faops("daemon", "jobs", "--state", "done").stdout)) == [1, 2, 3]
    assert list(rows(faops("daemon", "jobs", "--state", "done", "--state", "running").stdout)) == [7, 1, 2, 3]
    short = faops("daemon", "jobs", "--limit", "2").stdout
    assert list(rows(short)) == [7, 5, 6, 4, 1, 2, 8]
    assert short.splitlines()[-1] == "more than 2 are done; --state done --limit shows them"
    shorter = faops("daemon", "jobs", "--limit", "1").stdout
    assert "more than 1 are waiting; --state waiting --limit shows them\n" in shorter
    shown = document(faops("daemon", "jobs", "--limit", "2", "--json"))
    assert [one["id"] for one in shown["jobs"]] == [7, 5, 6, 4, 1, 2, 8] and shown["more"] == ["done"]


def test_no_jobs(faops: Faops, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.cli.daemon.test_jobs.JOBS", [])
    assert faops("daemon", "jobs").stdout == "no jobs\n"
    said = faops("daemon", "jobs", "--state", "done", "--state", "cancelled").stdout
    assert said == "no jobs that are done or cancelled\n"


def test_one_job(faops: Faops, daemon: FakeDaemon) -> None:
    daemon.answers["GET /v1/jobs/1"] = job(1, "done", message="faster")
    text = faops("daemon", "jobs", "1").stdout
    assert "state         done: faster" in text
    assert "from          a program, 4096 calls that ran untuned; a call takes about 4.3 ms" in text
    assert "winner        torch.blockwise_forward [block_q=64, block_k=512] 3.5 ms" in text
    assert "default       torch.sdpa_forward [threads=0] 4.3 ms" in text
    assert "measurements  59 in 31 s" in text
    assert document(faops("daemon", "jobs", "1", "--json"))["job"] == job(1, "done", message="faster")


def test_one_job_that_waits_after_a_failure(faops: Faops, daemon: FakeDaemon) -> None:
    late = job(6, attempts=1, not_before="2026-01-31T12:00:30Z", source="submission", hits=1)
    daemon.answers["GET /v1/jobs/6"] = late
    text = faops("daemon", "jobs", "6").stdout
    assert "not before  2026-" in text and "winner" not in text
    assert "from        submitted; a call takes about" in text and "failed      1 time\n" in text
    daemon.answers["GET /v1/jobs/6"] = {**late, "hits": 2}
    assert "submitted, 2 calls that ran untuned; a" in faops("daemon", "jobs", "6").stdout


def test_unknown_jobs_and_wrong_numbers(faops: Faops, daemon: FakeDaemon) -> None:
    daemon.answers["GET /v1/jobs/9"] = refusal(404, "there is no job 9")
    refused(faops("daemon", "jobs", "9"), "there is no job 9")
    refused(faops("daemon", "jobs", "nine"), "nine", code=2)
    refused(faops("daemon", "jobs", "0"), "JOB", code=2)
    refused(faops("daemon", "jobs", "--state", "lost"), "lost", code=2)


def test_cancel_and_retry(faops: Faops, daemon: FakeDaemon) -> None:
    for number in (5, 6):
        daemon.answers[f"DELETE /v1/jobs/{number}"] = job(number, "cancelled")
        daemon.answers[f"POST /v1/jobs/{number}/retry"] = job(number)
    said = faops("daemon", "cancel", "5", "6").stdout.splitlines()
    assert said == [f"job {n} is cancelled: forward float32 b1 {n}x512 h8/8 d64 causal" for n in (5, 6)]
    assert faops("daemon", "retry", "5").stdout.startswith("job 5 waits: forward")
    assert document(faops("daemon", "cancel", "5", "--json"))["jobs"] == [job(5, "cancelled")]
    assert document(faops("daemon", "retry", "6", "--json"))["jobs"] == [job(6)]
    refused(faops("daemon", "cancel"), "JOB", code=2)


def test_what_cannot_be_cancelled(faops: Faops, daemon: FakeDaemon) -> None:
    words = "job 1 is done, and only one that waits or runs can be cancelled"
    daemon.answers["DELETE /v1/jobs/1"] = refusal(409, words)
    refused(faops("daemon", "cancel", "1"), words)
