"""What comes into the queue, and which job is next, rule by rule."""

from __future__ import annotations

import pytest

from faops.daemon.jobs import STATES, Job, State
from faops.daemon.queue import BacklogError, Queue, TransitionError, UnknownError
from faops.daemon.queue.table import MOST
from tests.daemon.queue.support import START, Clock, in_state, miss, result, submit, task

# ---------------------------------------------------------------------------------------------- misses


def test_a_miss_becomes_a_job_that_waits(queue: Queue) -> None:
    job = miss(queue, hits=7)
    assert job == Job(job.id, task(), "miss", "waiting", hits=7, created=START)
    assert queue.job(job.id) == queue.find(task().mark) == queue.next() == job


def test_the_same_miss_again_only_raises_the_hits(queue: Queue) -> None:
    job = miss(queue, hits=7)
    assert queue.missed([(task(), 12), (task(), 5)]) == []
    assert queue.job(job.id).hits == 12
    assert queue.totals()["untuned_calls"] == 12 and queue.totals()["misses"] == 1


def test_the_marks_tell_jobs_apart(queue: Queue) -> None:
    tasks = [task("a"), task("b"), task("a", identity="other"), task("a", environment="torch3")]
    assert len({job.id for job in queue.missed([(each, 1) for each in tasks])}) == 4
    assert [queue.find(each.mark).task for each in tasks] == tasks  # type: ignore[union-attr]
    assert queue.find(("gpu", "torch2", "c")) is None
    assert queue.find(("gpu\udcff", "torch2", "a")) is None, "the name of a directory need not be text"


def test_hits_are_set_to_the_larger(queue: Queue) -> None:
    job = miss(queue, hits=4)
    for count, expected in ((9, 9), (3, 9), (10**30, MOST)):
        queue.hits(task().mark, count)
        assert queue.job(job.id).hits == expected
    queue.hits(("no", "such", "job"), 3)
    assert miss(queue, "b", hits=10**6).weight < queue.job(job.id).weight
    assert queue.next().id == job.id  # type: ignore[union-attr]
    assert queue.totals()["untuned_calls"] == MOST + 10**6


def test_a_warm_miss_makes_no_job_wait(queue: Queue) -> None:
    assert queue.missed([(task(warm=True), 5)]) == [] and queue.find(task().mark) is None
    done = in_state(queue, "done")
    assert queue.missed([(task(warm=True), 5)]) == []
    assert (queue.job(done.id).state, queue.job(done.id).hits) == ("done", 5)


def test_a_miss_of_a_done_job_makes_it_wait_as_if_new(queue: Queue, clock: Clock) -> None:
    done = in_state(queue, "done")
    clock.now += 60
    again = miss(queue, hits=3, device="cuda:1")
    assert again == Job(done.id, task(device="cuda:1"), "miss", "waiting", hits=3, created=START)
    assert queue.heat_map(done.id) == ""
    assert queue.winners() == []


@pytest.mark.parametrize("state", ["running", "quarantined", "cancelled"])
def test_a_miss_of_other_jobs_only_raises_the_hits(queue: Queue, state: State) -> None:
    before = in_state(queue, state)
    assert queue.missed([(task(device="cuda:9"), 5)]) == []
    after = queue.job(before.id)
    assert after.hits == 5 and (after.state, after.task) == (state, before.task)


def test_a_waiting_job_learns_its_device_and_estimates_from_a_later_miss(queue: Queue) -> None:
    job = miss(queue, hits=10)
    later = task(device="cuda:3", call_seconds=2.0)
    queue.missed([(later, 10)])
    assert queue.job(job.id).task == later
    miss(queue, "b", hits=19_000)
    assert [each.task.key for each in queue.upcoming()] == ["a", "b"], "its weight follows"


def test_estimates_that_are_no_numbers_weigh_nothing(queue: Queue) -> None:
    for key, estimate in (("a", float("nan")), ("b", float("inf")), ("c", -1.0)):
        assert miss(queue, key, call_seconds=estimate).task.call_seconds == 0.0


# ---------------------------------------------------------------------------------------------- submissions


def test_a_submission_waits_until_it_is_expanded(queue: Queue, clock: Clock) -> None:
    first = queue.submit({"model": "llama-3-8b", "options": {"dtype": "float16"}})
    second = queue.submit({"plan": "x\udcff"})
    assert (first.state, first.created, first.jobs, first.message) == ("waiting", START, (), "")
    assert queue.next_submission() == queue.submission(first.id) == first
    jobs = queue.expanded(first.id, [task("a"), task("b"), task("a")])
    assert [(job.task.key, job.source, job.forced) for job in jobs] == [
        ("a", "submission", False),
        ("b", "submission", False),
    ]
    assert queue.submission(first.id).jobs == tuple(job.id for job in jobs)
    assert queue.submission(first.id).state == "expanded"
    assert queue.next_submission() == second and second.request == {"plan": "x\udcff"}
    assert [each.id for each in queue.submissions()] == [second.id, first.id]
    assert [each.id for each in queue.submissions(1)] == [second.id]


def test_a_submission_says_what_of_it_became_no_job(queue: Queue) -> None:
    submission = queue.submit({})
    jobs = queue.expanded(submission.id, [task("a"), task("b", warm=True)], [("problem c", "no kernel runs it")])
    assert [job.task.key for job in jobs] == ["a"]
    message = queue.submission(submission.id).message
    assert message == (
        "1 of 3 problems have a winner already; 1 of 3 problems cannot be tuned: problem c: no kernel runs it"
    )


def test_a_submission_of_which_nothing_can_be_tuned_is_refused(queue: Queue) -> None:
    submission = queue.submit({})
    assert queue.expanded(submission.id, [], [("problem c", "no kernel runs it")]) == []
    assert queue.submission(submission.id).state == "refused"
    empty = queue.submit({})
    assert queue.expanded(empty.id, []) == []
    assert queue.submission(empty.id).state == "expanded"
    assert queue.submission(empty.id).message == "there is nothing to tune in it"
    other = queue.refuse(queue.submit({}).id, "no such model \udcff")
    assert (other.state, other.message) == ("refused", "no such model ?")


def test_a_settled_submission_stays_as_it_is(queue: Queue) -> None:
    submission = queue.submit({})
    queue.expanded(submission.id, [task()])
    with pytest.raises(TransitionError, match=f"submission {submission.id} is expanded"):
        queue.refuse(submission.id, "no")
    with pytest.raises(TransitionError, match="is expanded"):
        queue.expanded(submission.id, [task("b")])
    assert queue.find(task("b").mark) is None
    for unknown in (0, -1, 99, 2**63, 10**40):
        with pytest.raises(UnknownError, match=f"no submission {unknown}"):
            queue.submission(unknown)


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("forced", [False, True])
def test_a_submission_of_a_known_problem_makes_its_job_due(
    queue: Queue, clock: Clock, state: State, forced: bool
) -> None:
    before = in_state(queue, state)
    [job] = submit(queue, task(device="cuda:1"), forced=forced)
    assert (job.id, job.source, job.forced) == (before.id, "submission", forced)
    if state == "running":
        assert (job.state, job.begun, job.task) == ("running", START, task())
    else:
        assert job == Job(before.id, task(device="cuda:1"), "submission", "waiting", forced=forced, created=START)


def test_a_submission_ends_a_back_off_but_forgets_no_failure(queue: Queue) -> None:
    job = miss(queue)
    queue.begin(job.id)
    assert queue.fail(job.id, "it crashed").not_before > START
    [again] = submit(queue, task())
    assert (again.not_before, again.attempts) == (0.0, 1)
    assert queue.next() == again


def test_one_forced_once_stays_forced_until_it_is_done(queue: Queue) -> None:
    [job] = submit(queue, task(), forced=True)
    assert submit(queue, task())[0].forced
    queue.begin(job.id)
    queue.finish(job.id, result())
    assert not submit(queue, task())[0].forced


@pytest.mark.parametrize("state", STATES)
def test_a_warm_task_changes_no_job_unless_it_is_forced(queue: Queue, state: State) -> None:
    before = in_state(queue, state)
    assert submit(queue, task(warm=True)) == [before]
    [job] = submit(queue, task(warm=True), forced=True)
    assert job.forced and job.state == ("running" if state == "running" else "waiting")
    assert len(submit(queue, task("b", warm=True), forced=True)) == 1


def test_submissions_are_limited(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("faops.daemon.queue.submissions.MOST_WAITING", 3)
    first, _, _ = (queue.submit({}) for _ in range(3))
    with pytest.raises(BacklogError, match="3 submissions wait already"):
        queue.submit({})
    queue.refuse(first.id, "no")
    queue.submit({})


# ---------------------------------------------------------------------------------------------- order


def test_submissions_come_before_misses_then_the_heaviest_then_the_oldest(queue: Queue, clock: Clock) -> None:
    miss(queue, "light", hits=1)
    miss(queue, "heavy", hits=900)
    miss(queue, "slow", hits=2, call_seconds=0.7)
    clock.now += 10
    miss(queue, "younger", hits=1)
    clock.now -= 20
    miss(queue, "older", hits=1)
    submit(queue, task("asked"))
    submit(queue, task("asked for long", call_seconds=0.01))
    expected = ["asked for long", "asked", "slow", "heavy", "older", "light", "younger"]
    assert [job.task.key for job in queue.upcoming()] == expected
    for key in expected:
        job = queue.next()
        assert job is not None and job.task.key == key
        queue.begin(job.id)
    assert queue.next() is None


def test_next_looks_at_the_devices_that_it_is_given(queue: Queue) -> None:
    miss(queue, "a", 3)
    miss(queue, "b", 2, device="cuda:1")
    miss(queue, "c", 1, device="cpu")
    asked: list[tuple[list[str] | None, str | None]] = [
        (None, "a"), (["cuda:1"], "b"), (["cpu", "cuda:1"], "b"), (["npu:0"], None), ([], None),
    ]  # fmt: skip
    for devices, expected in asked:
        job = queue.next(devices)
        assert (job and job.task.key) == expected
    assert [queue.waiting(device) for device in ("cuda:0", "cuda:1", "cpu", "npu:0")] == [1, 1, 1, 0]


def test_what_is_put_off_runs_later_in_the_order_of_its_time(queue: Queue, clock: Clock) -> None:
    heavy = miss(queue, "heavy", 1000)
    miss(queue, "light")
    later = miss(queue, "later", 2000)
    queue.begin(heavy.id)
    queue.fail(heavy.id, "it crashed")
    clock.now += 5
    queue.begin(later.id)
    queue.fail(later.id, "it crashed")
    assert [job.task.key for job in queue.upcoming()] == ["light", "heavy", "later"]
    assert queue.next().task.key == "light"  # type: ignore[union-attr]
    due = queue.job(heavy.id).not_before
    assert START + 24 <= due <= START + 30
    assert queue.next(now=due).task.key == "heavy"  # type: ignore[union-attr]
    clock.now = due
    assert [job.task.key for job in queue.upcoming()] == ["heavy", "light", "later"]
