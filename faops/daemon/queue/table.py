"""The table of jobs: how a job is a row of it, and the few statements that read and change one."""

from __future__ import annotations

import json
import math
import sqlite3
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from faops.daemon.jobs import STATES, Job, Source, State, Task
from faops.daemon.queue.database import Database
from faops.daemon.queue.errors import TransitionError, UnknownError

MOST = 2**53  # hits counted; JSON's readers know no larger whole numbers
LONGEST_MESSAGE = 4000  # characters
LARGEST_ID = 2**63 - 1  # that SQLite knows

_COLUMNS = (
    "id, identity, environment, key, device, threads, problem, words, call_seconds, tuning_seconds, source, state, "
    "hits, forced, attempts, kills, since, delay, created, begun, finished, message, result"  # all but the heat map
)
_TURN = "(SELECT coalesce(max(turn), 0) + 1 FROM jobs)"

# Running order of what is due: submissions first ("submission" > "miss"), then the heaviest, then the oldest.
_NEXT = "source DESC, weight DESC, created, id"
# The same for all that wait, each part ascending, so that rows can be compared by it: what is due comes first, what is
# put off follows by the time that it still has to wait.
_UPCOMING = "max(since + delay - :now, 0), source = 'miss', -weight, created, id"


# ---------------------------------------------------------------------------------------------- changing


def insert(db: sqlite3.Connection, task: Task, source: Source, hits: int, forced: bool, now: float) -> int:
    """Put a new job into the queue, which waits; its id."""
    columns, hits = _task_columns(task), counted(hits)
    weight = hits * columns["call_seconds"]
    values = {**columns, "source": source, "hits": hits, "weight": weight, "forced": forced, "created": now}
    names = ", ".join(values)
    marks = ", ".join(f":{name}" for name in values)
    cursor = db.execute(f"INSERT INTO jobs ({names}, turn) VALUES ({marks}, {_TURN})", values)
    assert cursor.lastrowid is not None
    return cursor.lastrowid


def move(db: sqlite3.Connection, job_id: int, state: State, **columns: Any) -> None:
    """Bring a job into another state, or into the same one anew, and set further columns."""
    columns["state"] = state
    assigned = ", ".join(f"{name} = :{name}" for name in columns)
    db.execute(f"UPDATE jobs SET {assigned}, turn = {_TURN} WHERE id = :id", {**columns, "id": job_id})


def move_anew(db: sqlite3.Connection, job_id: int, source: Source, forced: bool) -> None:
    """Let a job wait as if it were new; its hits are kept."""
    failures = {"attempts": 0, "kills": 0, "since": 0, "delay": 0}
    outcome = {"begun": None, "finished": None, "message": "", "result": "{}", "heat_map": "", "won": False}
    move(db, job_id, "waiting", source=source, forced=forced, **failures, **outcome)


def renew(db: sqlite3.Connection, job_id: int, task: Task) -> None:
    """Replace the task of a job by an equal one that knows the present device, shape and estimates."""
    columns = _task_columns(task)
    assigned = ", ".join(f"{name} = :{name}" for name in columns)
    db.execute(f"UPDATE jobs SET {assigned}, weight = hits * :call_seconds WHERE id = :id", {**columns, "id": job_id})


def raise_hits(db: sqlite3.Connection, job_id: int, hits: int) -> None:
    """Set a job's hits to ``hits``, if that is more."""
    values = {"hits": counted(hits), "id": job_id}
    db.execute("UPDATE jobs SET hits = :hits, weight = :hits * call_seconds WHERE id = :id AND hits < :hits", values)


def counted(hits: int) -> int:
    """Hits as they are stored."""
    return max(0, min(hits, MOST))


def _task_columns(task: Task) -> dict[str, Any]:
    return {
        "identity": task.identity,
        "environment": task.environment,
        "key": task.key,
        "device": task.device,
        "threads": task.threads,
        "problem": json.dumps(task.problem),
        "words": storable(task.words),
        "call_seconds": _seconds(task.call_seconds),
        "tuning_seconds": _seconds(task.tuning_seconds),
    }


def _seconds(estimate: float) -> float:
    """An estimate that can be ordered by: SQLite keeps no NaN, and what is infinite would come first for ever."""
    return estimate if math.isfinite(estimate) and estimate > 0 else 0.0


def storable(text: str, longest: int | None = LONGEST_MESSAGE) -> str:
    """Text for a person, cut, and without what UTF-8 cannot say (bytes of a program's output that were no text)."""
    if longest is not None and len(text) > longest:
        text = text[: longest - 1] + "…"
    return text.encode("utf-8", "replace").decode("utf-8")


# ---------------------------------------------------------------------------------------------- reading


def in_state(db: sqlite3.Connection, job_id: int, states: Sequence[State], done: str) -> Job:
    """A job that must be in one of ``states`` to be ``done`` (a participle). Raises UnknownError, TransitionError."""
    job = one(db, job_id)
    if job.state not in states:
        raise TransitionError(f"job {job_id} is {job.state}; only one that is {' or '.join(states)} can be {done}")
    return job


def one(db: sqlite3.Connection | Database, job_id: int) -> Job:
    """A job. Raises UnknownError."""
    found = rows(db, f"SELECT {_COLUMNS} FROM jobs WHERE id = ?", (job_id,)) if 0 < job_id <= LARGEST_ID else []
    if not found:
        raise UnknownError(f"there is no job {job_id}")
    return job_of(found[0])


def find(db: sqlite3.Connection | Database, mark: tuple[str, str, str]) -> Job | None:
    """The job of a task; None where there is none."""
    query = f"SELECT {_COLUMNS} FROM jobs WHERE identity = ? AND environment = ? AND key = ?"
    try:
        found = rows(db, query, mark)
    except UnicodeEncodeError:  # names of directories that are no text
        return None
    return job_of(found[0]) if found else None


def first_due(db: Database, devices: Collection[str] | None, now: float) -> Job | None:
    """The first in running order that is due, of all devices or of some."""
    if devices is not None and not devices:
        return None
    query = f"SELECT {_COLUMNS} FROM jobs INDEXED BY jobs_next WHERE state = 'waiting' AND since + delay <= ?"
    values: list[Any] = [now]
    if devices is not None:
        query += f" AND device IN ({', '.join('?' * len(devices))})"
        values += devices
    found = db.rows(f"{query} ORDER BY {_NEXT} LIMIT 1", values)
    return job_of(found[0]) if found else None


def latest_wait(db: Database) -> float:
    """When the back-off began that began last; 0 where there is none."""
    found = db.rows("SELECT max(since) FROM jobs INDEXED BY jobs_since WHERE state = 'waiting'")
    return float(found[0][0] or 0.0)


def upcoming(db: Database, limit: int, before: int | None, now: float) -> list[Job]:
    """Those that wait, in the order in which they will run, behind the job ``before``."""
    behind = f"AND ({_UPCOMING}) > (SELECT {_UPCOMING} FROM jobs WHERE id = :before)" if before is not None else ""
    chosen = (
        f"SELECT id FROM jobs INDEXED BY jobs_next WHERE state = 'waiting' {behind} ORDER BY {_UPCOMING} LIMIT :limit"
    )
    query = f"SELECT {_COLUMNS} FROM jobs WHERE id IN ({chosen}) ORDER BY {_UPCOMING}"
    return [job_of(row) for row in db.rows(query, {"now": now, "before": before, "limit": max(0, limit)})]


def latest(db: Database, states: Collection[State], limit: int, before: int | None) -> list[Job]:
    """Those in some states, the one whose state changed last first, behind the job ``before``."""
    if not states:
        return []
    query = f"SELECT {_COLUMNS} FROM jobs INDEXED BY jobs_turn WHERE state IN ({', '.join('?' * len(states))})"
    values: list[Any] = list(states)
    if before is not None:
        query += " AND turn < (SELECT turn FROM jobs WHERE id = ?)"
        values.append(before)
    found = db.rows(f"{query} ORDER BY turn DESC LIMIT ?", [*values, max(0, limit)])
    return [job_of(row) for row in found]


def winners(db: Database, limit: int) -> list[Job]:
    """Those that have a winner, the newest first."""
    query = f"SELECT {_COLUMNS} FROM jobs INDEXED BY jobs_won WHERE won ORDER BY turn DESC LIMIT ?"
    return [job_of(row) for row in db.rows(query, (max(0, limit),))]


def counts(db: Database) -> dict[State, int]:
    """How many jobs are in each state."""
    found = {row["state"]: row["jobs"] for row in db.rows("SELECT state, count(*) AS jobs FROM jobs GROUP BY state")}
    return {state: found.get(state, 0) for state in STATES}


def rows(db: sqlite3.Connection | Database, query: str, values: Sequence[Any] | Mapping[str, Any]) -> list[sqlite3.Row]:
    """What a query finds, inside a transaction or outside."""
    return db.rows(query, values) if isinstance(db, Database) else db.execute(query, values).fetchall()


def job_of(row: sqlite3.Row) -> Job:
    """The job in a row."""
    task = Task(
        identity=row["identity"],
        environment=row["environment"],
        device=row["device"],
        threads=row["threads"],
        key=row["key"],
        problem=parsed(row["problem"], {}),
        words=row["words"],
        call_seconds=row["call_seconds"],
        tuning_seconds=row["tuning_seconds"],
    )
    return Job(
        id=row["id"],
        task=task,
        source=row["source"],
        state=row["state"],
        hits=row["hits"],
        forced=bool(row["forced"]),
        attempts=row["attempts"],
        not_before=row["since"] + row["delay"],
        created=row["created"],
        begun=row["begun"],
        finished=row["finished"],
        message=row["message"],
        result=parsed(row["result"], {}),
    )


def parsed(text: str, otherwise: Any) -> Any:
    """What a text says in JSON; ``otherwise`` where the disk has changed it: one row must not stop all others."""
    try:
        return json.loads(text)
    except ValueError:
        return otherwise
