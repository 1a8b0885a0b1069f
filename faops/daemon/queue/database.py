"""The queue's file: an SQLite database that one process holds, in which every change is whole or not there at all.

It is in write-ahead mode with exclusive locking, which needs no shared memory and so works on a network home as well,
and every transaction reaches the disk before it is acknowledged.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from faops.daemon.queue.errors import FullError
from faops.errors import DaemonError

APPLICATION = 0x66616F70  # "faop", in the file's header
SCHEMA = 1
LONGEST_LOG = 4 * 2**20  # bytes that the write-ahead log keeps once it has been taken over
BROKEN_SUFFIX = ".broken"

# Of jobs: `weight` is hits × call_seconds; a failed one waits for `delay` seconds from `since` on; `kills` counts the
# ends of the daemon in a row in the middle of it; `turn` grows with every change of any job's state, so that it orders
# them whatever the clock does.
_TABLES = {
    "jobs": """
        CREATE TABLE jobs (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            identity TEXT NOT NULL,
            environment TEXT NOT NULL,
            key TEXT NOT NULL,
            device TEXT NOT NULL,
            threads INTEGER NOT NULL,
            problem TEXT NOT NULL,
            words TEXT NOT NULL,
            call_seconds REAL NOT NULL,
            tuning_seconds REAL NOT NULL,
            source TEXT NOT NULL,
            state TEXT NOT NULL DEFAULT 'waiting',
            hits INTEGER NOT NULL,
            weight REAL NOT NULL,
            forced INTEGER NOT NULL,
            attempts INTEGER NOT NULL DEFAULT 0,
            kills INTEGER NOT NULL DEFAULT 0,
            since REAL NOT NULL DEFAULT 0,
            delay REAL NOT NULL DEFAULT 0,
            created REAL NOT NULL,
            begun REAL,
            finished REAL,
            turn INTEGER NOT NULL,
            message TEXT NOT NULL DEFAULT '',
            result TEXT NOT NULL DEFAULT '{}',
            won INTEGER NOT NULL DEFAULT 0,
            heat_map TEXT NOT NULL DEFAULT '',
            UNIQUE (identity, environment, key)
        )""",
    "submissions": """
        CREATE TABLE submissions (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            request TEXT NOT NULL,
            state TEXT NOT NULL DEFAULT 'waiting',
            created REAL NOT NULL,
            jobs TEXT NOT NULL DEFAULT '[]',
            message TEXT NOT NULL DEFAULT ''
        )""",
    "totals": "CREATE TABLE totals (name TEXT PRIMARY KEY, value NOT NULL)",
    "pause": "CREATE TABLE pause (reason TEXT NOT NULL, since REAL NOT NULL, seconds REAL)",
}

# What is filtered by stands in the first one, too: choosing among thousands of jobs reads no row but the chosen one's.
_INDEXES = (
    "CREATE INDEX jobs_next ON jobs (source DESC, weight DESC, created, id, device, since, delay) "
    "WHERE state = 'waiting'",
    "CREATE INDEX jobs_since ON jobs (since) WHERE state = 'waiting'",
    "CREATE INDEX jobs_state ON jobs (state, device)",
    "CREATE INDEX jobs_turn ON jobs (turn, state)",
    "CREATE INDEX jobs_won ON jobs (turn) WHERE won",
    "CREATE INDEX submissions_state ON submissions (state)",
)


class Database:
    """The open file. ``broken`` is where one that could not be read was moved, None where that was not needed.

    Raises FullError where it cannot be opened, and DaemonError where another process holds it or a newer version of
    faops has written it. Threads may share it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.broken: Path | None = None
        self._lock = threading.RLock()
        with self._explained():
            _create_private(path)
            try:
                self._connection = _open(path)
            except _BrokenError:
                self.broken = _move_aside(path)
                _create_private(path)
                self._connection = _open(path)

    @contextlib.contextmanager
    def transaction(self, synchronous: bool = True) -> Iterator[sqlite3.Connection]:
        """Whatever is done inside is kept together once this ends, or nothing of it if anything raises.

        What is not ``synchronous`` outlives the end of the process too, but not always that of the machine, and does
        not wait for the disk. Raises FullError where it cannot be kept.
        """
        with self._lock, self._explained():
            self._connection.execute(f"PRAGMA synchronous = {'FULL' if synchronous else 'NORMAL'}")
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:  # SQLite has ended it by itself after some errors
                    self._connection.execute("ROLLBACK")
                raise

    def rows(self, query: str, values: Any = ()) -> list[sqlite3.Row]:
        """What a query finds. Raises FullError."""
        with self._lock, self._explained():
            return self._connection.execute(query, values).fetchall()

    def close(self) -> None:
        """Let go of the file."""
        with self._lock, self._explained():
            self._connection.close()

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Errors of the file as faops' own."""
        try:
            yield
        except _BrokenError as error:
            raise FullError(f"the queue {self.path} cannot be read: {error}") from None
        except OSError as error:
            raise FullError(f"the queue {self.path} cannot be opened: {error.strerror or error}") from None
        except sqlite3.OperationalError as error:
            if "locked" in str(error):
                raise DaemonError(f"the queue {self.path} is held by another process") from None
            raise FullError(f"the queue {self.path} cannot be read or written: {error}") from None
        except sqlite3.Error as error:
            raise FullError(f"the queue {self.path} cannot be read or written: {error}") from None


class _BrokenError(Exception):
    """The file is no queue."""


def _create_private(path: Path) -> None:
    """Make an empty file that only its owner reads; one that is there is not even opened, since closing it would give
    away the lock that this process may have on it."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))


def _open(path: Path) -> sqlite3.Connection:
    """The connection to a queue, which is made if the file is empty. Raises _BrokenError for what is none."""
    # Without a time-out: whoever finds the file locked is told so at once.
    connection = sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False)
    try:
        connection.row_factory = sqlite3.Row
        connection.text_factory = _text
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        _inspect(connection, path)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(f"PRAGMA journal_size_limit = {LONGEST_LOG}")
        if not _tables(connection):
            _create_tables(connection)
    except BaseException as error:
        connection.close()
        # Not a subclass of it: no database, or a malformed one. SQLite's message may quote what is no text.
        if type(error) is sqlite3.DatabaseError or isinstance(error, UnicodeDecodeError):
            raise _BrokenError(str(error)) from None
        raise
    return connection


def _inspect(connection: sqlite3.Connection, path: Path) -> None:
    """Raises _BrokenError for a file that is no sound queue, and DaemonError for one of a newer version."""
    tables = _tables(connection)
    if not tables:
        return
    if _pragma(connection, "application_id") != APPLICATION:
        raise _BrokenError("it is no queue of faops")
    version = _pragma(connection, "user_version")
    if version > SCHEMA:
        raise DaemonError(
            f"the queue {path} was written by a newer version of faops (schema {version}, this one knows {SCHEMA}): "
            "upgrade faops, or move the file away"
        )
    if not tables >= set(_TABLES):
        raise _BrokenError("tables are missing")
    if (verdict := _pragma(connection, "quick_check(1)")) != "ok":
        raise _BrokenError(str(verdict))


def _create_tables(connection: sqlite3.Connection) -> None:
    connection.execute("BEGIN IMMEDIATE")
    for statement in (*_TABLES.values(), *_INDEXES):
        connection.execute(statement)
    connection.execute(f"PRAGMA application_id = {APPLICATION}")
    connection.execute(f"PRAGMA user_version = {SCHEMA}")
    connection.execute("COMMIT")


def _tables(connection: sqlite3.Connection) -> set[str]:
    return {row["name"] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}


def _text(content: bytes) -> str:
    """What a column says, also where the disk has changed it."""
    return content.decode("utf-8", "replace")


def _pragma(connection: sqlite3.Connection, name: str) -> Any:
    return connection.execute(f"PRAGMA {name}").fetchone()[0]


def _move_aside(path: Path) -> Path:
    """Rename a file; an older one under that name is replaced. Its write-ahead log, if any, SQLite removes with the
    next file. Raises OSError."""
    target = path.with_name(path.name + BROKEN_SUFFIX)
    os.replace(path, target)
    return target
