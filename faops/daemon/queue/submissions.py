"""The table of submissions: requests that wait to be made into jobs, and what became of them."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence

from faops.daemon.jobs import Submission, SubmissionState
from faops.daemon.queue import table
from faops.daemon.queue.database import Database
from faops.daemon.queue.errors import BacklogError, TransitionError, UnknownError

MOST_WAITING = 1000
_COLUMNS = "id, request, state, created, jobs, message"


def insert(db: sqlite3.Connection, request: str, now: float) -> Submission:
    """A new one. Raises BacklogError."""
    waiting = db.execute("SELECT count(*) FROM submissions WHERE state = 'waiting'").fetchone()[0]
    if waiting >= MOST_WAITING:
        raise BacklogError(f"{waiting} submissions wait already; try again later")
    cursor = db.execute("INSERT INTO submissions (request, created) VALUES (?, ?)", (request, now))
    assert cursor.lastrowid is not None
    return one(db, cursor.lastrowid)


def one(db: sqlite3.Connection | Database, submission_id: int) -> Submission:
    """Raises UnknownError."""
    possible = 0 < submission_id <= table.LARGEST_ID
    query = f"SELECT {_COLUMNS} FROM submissions WHERE id = ?"
    found = table.rows(db, query, (submission_id,)) if possible else []
    if not found:
        raise UnknownError(f"there is no submission {submission_id}")
    return _submission_of(found[0])


def waiting(db: sqlite3.Connection, submission_id: int) -> Submission:
    """One that must wait. Raises UnknownError and TransitionError."""
    submission = one(db, submission_id)
    if submission.state != "waiting":
        raise TransitionError(f"submission {submission_id} is {submission.state}, it no longer waits")
    return submission


def newest(db: Database, limit: int) -> list[Submission]:
    """The newest first."""
    query = f"SELECT {_COLUMNS} FROM submissions ORDER BY id DESC LIMIT ?"
    return [_submission_of(row) for row in db.rows(query, (max(0, limit),))]


def oldest_waiting(db: Database) -> Submission | None:
    """The one to be made into jobs next."""
    found = db.rows(f"SELECT {_COLUMNS} FROM submissions WHERE state = 'waiting' ORDER BY id LIMIT 1")
    return _submission_of(found[0]) if found else None


def settle(
    db: sqlite3.Connection, submission_id: int, state: SubmissionState, jobs: Sequence[int], message: str
) -> Submission:
    """Write down what became of one."""
    values = (state, json.dumps(jobs), table.storable(message), submission_id)
    db.execute("UPDATE submissions SET state = ?, jobs = ?, message = ? WHERE id = ?", values)
    return one(db, submission_id)


def summary(tasks: int, warm: int, refused: Sequence[tuple[str, str]]) -> str:
    """What came of a submission's problems, as far as they became no jobs."""
    problems = tasks + len(refused)
    parts = ["there is nothing to tune in it"] if not problems else []
    if warm:
        parts.append(f"{warm} of {problems} problems have a winner already")
    if refused:
        reasons = "; ".join(f"{words}: {why}" for words, why in refused)
        parts.append(f"{len(refused)} of {problems} problems cannot be tuned: {reasons}")
    return "; ".join(parts)


def _submission_of(row: sqlite3.Row) -> Submission:
    return Submission(
        id=row["id"],
        request=table.parsed(row["request"], {}),
        state=row["state"],
        created=row["created"],
        jobs=tuple(table.parsed(row["jobs"], [])),
        message=row["message"],
    )
