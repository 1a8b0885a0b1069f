"""Clocks that jump: they make a job or the end of a pause late by no more than its own delay."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from faops.daemon.queue import Queue
from tests.daemon.queue.support import START, YEAR, Clock, task

jumps = st.lists(
    st.tuples(st.floats(0, 100), st.sampled_from([0.0, -1.0, -3600.0, 3600.0]) | st.floats(-5 * YEAR, 5 * YEAR)),
    max_size=6,
)
lawful = settings(
    max_examples=25, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@lawful
@given(jumps=jumps)
@example(jumps=[(0.0, -YEAR)])
@example(jumps=[(10.0, 10 * YEAR), (10.0, -20 * YEAR)])
def test_a_job_is_never_late_by_more_than_its_back_off(
    queue: Queue, clock: Clock, jumps: list[tuple[float, float]]
) -> None:
    clock.now = START
    [job] = queue.expanded(queue.submit({}).id, [task()], forced=True)
    queue.retry(job.id)
    queue.begin(job.id)
    failed = queue.fail(job.id, "it crashed")
    delay = failed.not_before - START
    for seconds, jump in jumps:
        clock.now += seconds + jump
        queue.next()
    clock.now += delay + 1e-3
    due = queue.next()
    assert due is not None and due.id == job.id


@lawful
@given(jumps=jumps)
@example(jumps=[(0.0, -YEAR)])
def test_a_pause_is_never_longer_than_it_was_meant(
    queue: Queue, clock: Clock, jumps: list[tuple[float, float]]
) -> None:
    clock.now = START
    queue.set_paused("a benchmark", START + 60)
    for seconds, jump in jumps:
        clock.now += seconds + jump
        paused = queue.paused()
        assert paused is None or clock.now < (paused.until or 0) <= clock.now + 60 + 1e-3
    clock.now += 60 + 1e-3
    assert queue.paused() is None
    clock.now -= 30
    assert queue.paused() is None, "a pause that was over does not come back"


def test_a_clock_that_was_set_back_while_no_daemon_ran(path: Path) -> None:
    clock = Clock()
    with Queue(path, clock) as queue:
        [job] = queue.missed([(task(), 1)])
        queue.begin(job.id)
        delay = queue.fail(job.id, "it crashed").not_before - clock.now
        queue.set_paused("a benchmark", clock.now + 60)
    clock.now -= YEAR
    with Queue(path, clock) as queue:
        assert queue.paused() == ("a benchmark", clock.now + 60)
        assert queue.next() is None
        assert queue.job(job.id).not_before == pytest.approx(clock.now + delay)
        clock.now += 61
        assert queue.next() is not None and queue.paused() is None


def test_a_back_off_is_not_begun_anew_by_looking(queue: Queue, clock: Clock) -> None:
    [job] = queue.missed([(task(), 1)])
    queue.begin(job.id)
    due = queue.fail(job.id, "it crashed").not_before
    while clock.now < due:
        assert queue.next() is None
        clock.now += 0.5
    assert queue.next() is not None
