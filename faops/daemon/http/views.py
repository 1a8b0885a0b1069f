"""What the API shows of jobs and submissions: their JSON."""

from __future__ import annotations

import json
import math
from datetime import datetime, timezone
from typing import Any

from faops.daemon.jobs import Job, Submission

HAS_HEAT_MAP = "has_heat_map"  # in the queue a part of the result


def job(found: Job) -> dict[str, Any]:
    """A job, as the schema Job says."""
    task = found.task
    return {
        "id": found.id,
        "device": task.device,
        "identity": task.identity,
        "key": task.key,
        "problem": task.words,
        "shape": task.problem,
        "source": found.source,
        "state": found.state,
        "hits": found.hits,
        "priority": found.weight,
        "forced": found.forced,
        "attempts": found.attempts,
        "not_before": time(found.not_before or None),
        "created": time(found.created),
        "begun": time(found.begun),
        "finished": time(found.finished),
        "message": found.message,
        "call_seconds": task.call_seconds,
        "tuning_seconds": task.tuning_seconds,
        "has_heat_map": bool(found.result.get(HAS_HEAT_MAP)),
        "result": {name: value for name, value in found.result.items() if name != HAS_HEAT_MAP} or None,
    }


def submission(found: Submission) -> dict[str, Any]:
    """A submission, as the schema Submission says."""
    return {
        "id": found.id,
        "state": found.state,
        "message": found.message,
        "jobs": list(found.jobs),
        "created": time(found.created),
    }


def time(seconds: float | None) -> str | None:
    """Seconds since the epoch as ISO 8601 in UTC; None where that is no time of a calendar."""
    if seconds is None:
        return None
    try:
        moment = datetime.fromtimestamp(seconds, timezone.utc)
    except (ValueError, OverflowError, OSError):
        return None
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def rendered(value: object) -> bytes:
    """JSON in ASCII. Numbers that JSON has not become null."""
    try:
        text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    except ValueError:
        text = json.dumps(_finite(value), allow_nan=False, separators=(",", ":"))
    return text.encode("ascii")


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
