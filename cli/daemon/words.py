"""What the commands of `faops daemon` say in the same words; all of it from the JSON that the daemon answers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from ..output import ratio, seconds
from ..progress import clock

Data = Mapping[str, Any]

ENDED = ("done", "quarantined", "cancelled")  # states of a job that nothing more happens to by itself


def sentence(status: Data, upcoming: Data | None = None) -> str:
    """What the daemon does, in a sentence without its full stop; ``upcoming`` is the job that comes next, if it is
    known."""
    state, jobs = status["state"], status["jobs"]
    waiting = jobs.get("waiting", 0)
    if state == "tuning":
        return f"tuning; {problems(waiting)} more to come" if waiting else "tuning the last problem"
    if state == "paused":
        return _paused(status.get("paused") or {})
    if state == "waiting":
        return f"waiting with {problems(waiting)}: {obstacle(status, upcoming)}"
    return {"idle": "idle: there is nothing to tune", "stopping": "stopping"}.get(state, str(state))


def _paused(pause: Data) -> str:
    until = f" until {time_of(pause['until'])}" if pause.get("until") else ""
    reason = f": {pause['reason']}" if pause.get("reason") else ""
    return f"paused{until}{reason}; `faops daemon resume` goes on"


def obstacle(status: Data, upcoming: Data | None = None) -> str:
    """Why no job is worked on."""
    if reasons := closed_gates(status):
        return "; ".join(reasons)
    if not status["devices"]:
        return "its devices are not known yet"
    later = upcoming is not None and upcoming["not_before"]
    return f"job {upcoming['id']} is tried again at {time_of(later)}" if upcoming and later else "about to begin"


def closed_gates(status: Data) -> list[str]:
    """Why devices are not tuned on: those with jobs, or else all."""
    closed = [device for device in status["devices"] if not device["gate"]["open"]]
    wanted = [device for device in closed if device["waiting"]]
    if not wanted and any(device["waiting"] for device in status["devices"]):
        return []
    return list(dict.fromkeys(device["gate"]["reason"] for device in wanted or closed))


def problems(count: int) -> str:
    return counted(count, "problem", "problems")


def counted(count: int, one: str, many: str) -> str:
    from faops import quantities

    return quantities.counted(count, one, many)


def outcome(job: Data) -> str:
    """What became of a job, or what is to become of it."""
    if job["state"] == "done" and (found := _found(job.get("result") or {})):
        return found
    return _outlook(job) if job["state"] == "waiting" else str(job["message"])


def _found(result: Data) -> str:
    """What tuning found."""
    if result.get("status") not in ("tuned", "warm"):
        return str(result.get("message", ""))
    found = f"{ratio(result.get('speedup'))} by {result.get('kernel')}"
    if result.get("is_default"):
        found = "nothing faster than the default"
    return found + (", tuned before" if result["status"] == "warm" else "")


def _outlook(job: Data) -> str:
    about = f"takes about {seconds(job['tuning_seconds'])}"
    if not job["attempts"]:
        return about
    again = f", again at {time_of(job['not_before'])}" if job["not_before"] else ""
    return f"failed {counted(job['attempts'], 'time', 'times')}{again}: {job['message']}"


def progress(running: Data) -> str:
    """How far the job at work is."""
    if running["yielding"]:
        return "stands still while other programs work"
    planned = running.get("planned")
    words = [f"{running['done']} of {planned} timings" if planned else str(running["doing"])]
    if running.get("best_seconds") is not None:
        words.append(f"best {seconds(running['best_seconds'])}")
    words.append(f"{clock(running['elapsed_seconds'])} gone")
    if running.get("remaining_seconds") is not None:
        words.append(f"about {clock(running['remaining_seconds'])} left")
    return ", ".join(words)


def time_of(text: str | None) -> str:
    """A moment of the API, ISO 8601 in UTC, as local time; "-" for none."""
    if not text:
        return "-"
    try:
        moment = datetime.fromisoformat(text.replace("Z", "+00:00")).astimezone()
    except (ValueError, OverflowError, OSError):
        return text
    return moment.strftime("%Y-%m-%d %H:%M:%S")


def length(duration: float) -> str:
    """Seconds in the two largest units that they fill, such as 2 h 5 min."""
    if not math.isfinite(duration):
        return "-"
    left, words = int(duration), []
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min"), (1, "s")):
        count, left = divmod(left, size)
        if count:
            words.append(f"{count} {unit}")
    return " ".join(words[:2]) or "0 s"


def mebibytes(size: float | None) -> str:
    return "-" if size is None else f"{size / 2**20:.0f} MiB"
