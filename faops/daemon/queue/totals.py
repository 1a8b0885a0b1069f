"""What was done so far, counted in the same transactions that do it, so that it outlives a restart."""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Mapping
from typing import Any

from faops.daemon.queue.database import Database

# saved_seconds: what one call of each winner takes less than by the default, added up.
NAMES = (
    "tuned",
    "won",
    "seconds_tuning",
    "measurements",
    "rejected_samples",
    "errors",
    "crashes",
    "misses",
    "untuned_calls",
    "saved_seconds",
)


def add(db: sqlite3.Connection, **increments: float) -> None:
    """Add to some of the totals."""
    for name, increment in increments.items():
        if increment:
            db.execute(
                "INSERT INTO totals VALUES (:name, :more) ON CONFLICT (name) DO UPDATE SET value = value + :more",
                {"name": name, "more": increment},
            )


def read(database: Database) -> dict[str, float]:
    """All totals."""
    found = {row["name"]: row["value"] for row in database.rows("SELECT name, value FROM totals")}
    return {name: found.get(name, 0) for name in NAMES}


def spent(result: Mapping[str, Any]) -> dict[str, float]:
    """What it took to find a result."""
    return {
        "seconds_tuning": _number(result, "seconds"),
        "measurements": _number(result, "measurements"),
        "rejected_samples": _number(result, "rejected"),
    }


def gained(result: Mapping[str, Any]) -> dict[str, float]:
    """What a result is worth; one that was known before is worth nothing more."""
    if result.get("status") != "tuned":
        return {}
    won = not result.get("is_default", True)
    saved = _number(result, "default_p50") - _number(result, "p50")
    return {"tuned": 1, "won": int(won), "saved_seconds": max(0.0, saved) if won else 0}


def _number(result: Mapping[str, Any], name: str) -> float:
    """A number of a result; 0 where there is none, and not NaN, which SQLite does not keep."""
    value = result.get(name)
    return value if isinstance(value, (int, float)) and math.isfinite(value) and value > 0 else 0
