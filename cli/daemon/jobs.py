"""`faops daemon jobs`: what waits, runs, and is done; or everything about one job."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from ..output import json_option, print_json, print_line, print_pairs, print_table, ratio, seconds
from .reach import client
from .words import Data, counted, outcome, time_of

if TYPE_CHECKING:
    from faops.daemon.client import Client

# As they are listed: what goes on, what is to come, what needs a person, and what is over.
ORDER = ("running", "waiting", "quarantined", "done", "cancelled")


@click.command("jobs", short_help="List the jobs, or show one.")
@click.argument("number", metavar="[JOB]", required=False, type=click.IntRange(min=1))
@click.option("--state", "states", type=click.Choice(ORDER), multiple=True, help="Only these; may be repeated.")
@click.option("--limit", type=click.IntRange(1, 1000), default=20, help="How many of a state at most (default: 20).")
@json_option
def command(number: int | None, states: tuple[str, ...], limit: int, as_json: bool) -> None:
    """List the jobs: what runs, what waits in the order in which it will run, what failed too often and is left alone
    (quarantined), and what is done. With the number JOB, everything about that one.

    \b
    Examples:
      faops daemon jobs
      faops daemon jobs 17
      faops daemon jobs --state quarantined
      faops daemon jobs --state done --limit 100 --json
    """
    daemon = client()
    if number is not None:
        _show_one(daemon.job(number), as_json)
        return
    found = {state: _listed(daemon, state, limit) for state in ORDER if not states or state in states}
    rows = [job for jobs, _ in found.values() for job in jobs]
    if as_json:
        print_json("daemon jobs", jobs=rows, more=[state for state, (_, more) in found.items() if more])
    elif not rows:
        print_line("no jobs" + (f" that are {' or '.join(states)}" if states else ""))
    else:
        print_table(("job", "state", "problem", "device", "calls", "outcome"), [_row(job) for job in rows])
        for state, (jobs, more) in found.items():
            if more:
                print_line(f"more than {len(jobs)} are {state}; --state {state} --limit shows them")


def _listed(daemon: Client, state: str, limit: int) -> tuple[list[Data], bool]:
    """The jobs of one state, and whether there are more."""
    answer = daemon.jobs(states=(state,), limit=min(1000, limit + 1))
    jobs: list[Data] = answer["jobs"]
    return jobs[:limit], len(jobs) > limit or answer.get("next") is not None


def _row(job: Data) -> tuple[object, ...]:
    return job["id"], job["state"], job["problem"], job["device"], _calls(job), outcome(job)


def _calls(job: Data) -> object:
    """Calls that ran untuned, as far as programs have told."""
    return job["hits"] if _ran(job) else "-"


def _ran(job: Data) -> bool:
    """Whether programs ran it; what was submitted counts as one call, which weighs nothing beside those of programs."""
    return bool(job["source"] == "miss" or job["hits"] > 1)


def _show_one(job: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json("daemon jobs", job=job)
        return
    pairs: list[tuple[str, object]] = [
        ("job", job["id"]),
        ("problem", job["problem"]),
        ("key", job["key"]),
        ("device", f"{job['device']}, {job['identity']}"),
        ("state", job["state"] + (f": {job['message']}" if job["message"] else "")),
        ("from", _origin(job)),
        ("failed", counted(job["attempts"], "time", "times")),
        ("created", time_of(job["created"])),
        ("begun", time_of(job["begun"])),
        ("finished", time_of(job["finished"])),
    ]
    if job["state"] == "waiting" and job["not_before"]:
        pairs.append(("not before", time_of(job["not_before"])))
    print_pairs(pairs + _found(job.get("result") or {}))


def _origin(job: Data) -> str:
    came = "submitted" if job["source"] == "submission" else "a program"
    calls = f", {counted(job['hits'], 'call that', 'calls that')} ran untuned" if _ran(job) else ""
    return f"{came}{calls}; a call takes about {seconds(job['call_seconds'])}"


def _found(result: Data) -> list[tuple[str, object]]:
    if not result.get("kernel"):
        return []
    return [
        ("winner", f"{result['kernel']} [{_config(result.get('config'))}] {seconds(result.get('p50'))}"),
        ("default", f"{result.get('default_kernel')} [{_config(result.get('default_config'))}] "
                    f"{seconds(result.get('default_p50'))}"),
        ("speed-up", ratio(result.get("speedup"))),
        ("measurements", f"{result.get('measurements', 0)} in {seconds(result.get('seconds'))}"),
        ("file", result.get("path") or "-"),
    ]  # fmt: skip


def _config(config: Data | None) -> str:
    return ", ".join(f"{name}={value}" for name, value in (config or {}).items())
