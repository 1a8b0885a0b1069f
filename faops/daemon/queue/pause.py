"""The pause that somebody has ordered; it outlives a restart."""

from __future__ import annotations

import contextlib
import sqlite3
from typing import NamedTuple

from faops.daemon.queue.database import Database
from faops.daemon.queue.errors import FullError


class Pause(NamedTuple):
    """A pause, in words and with its end in seconds since the epoch; None is until it is lifted."""

    reason: str
    until: float | None


def store(db: sqlite3.Connection, reason: str | None, seconds: float | None, now: float) -> None:
    """Begin a pause in place of any other; None as its reason ends it."""
    db.execute("DELETE FROM pause")
    if reason is not None:
        db.execute("INSERT INTO pause VALUES (?, ?, ?)", (reason, now, seconds))


def current(database: Database, now: float) -> Pause | None:
    """The pause as it is now.

    Where the clock was set back it begins anew, so that it lasts no longer than it was meant to from now on. One that
    is over is forgotten, so that such a clock does not bring it back.
    """
    found = database.rows("SELECT reason, since, seconds FROM pause")
    if not found:
        return None
    reason, since, seconds = found[0]
    if seconds is None:
        return Pause(reason, None)
    over = now >= since + seconds
    if over or now < since:
        with contextlib.suppress(FullError), database.transaction() as db:  # if not now, then at the next look
            store(db, None if over else reason, seconds, now)
        since = now
    return None if over else Pause(reason, since + seconds)
