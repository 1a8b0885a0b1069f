"""The queue against a model of it in dictionaries, through any sequence of calls, restarts and jumps of the clock."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from faops.daemon.jobs import STATES, Job, Task
from faops.daemon.queue import Queue, TransitionError
from faops.daemon.queue.backoff import delay
from tests.daemon.queue.support import Clock, result, task

KEYS = st.sampled_from("abcdef")
HITS = st.integers(0, 50)
DEVICES = ("cuda:0", "cuda:1")
TASKS = st.builds(
    task, KEYS, device=st.sampled_from(DEVICES), call_seconds=st.sampled_from([1e-3, 2e-3, 0.5]), warm=st.booleans()
)
WHICH = st.integers(0, 5)
LAWFUL = {
    "begin": {"waiting"},
    "finish": {"running"},
    "fail": {"running"},
    "release": {"running"},
    "cancel": {"waiting", "running", "quarantined"},
    "retry": {"waiting", "done", "quarantined", "cancelled"},
}


@dataclass
class Row:
    """A job as the model has it; its back-off began at ``since``."""

    job: Job
    since: float = 0.0
    delay: float = 0.0
    kills: int = 0
    turn: int = 0

    def change(self, **columns: object) -> None:
        self.job = replace(self.job, **columns)  # type: ignore[arg-type]

    def anew(self, source: str, forced: bool) -> None:
        job = self.job
        self.job = Job(job.id, job.task, source, "waiting", job.hits, forced, created=job.created)  # type: ignore[arg-type]
        self.since = self.delay = self.kills = 0

    def renew(self, new: Task) -> None:
        self.change(task=replace(new, warm=False))

    @property
    def due(self) -> float:
        return self.since + self.delay


class Rules(RuleBasedStateMachine):
    """Jobs by their id. Every rule does the same to the queue and to the model."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="faops-queue-"))
        self.clock = Clock()
        self.queue = Queue(self.directory / "queue.sqlite", self.clock)
        self.rows: dict[int, Row] = {}
        self.tuned = self.errors = self.misses = self.calls = self.turn = 0

    def teardown(self) -> None:
        self.queue.close()
        shutil.rmtree(self.directory)

    # ------------------------------------------------------------------------------------------ the model

    def of(self, mark: tuple[str, str, str]) -> Row | None:
        return next((row for row in self.rows.values() if row.job.task.mark == mark), None)

    def moved(self, row: Row) -> None:
        self.turn += 1
        row.turn = self.turn

    def added(self, new: Task, source: str, hits: int, forced: bool) -> Row:
        found = self.queue.find(new.mark)
        assert found is not None and found.id not in self.rows
        row = Row(Job(found.id, replace(new, warm=False), source, "waiting", hits, forced, created=self.clock.now))  # type: ignore[arg-type]
        self.rows[found.id] = row
        self.moved(row)
        return row

    def failed(self, row: Row, message: str) -> None:
        attempts = row.job.attempts + 1
        row.kills = 0
        if attempts >= self.queue.attempts:
            row.change(state="quarantined", attempts=attempts, message=message, finished=self.clock.now)
        else:
            row.change(state="waiting", attempts=attempts, message=message)
            row.since, row.delay = self.clock.now, delay(row.job.id, attempts)
        self.moved(row)
        self.errors += 1

    def some(self, which: int) -> Row:
        return self.rows[sorted(self.rows)[which % len(self.rows)]]

    def running_order(self) -> list[Row]:
        waiting = [row for row in self.rows.values() if row.job.state == "waiting"]
        now = self.clock.now
        return sorted(
            waiting,
            key=lambda row: (
                max(row.due - now, 0),
                row.job.source == "miss",
                -row.job.weight,
                row.job.created,
                row.job.id,
            ),
        )

    # ------------------------------------------------------------------------------------------ what comes in

    @rule(pairs=st.lists(st.tuples(TASKS, HITS), min_size=1, max_size=4))
    def missed(self, pairs: list[tuple[Task, int]]) -> None:
        told = self.queue.missed(pairs)
        expected: list[int] = []
        for new, hits in pairs:
            row = self.of(new.mark)
            if row is None:
                if new.warm:
                    continue
                row = self.added(new, "miss", hits, False)
                self.calls += hits
                expected.append(row.job.id)
                continue
            self.calls += max(0, hits - row.job.hits)
            row.change(hits=max(hits, row.job.hits))
            if row.job.state == "done" and not new.warm:
                row.anew("miss", False)
                row.renew(new)
                self.moved(row)
                expected.append(row.job.id)
            elif row.job.state == "waiting":
                row.renew(new)
        self.misses += len(expected)
        assert [job.id for job in told] == expected

    @rule(tasks=st.lists(TASKS, max_size=4), forced=st.booleans())
    def submitted(self, tasks: list[Task], forced: bool) -> None:
        submission = self.queue.submit({"shapes": [new.key for new in tasks]})
        assert self.queue.next_submission() == submission
        told = self.queue.expanded(submission.id, tasks, forced=forced)
        expected = []
        for new in tasks:
            row, answered = self.of(new.mark), new.warm and not forced
            if row is None and answered:
                continue
            if row is None:
                row = self.added(new, "submission", 1, forced)
            elif not answered:
                self.asked(row, new, forced)
            expected.append(row.job.id)
        assert [job.id for job in told] == list(dict.fromkeys(expected))
        assert self.queue.submission(submission.id).jobs == tuple(dict.fromkeys(expected))
        assert self.queue.next_submission() is None

    def asked(self, row: Row, new: Task, forced: bool) -> None:
        if row.job.state in ("waiting", "running"):
            row.change(source="submission", forced=forced or row.job.forced)
        else:
            row.anew("submission", forced)
        if row.job.state == "waiting":
            row.since = row.delay = 0
            row.renew(new)
        self.moved(row)

    @rule(key=KEYS, count=HITS)
    def hits(self, key: str, count: int) -> None:
        self.queue.hits(task(key).mark, count)
        if row := self.of(task(key).mark):
            self.calls += max(0, count - row.job.hits)
            row.change(hits=max(count, row.job.hits))

    # ------------------------------------------------------------------------------------------ what becomes of it

    @precondition(lambda self: self.rows)
    @rule(action=st.sampled_from(sorted(LAWFUL)), which=WHICH)
    def acted(self, action: str, which: int) -> None:
        row = self.some(which)
        if row.job.state in LAWFUL[action]:
            getattr(self, f"_{action}")(row)
            return
        with pytest.raises(TransitionError, match=f"job {row.job.id} is {row.job.state}"):
            self._call(action, row.job.id)

    @rule(devices=st.sets(st.sampled_from(DEVICES)) | st.none())
    def begun_next(self, devices: set[str] | None) -> None:
        told = self.queue.next(devices)
        now = self.clock.now
        for row in self.rows.values():  # which it does first
            if row.job.state == "waiting" and row.since > now:
                row.since = now
        due = [row for row in self.running_order() if row.due <= now]
        due = [row for row in due if devices is None or row.job.task.device in devices]
        assert (told and told.id) == (due[0].job.id if due else None)
        if told is not None:
            self._begin(self.rows[told.id])

    def _call(self, action: str, job_id: int) -> Job:
        arguments = {"finish": (result(),), "fail": ("it crashed",)}.get(action, ())
        told: Job = getattr(self.queue, action)(job_id, *arguments)
        return told

    def _begin(self, row: Row) -> None:
        self._call("begin", row.job.id)
        row.change(state="running", begun=self.clock.now)
        self.moved(row)

    def _finish(self, row: Row) -> None:
        told = self._call("finish", row.job.id)
        row.change(state="done", finished=self.clock.now, message="", result=told.result)
        row.kills = 0
        self.tuned += 1
        self.moved(row)

    def _fail(self, row: Row) -> None:
        self._call("fail", row.job.id)
        self.failed(row, "it crashed")

    def _release(self, row: Row) -> None:
        self._call("release", row.job.id)
        row.change(state="waiting")
        row.kills = 0
        self.moved(row)

    def _cancel(self, row: Row) -> None:
        self._call("cancel", row.job.id)
        row.change(state="cancelled", finished=self.clock.now)
        row.kills = 0
        self.moved(row)

    def _retry(self, row: Row) -> None:
        self._call("retry", row.job.id)
        row.anew(row.job.source, row.job.forced or row.job.state == "done")
        self.moved(row)

    # ------------------------------------------------------------------------------------------ the world

    @rule(recover=st.booleans())
    def restarted(self, recover: bool) -> None:
        self.queue.close()
        self.queue = Queue(self.directory / "queue.sqlite", self.clock)
        assert self.queue.broken is None
        if not recover:
            return
        running = [row for row in self.rows.values() if row.job.state == "running"]
        assert self.queue.recover() == len(running)
        for row in running:
            row.kills += 1
            if row.kills >= 5:
                self.failed(row, "the daemon has ended 5 times in a row in the middle of it")
            else:
                row.change(state="waiting")
        for row in sorted(running, key=lambda row: row.job.id):
            self.moved(row)

    @rule(seconds=st.sampled_from([1.0, 30.0, 130.0, 86400.0, -1.0, -3600.0, -3e8, 3e8]))
    def passed(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule(days=st.sampled_from([0.0, 1.0, 90.0]))
    def pruned(self, days: float) -> None:
        oldest = self.clock.now - days * 86400
        gone = [
            row.job.id
            for row in self.rows.values()
            if row.job.state in ("done", "cancelled") and (row.job.finished or 0) < oldest
        ]
        assert self.queue.prune(days) == len(gone)
        for job_id in gone:
            del self.rows[job_id]

    # ------------------------------------------------------------------------------------------ comparing

    @invariant()
    def every_job_is_as_the_model_says(self) -> None:
        found = self.queue.jobs(limit=1000)
        expected = {job_id: replace(row.job, not_before=row.due) for job_id, row in self.rows.items()}
        assert {job.id: job for job in found} == expected

    @invariant()
    def lists_are_in_order(self) -> None:
        assert [job.id for job in self.queue.upcoming()] == [row.job.id for row in self.running_order()]
        done = sorted((row for row in self.rows.values() if row.job.state == "done"), key=lambda row: -row.turn)
        assert [job.id for job in self.queue.jobs(["done"])] == [row.job.id for row in done]
        assert [job.id for job in self.queue.winners()] == [row.job.id for row in done]

    @invariant()
    def what_is_counted_is_right(self) -> None:
        states = [row.job.state for row in self.rows.values()]
        assert self.queue.counts() == {state: states.count(state) for state in STATES}
        totals = self.queue.totals()
        assert (totals["tuned"], totals["errors"]) == (self.tuned, self.errors)
        assert (totals["misses"], totals["untuned_calls"]) == (self.misses, self.calls)


FEW = settings(
    max_examples=15, stateful_step_count=25, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)
MANY = settings(FEW, max_examples=150, stateful_step_count=50)


def test_the_queue_keeps_its_rules() -> None:
    run_state_machine_as_test(Rules, settings=FEW)


@pytest.mark.full
def test_the_queue_keeps_its_rules_at_length() -> None:
    run_state_machine_as_test(Rules, settings=MANY)
