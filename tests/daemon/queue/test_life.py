"""What becomes of a job, rule by rule, and what is told of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from faops.daemon.jobs import STATES, Job, State
from faops.daemon.queue import Queue, TransitionError, UnknownError
from faops.daemon.queue.backoff import delay
from faops.daemon.queue.table import LONGEST_MESSAGE
from tests.daemon.queue.support import START, Clock, in_state, miss, result, submit, task

# ---------------------------------------------------------------------------------------------- the life of a job


def test_a_job_from_its_begin_to_its_end(queue: Queue, clock: Clock) -> None:
    job = miss(queue)
    clock.now += 1
    running = queue.begin(job.id)
    assert (running.state, running.begun, running.finished) == ("running", START + 1, None)
    clock.now += 1
    done = queue.finish(job.id, result(), "twice as fast \udcff")
    assert (done.state, done.begun, done.finished) == ("done", START + 1, START + 2)
    assert done.message == "twice as fast ?"
    assert done.result == {**{k: v for k, v in result().items() if k != "heat_map"}, "has_heat_map": True}
    assert queue.heat_map(job.id) == "<table></table>"
    assert queue.job(job.id) == done and queue.next() is None


def test_a_released_job_waits_and_has_failed_nothing(queue: Queue) -> None:
    job = miss(queue)
    queue.begin(job.id)
    released = queue.release(job.id)
    assert (released.state, released.attempts, released.not_before) == ("waiting", 0, 0.0)
    assert queue.next() == released


def test_failures_put_a_job_off_for_longer_and_longer_and_then_for_good(queue: Queue, clock: Clock) -> None:
    job = miss(queue)
    for failures, longest in ((1, 30), (2, 120)):
        queue.begin(job.id)
        failed = queue.fail(job.id, f"failure {failures}", crashed=True)
        assert (failed.state, failed.attempts, failed.message) == ("waiting", failures, f"failure {failures}")
        assert clock.now + 0.8 * longest <= failed.not_before <= clock.now + longest
        assert queue.next() is None
        clock.now = failed.not_before
        assert queue.next() == failed
    queue.begin(job.id)
    last = queue.fail(job.id, "failure 3")
    assert (last.state, last.attempts, last.finished) == ("quarantined", 3, clock.now)
    clock.now += 1e6
    assert queue.next() is None
    assert (queue.totals()["errors"], queue.totals()["crashes"]) == (3, 2)


def test_the_number_of_attempts_may_change(path: Path) -> None:
    with Queue(path, attempts=1) as queue:
        job = miss(queue)
        queue.begin(job.id)
        assert queue.fail(job.id, "it crashed").state == "quarantined"
        queue.attempts = 5
        queue.retry(job.id)
        queue.begin(job.id)
        assert queue.fail(job.id, "it crashed").state == "waiting"


def test_the_delay_grows_to_a_day_and_is_the_same_for_the_same_job() -> None:
    for failures, longest in (
        (1, 30),
        (2, 120),
        (3, 480),
        (4, 1920),
        (5, 7680),
        (6, 30720),
        (7, 86400),
        (10**9, 86400),
    ):
        delays = [delay(job_id, failures) for job_id in range(200)]
        assert all(0.8 * longest <= seconds <= longest for seconds in delays)
        assert len(set(delays)) > 190, "jobs that failed together come apart"
        assert delays == [delay(job_id, failures) for job_id in range(200)]


def test_a_retried_job_is_as_good_as_new(queue: Queue) -> None:
    for state, forced in (("quarantined", False), ("cancelled", False), ("done", True), ("waiting", False)):
        job = in_state(queue, state, key=state)  # type: ignore[arg-type]
        again = queue.retry(job.id)
        assert again == Job(job.id, task(state), "miss", "waiting", forced=forced, created=START)
        assert queue.next([task().device], now=START) is not None


ACTIONS: dict[str, tuple[Callable[[Queue, int], object], set[State]]] = {
    "begun": (lambda queue, job_id: queue.begin(job_id), {"waiting"}),
    "finished": (lambda queue, job_id: queue.finish(job_id, result()), {"running"}),
    "failed": (lambda queue, job_id: queue.fail(job_id, ""), {"running"}),
    "released": (lambda queue, job_id: queue.release(job_id), {"running"}),
    "cancelled": (lambda queue, job_id: queue.cancel(job_id), {"waiting", "running", "quarantined"}),
    "tried again": (lambda queue, job_id: queue.retry(job_id), {"waiting", "done", "quarantined", "cancelled"}),
}


@pytest.mark.parametrize("done", ACTIONS)
def test_what_cannot_be_done_to_a_job_is_refused_and_changes_nothing(queue: Queue, done: str) -> None:
    action, lawful = ACTIONS[done]
    for state in STATES:
        before = in_state(queue, state, key=state)
        if state in lawful:
            action(queue, before.id)
        else:
            totals = queue.totals()
            with pytest.raises(TransitionError, match=f"job {before.id} is {state}; only one that is .* can be {done}"):
                action(queue, before.id)
            assert queue.job(before.id) == before and queue.totals() == totals
    for unknown in (0, -1, 99, 2**63, 10**40):
        with pytest.raises(UnknownError, match=f"no job {unknown}"):
            action(queue, unknown)


def test_a_long_message_is_cut(queue: Queue) -> None:
    job = miss(queue)
    queue.begin(job.id)
    message = queue.fail(job.id, "x" * 100_000).message
    assert len(message) == LONGEST_MESSAGE and message.endswith("x…")


# ---------------------------------------------------------------------------------------------- after a kill


def killed(queue: Queue, job: Job) -> Job:
    """The job after the daemon was killed in the middle of it, and started."""
    queue.begin(job.id)
    assert queue.recover() == 1
    return queue.job(job.id)


def test_what_ran_waits_again(queue: Queue) -> None:
    job, other = miss(queue, "a"), in_state(queue, "done", "b")
    after = killed(queue, job)
    assert (after.state, after.attempts, after.not_before) == ("waiting", 0, 0.0)
    assert queue.job(other.id) == other
    assert queue.recover() == 0


def test_five_kills_in_a_row_in_the_middle_of_a_job_count_as_its_crash(queue: Queue) -> None:
    job = miss(queue)
    for _ in range(4):
        assert killed(queue, job).attempts == 0
    crashed = killed(queue, job)
    assert (crashed.state, crashed.attempts) == ("waiting", 1)
    assert crashed.not_before > START and "ended 5 times in a row" in crashed.message
    assert (queue.totals()["errors"], queue.totals()["crashes"]) == (1, 1)
    for _ in range(4):
        assert killed(queue, job).attempts == 1
    killed(queue, job)
    for _ in range(5):
        last = killed(queue, job)
    assert last.state == "quarantined"


@pytest.mark.parametrize("between", ["release", "fail"])
def test_a_job_that_the_daemon_survived_has_no_kills_in_a_row(queue: Queue, between: str) -> None:
    job = miss(queue)
    for _ in range(4):
        killed(queue, job)
    queue.begin(job.id)
    attempts = queue.release(job.id).attempts if between == "release" else queue.fail(job.id, "no").attempts
    assert killed(queue, job).attempts == attempts


# ---------------------------------------------------------------------------------------------- looking


def test_jobs_are_listed_by_their_last_change(queue: Queue, clock: Clock) -> None:
    jobs = [miss(queue, key) for key in "abcdef"]
    for job in reversed(jobs[:3]):
        clock.now -= 100  # the order is that of the changes, whatever the clock says
        queue.begin(job.id)
        queue.finish(job.id, result())
    assert [job.task.key for job in queue.jobs(["done"])] == ["a", "b", "c"]
    assert [job.task.key for job in queue.jobs(["done"], 2)] == ["a", "b"]
    assert [job.task.key for job in queue.jobs(["done"], 2, before=jobs[1].id)] == ["c"]
    assert [job.task.key for job in queue.jobs()] == ["a", "b", "c", "f", "e", "d"]
    assert [job.task.key for job in queue.jobs(before=jobs[5].id, limit=1)] == ["e"]
    assert [job.task.key for job in queue.jobs(["waiting", "done"], 4)] == ["a", "b", "c", "f"]
    assert queue.jobs([]) == queue.jobs(["cancelled"]) == queue.jobs(limit=0) == queue.jobs(limit=-1) == []
    with pytest.raises(UnknownError):
        queue.jobs(before=99)


def test_pages_of_waiting_jobs_are_the_whole_list_in_running_order(queue: Queue) -> None:
    queue.missed([(task(f"{index}"), index % 4) for index in range(20)])
    submit(queue, task("x"), task("y"))
    for failing in queue.upcoming(5):
        queue.begin(failing.id)
        queue.fail(failing.id, "")
    whole, pages, before = queue.upcoming(), [], None
    while page := queue.jobs(["waiting"], 3, before):
        pages += page
        before = page[-1].id
    assert pages == whole == queue.jobs(["waiting"]) and len(whole) == 22


def test_winners_are_the_done_jobs_with_a_kernel(queue: Queue) -> None:
    for key, changes in (
        ("faster", {}),
        ("default", {"is_default": True, "speedup": 1.0}),
        ("known", {"status": "warm"}),
        ("none", {"kernel": ""}),
    ):
        job = miss(queue, key)
        queue.begin(job.id)
        queue.finish(job.id, result(**changes))
    assert [job.task.key for job in queue.winners()] == ["known", "default", "faster"]
    assert [job.task.key for job in queue.winners(1)] == ["known"]


def test_totals_count_what_was_done(queue: Queue) -> None:
    assert set(queue.totals().values()) == {0}
    for key, changes in (
        ("faster", {}),
        ("default", {"is_default": True, "measurements": 8, "p50": 1.9e-3}),
        ("known", {"status": "warm", "measurements": 0, "seconds": 0.5, "rejected": None}),
        ("odd", {"seconds": float("inf"), "measurements": "many", "p50": None, "rejected": -4}),
    ):
        job = miss(queue, key)
        queue.begin(job.id)
        queue.finish(job.id, result(**changes))
    job = miss(queue, "failed")
    queue.begin(job.id)
    queue.fail(job.id, "no config passes", result={"seconds": 2.0, "measurements": 5, "rejected": 1})
    totals = queue.totals()
    assert totals.pop("saved_seconds") == pytest.approx(1e-3 + 2e-3)
    assert totals == {
        "tuned": 3,
        "won": 2,
        "seconds_tuning": 12.5 * 2 + 0.5 + 2,
        "measurements": 32 + 8 + 5,
        "rejected_samples": 3 + 3 + 1,
        "errors": 1,
        "crashes": 0,
        "misses": 5,
        "untuned_calls": 5,
    }


def test_counts_name_every_state(queue: Queue) -> None:
    assert queue.counts() == dict.fromkeys(STATES, 0)
    for state in STATES:
        in_state(queue, state, key=state)
    in_state(queue, "done", key="another")
    assert queue.counts() == {**dict.fromkeys(STATES, 1), "done": 2}


def test_pruning_forgets_what_is_long_done(queue: Queue, clock: Clock) -> None:
    jobs = {state: in_state(queue, state, key=state) for state in STATES}
    late = miss(queue, "late")
    settled, waits = queue.refuse(queue.submit({}).id, "no"), queue.submit({})
    clock.now += 90 * 86400
    assert queue.prune(90) == 0
    clock.now += 1
    young = in_state(queue, "done", key="young")
    queue.cancel(late.id)
    assert queue.prune(90) == 2
    assert {job.task.key for job in queue.jobs()} == {"waiting", "running", "quarantined", "young", "late"}
    assert queue.submission(waits.id) == waits
    for looking in (lambda: queue.job(jobs["done"].id), lambda: queue.submission(settled.id)):
        with pytest.raises(UnknownError):
            looking()
    assert miss(queue, "done").id > young.id, "an id is never given twice"


# ---------------------------------------------------------------------------------------------- pause


def test_a_pause_lasts_until_it_is_lifted_or_its_time_is_over(queue: Queue, clock: Clock) -> None:
    assert queue.paused() is None
    queue.set_paused("a benchmark \udcff")
    assert queue.paused() == ("a benchmark ?", None)
    clock.now += 1e9
    assert queue.paused() is not None
    queue.set_paused("another", clock.now + 60)
    assert queue.paused() == ("another", clock.now + 60)
    clock.now += 59
    assert queue.paused() is not None
    clock.now += 1
    assert queue.paused() is None
    queue.set_paused("a third")
    queue.set_paused(None)
    assert queue.paused() is None
    queue.set_paused("over before it began", clock.now - 1)
    assert queue.paused() is None
