"""`faops daemon status`: what the daemon does, in a few lines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from ..output import json_option, print_json, print_line, print_pairs, print_table
from .reach import client
from .words import Data, closed_gates, counted, length, mebibytes, progress, sentence, time_of

if TYPE_CHECKING:
    from faops.daemon.client import Client

STATES = ("waiting", "running", "done", "quarantined", "cancelled")


@click.command("status", short_help="Say what the daemon does.")
@json_option
def command(as_json: bool) -> None:
    """Say what the daemon does: its state, jobs and devices, why a device is not tuned on now, and how far the job at
    work is. Exits with 1 when no daemon runs.

    \b
    Examples:
      faops daemon status
      faops daemon status --json
    """
    daemon = client()
    status = daemon.status()
    if as_json:
        print_json("daemon status", **status)
    else:
        _print(status, _upcoming(daemon, status))


def _upcoming(daemon: Client, status: Data) -> Data | None:
    """The job that comes next, where it is this job that says why none is worked on."""
    if status["state"] != "waiting" or closed_gates(status):
        return None
    jobs: list[Data] = daemon.jobs(states=("waiting",), limit=1)["jobs"]
    return jobs[0] if jobs else None


def _print(status: Data, upcoming: Data | None) -> None:
    print_pairs(_pairs(status, upcoming))
    if status["devices"]:
        print_line()
        print_table(("device", "name", "gate", "why", "waiting", "child"), [_row(each) for each in status["devices"]])
    for running in status["running"]:
        job = running["job"]
        print_line()
        print_line(f"job {job['id']} on {job['device']}: {job['problem']}")
        print_line(f"  {progress(running)}")


def _pairs(status: Data, upcoming: Data | None) -> list[tuple[str, object]]:
    since = f"{time_of(status['started'])} ({length(status['uptime_seconds'])})"
    pairs: list[tuple[str, object]] = [
        ("state", sentence(status, upcoming)),
        ("since", since),
        ("process", f"{status['pid']}, {mebibytes(status['memory_bytes'])}, faops {status['version']}"),
        ("jobs", _jobs(status["jobs"])),
        ("so far", _totals(status["totals"])),
    ]
    if status.get("http"):
        pairs.append(("page", f"{status['http']} (`faops daemon open`)"))
    return pairs


def _jobs(counts: Data) -> str:
    listed = [f"{counts[state]} {state}" for state in STATES if counts.get(state)]
    return ", ".join(listed) or "none"


def _totals(totals: Data) -> str:
    tuned = counted(totals["tuned"], "problem", "problems")
    words = f"{tuned} tuned in {length(totals['seconds_tuning'])}, {totals['won']} faster than the default"
    return words + (f", {counted(totals['errors'], 'error', 'errors')}" if totals["errors"] else "")


def _row(device: dict[str, Any]) -> tuple[object, ...]:
    gate, worker = device["gate"], device.get("worker")
    child = f"{worker['pid']}, {mebibytes(worker.get('memory_bytes'))}" if worker else "-"
    state = "open" if gate["open"] else "closed"
    return device["device"], device["name"], state, gate["reason"] or "-", device["waiting"], child
