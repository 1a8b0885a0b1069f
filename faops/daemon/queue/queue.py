"""The queue: which jobs there are, which is next, and what became of each."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from faops.daemon.jobs import STATES, Job, State, Submission, SubmissionState, Task
from faops.daemon.queue import pause, submissions, table, totals
from faops.daemon.queue.backoff import delay
from faops.daemon.queue.database import Database
from faops.daemon.queue.errors import FullError
from faops.daemon.queue.pause import Pause

ATTEMPTS = 3
MOST_KILLS = 5  # ends of the daemon in a row in the middle of a job, from which on the job is to blame
DAY = 86400.0


class Queue:
    """Jobs and submissions in a file, held by one process.

    A file that is broken is renamed (``broken`` is its new path, else None) and an empty queue begun: misses come in
    again by themselves, while submissions and the record of past jobs are lost. Times are seconds since the epoch as
    ``clock`` tells them; however that jumps, a job waits no longer than its back-off and a pause than it was meant to.
    A job is quarantined after ``attempts`` failures, which may be changed at any time.

    Raises DaemonError where another process holds the file or a newer version of faops has written it. Every method
    may raise FullError, and has changed nothing then; it works again once there is room.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.time, attempts: int = ATTEMPTS) -> None:
        self.attempts = attempts
        self._clock = clock
        self._database = Database(path)

    @property
    def broken(self) -> Path | None:
        """Where a file was moved that could not be read; None where that was not needed."""
        return self._database.broken

    def close(self) -> None:
        """Let go of the file."""
        self._database.close()

    def __enter__(self) -> Queue:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ------------------------------------------------------------------------------------------ submissions

    def submit(self, request: Mapping[str, Any]) -> Submission:
        """Keep a request until it is made into jobs. Raises BacklogError where very many wait already."""
        text = json.dumps(request)
        with self._database.transaction() as db:
            return submissions.insert(db, text, self._clock())

    def submission(self, submission_id: int) -> Submission:
        """Raises UnknownError."""
        return submissions.one(self._database, submission_id)

    def submissions(self, limit: int = 100) -> list[Submission]:
        """The newest, newest first."""
        return submissions.newest(self._database, limit)

    def next_submission(self) -> Submission | None:
        """The oldest that waits."""
        return submissions.oldest_waiting(self._database)

    def expanded(
        self,
        submission_id: int,
        tasks: Sequence[Task],
        refused: Sequence[tuple[str, str]] = (),
        forced: bool = False,
    ) -> list[Job]:
        """Make a submission that waits into the jobs of its tasks; ``refused`` are the others, (problem, why) in words.

        A task that has a job already shares it, which waits again without back-off, whatever its state was; one that
        runs goes on. A warm task makes no job and changes none, unless it is ``forced``. Returns the submission's
        jobs. Raises UnknownError and TransitionError.
        """
        with self._database.transaction() as db:
            submissions.waiting(db, submission_id)
            asked = [self._ask(db, task, forced) for task in tasks]
            ids = list(dict.fromkeys(job_id for job_id in asked if job_id is not None))
            warm = sum(task.warm and not forced for task in tasks)
            state: SubmissionState = "refused" if refused and not tasks else "expanded"
            submissions.settle(db, submission_id, state, ids, submissions.summary(len(tasks), warm, refused))
            return [table.one(db, job_id) for job_id in ids]

    def refuse(self, submission_id: int, message: str) -> Submission:
        """Give a submission up that waits. Raises UnknownError and TransitionError."""
        with self._database.transaction() as db:
            submissions.waiting(db, submission_id)
            return submissions.settle(db, submission_id, "refused", [], message)

    def _ask(self, db: sqlite3.Connection, task: Task, forced: bool) -> int | None:
        """The job that a submission makes of a task; None where it makes none."""
        job = table.find(db, task.mark)
        answered = task.warm and not forced
        if job is None:
            return None if answered else table.insert(db, task, "submission", 1, forced, self._clock())
        if answered:
            return job.id
        if job.state in ("waiting", "running"):
            since = {"since": 0, "delay": 0} if job.state == "waiting" else {}
            table.move(db, job.id, job.state, source="submission", forced=forced or job.forced, **since)
        else:
            table.move_anew(db, job.id, "submission", forced)
        if job.state != "running":
            table.renew(db, job.id, task)
        return job.id

    # ------------------------------------------------------------------------------------------ misses

    def missed(self, pairs: Iterable[tuple[Task, int]]) -> list[Job]:
        """Take in problems that ran untuned, each with the number of such calls; the jobs that wait because of it.

        Those are new ones, and ones that were done. Of other jobs only the hits become more. A warm task makes no job
        wait.
        """
        with self._database.transaction() as db:
            ids = [job_id for task, hits in pairs if (job_id := self._miss(db, task, hits)) is not None]
            totals.add(db, misses=len(ids))
            return [table.one(db, job_id) for job_id in ids]

    def hits(self, mark: tuple[str, str, str], count: int) -> None:
        """Set the hits of a task's job to ``count``, if there is one and that is more."""
        job = table.find(self._database, mark)
        if job is not None and count > job.hits:
            with self._database.transaction(synchronous=False) as db:
                _raise_hits(db, job, count)

    def _miss(self, db: sqlite3.Connection, task: Task, hits: int) -> int | None:
        """The job that waits because of a miss, None where none does."""
        job = table.find(db, task.mark)
        if job is None:
            if task.warm:
                return None
            totals.add(db, untuned_calls=table.counted(hits))
            return table.insert(db, task, "miss", hits, False, self._clock())
        _raise_hits(db, job, hits)
        if job.state == "done" and not task.warm:
            table.move_anew(db, job.id, "miss", False)
            table.renew(db, job.id, task)
            return job.id
        if job.state == "waiting":
            table.renew(db, job.id, task)
        return None

    # ------------------------------------------------------------------------------------------ choosing

    def next(self, devices: Collection[str] | None = None, now: float | None = None) -> Job | None:
        """The job to begin: of those that wait, are due and are of one of ``devices`` (None: of any), submissions
        before misses, then that of the largest weight, then the oldest."""
        now = self._clock() if now is None else now
        self._end_waits_from_the_future(now)
        return table.first_due(self._database, devices, now)

    def upcoming(self, limit: int = 100) -> list[Job]:
        """Jobs that wait, in the order in which they will run."""
        return table.upcoming(self._database, limit, None, self._clock())

    def _end_waits_from_the_future(self, now: float) -> None:
        """Where the clock was set back, the back-offs that began later begin now."""
        if table.latest_wait(self._database) > now:
            with contextlib.suppress(FullError), self._database.transaction() as db:  # if not now, at the next look
                db.execute("UPDATE jobs SET since = :now WHERE state = 'waiting' AND since > :now", {"now": now})

    # ------------------------------------------------------------------------------------------ what becomes of a job

    # Each of these returns the job as it is then. They raise UnknownError where there is none of that id, and
    # TransitionError where it is in another state than the method is for.

    def begin(self, job_id: int) -> Job:
        """waiting → running."""
        with self._database.transaction() as db:
            table.in_state(db, job_id, ("waiting",), "begun")
            table.move(db, job_id, "running", begun=self._clock())
            return table.one(db, job_id)

    def finish(self, job_id: int, result: Mapping[str, Any], message: str = "") -> Job:
        """running → done. The result is kept without its heat map, for which see :meth:`heat_map`."""
        kept = {name: value for name, value in result.items() if name != "heat_map"}
        heat_map = str(result.get("heat_map") or "")
        text = json.dumps({**kept, "has_heat_map": bool(heat_map)})
        with self._database.transaction() as db:
            table.in_state(db, job_id, ("running",), "finished")
            found = {"result": text, "heat_map": table.storable(heat_map, None), "won": bool(result.get("kernel"))}
            told = table.storable(message)
            table.move(db, job_id, "done", finished=self._clock(), message=told, **found)
            totals.add(db, **totals.spent(result), **totals.gained(result))
            return table.one(db, job_id)

    def fail(self, job_id: int, message: str, crashed: bool = False, result: Mapping[str, Any] | None = None) -> Job:
        """running → waiting with a back-off, or quarantined after :attr:`attempts` of these. A ``result`` only tells
        what was spent in vain."""
        with self._database.transaction() as db:
            job = table.in_state(db, job_id, ("running",), "failed")
            self._fail(db, job, message)
            totals.add(db, errors=1, crashes=int(crashed), **totals.spent(result or {}))
            return table.one(db, job_id)

    def release(self, job_id: int) -> Job:
        """running → waiting, because others need the device; it counts as no attempt."""
        with self._database.transaction() as db:
            table.in_state(db, job_id, ("running",), "released")
            table.move(db, job_id, "waiting", kills=0)
            return table.one(db, job_id)

    def cancel(self, job_id: int) -> Job:
        """waiting, running or quarantined → cancelled. A miss does not bring it back; a submission does."""
        with self._database.transaction() as db:
            table.in_state(db, job_id, ("waiting", "running", "quarantined"), "cancelled")
            table.move(db, job_id, "cancelled", finished=self._clock())
            return table.one(db, job_id)

    def retry(self, job_id: int) -> Job:
        """Everything but running → waiting, due at once. One that is done is measured anew, winner or not."""
        with self._database.transaction() as db:
            job = table.in_state(db, job_id, [state for state in STATES if state != "running"], "tried again")
            table.move_anew(db, job_id, job.source, job.forced or job.state == "done")
            return table.one(db, job_id)

    def recover(self) -> int:
        """At the start of the daemon: jobs that ran when it ended wait again; how many there were.

        That counts as no attempt, except where the daemon has ended in the middle of the same job five times in a row.
        """
        with self._database.transaction() as db:
            found = table.rows(db, "SELECT id, kills + 1 AS kills FROM jobs WHERE state = 'running'", ())
            for job_id, kills in found:
                if kills < MOST_KILLS:
                    table.move(db, job_id, "waiting", kills=kills)
                else:
                    message = f"the daemon has ended {kills} times in a row in the middle of it"
                    self._fail(db, table.one(db, job_id), message)
                    totals.add(db, errors=1, crashes=1)
            return len(found)

    def _fail(self, db: sqlite3.Connection, job: Job, message: str) -> None:
        now, attempts = self._clock(), job.attempts + 1
        columns = {"attempts": attempts, "kills": 0, "message": table.storable(message)}
        if attempts >= self.attempts:
            table.move(db, job.id, "quarantined", finished=now, **columns)
        else:
            table.move(db, job.id, "waiting", since=now, delay=delay(job.id, attempts), **columns)

    # ------------------------------------------------------------------------------------------ looking

    def job(self, job_id: int) -> Job:
        """Raises UnknownError."""
        return table.one(self._database, job_id)

    def find(self, mark: tuple[str, str, str]) -> Job | None:
        """The job of a task; None where there is none."""
        return table.find(self._database, mark)

    def jobs(self, states: Collection[State] | None = None, limit: int = 100, before: int | None = None) -> list[Job]:
        """Jobs in some states (None: in any), behind the job of id ``before``.

        Those that wait, if only they are asked for, come in the order in which they will run; else the one whose state
        changed last comes first. Raises UnknownError where there is no job ``before``.
        """
        if before is not None:
            self.job(before)
        if states is not None and set(states) == {"waiting"}:
            return table.upcoming(self._database, limit, before, self._clock())
        return table.latest(self._database, STATES if states is None else states, limit, before)

    def winners(self, limit: int = 100) -> list[Job]:
        """Jobs that are done and have a winner, be it the default, the one that was finished last first."""
        return table.winners(self._database, limit)

    def heat_map(self, job_id: int) -> str:
        """The heat map of a job's timings, HTML; "" where there is none. Raises UnknownError."""
        self.job(job_id)
        return "".join(row[0] for row in self._database.rows("SELECT heat_map FROM jobs WHERE id = ?", (job_id,)))

    def counts(self) -> dict[State, int]:
        """How many jobs are in each state."""
        return table.counts(self._database)

    def waiting(self, device: str) -> int:
        """How many jobs of a device wait, due or not."""
        query = "SELECT count(*) FROM jobs WHERE state = 'waiting' AND device = ?"
        return int(self._database.rows(query, (device,))[0][0])

    def totals(self) -> dict[str, float]:
        """What was done since the queue was begun, under the names of :data:`faops.daemon.queue.totals.NAMES`."""
        return totals.read(self._database)

    # ------------------------------------------------------------------------------------------ upkeep

    def set_paused(self, reason: str | None, until: float | None = None) -> None:
        """Pause, until a time or until this is called again; None as the reason ends a pause."""
        now = self._clock()
        with self._database.transaction() as db:
            seconds = None if until is None else until - now
            pause.store(db, None if reason is None else table.storable(reason), seconds, now)

    def paused(self) -> Pause | None:
        """The pause that is on; None where there is none."""
        return pause.current(self._database, self._clock())

    def prune(self, days: float = 90) -> int:
        """Forget jobs done or cancelled, and submissions settled, more than so many days ago; how many jobs.

        What is quarantined stays: it would crash again.
        """
        oldest = self._clock() - days * DAY
        with self._database.transaction() as db:
            db.execute("DELETE FROM submissions WHERE state != 'waiting' AND created < ?", (oldest,))
            found = db.execute("DELETE FROM jobs WHERE state IN ('done', 'cancelled') AND finished < ?", (oldest,))
            return found.rowcount


def _raise_hits(db: sqlite3.Connection, job: Job, hits: int) -> None:
    """Set the hits of a job, if that is more, and count the difference."""
    table.raise_hits(db, job.id, hits)
    totals.add(db, untuned_calls=max(0, table.counted(hits) - job.hits))
