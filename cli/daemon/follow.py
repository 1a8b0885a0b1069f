"""Following jobs to their end: `faops daemon submit --wait`."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

from ..output import is_terminal, print_line, print_table, ratio, seconds
from .words import ENDED, Data, obstacle, outcome, progress, sentence

if TYPE_CHECKING:
    from faops.daemon.client import Client

POLL_SECONDS = 1.0
JOBS_A_SECOND = 50  # that are asked for at most

Show = Callable[[str], None]


def follow(daemon: Client, numbers: Sequence[int], quiet: bool) -> list[dict[str, Any]]:
    """Wait until every one of the jobs is over; gives them as they are then. Tells of each as it ends, and why none is
    worked on where that is so; ``quiet`` sends this to standard error.

    Raises DaemonError when the daemon ends before.
    """
    from faops.errors import DaemonError, NotRunningError

    over: dict[int, dict[str, Any]] = {}
    teller = _Teller(len(numbers), quiet)
    with _live(quiet) as show:
        while len(over) < len(numbers):
            open_ones = [number for number in numbers if number not in over]
            try:
                for job in map(daemon.job, open_ones):
                    if job["state"] in ENDED:
                        over[job["id"]] = job
                        teller.ended(job, len(over))
                if len(over) < len(numbers):
                    show(teller.meanwhile(daemon.status(), open_ones))
            except NotRunningError:
                left = f"{len(numbers) - len(over)} of {len(numbers)} jobs were not done"
                raise DaemonError(f"the daemon has ended; {left}, and stay in its queue") from None
            if len(over) < len(numbers):
                time.sleep(max(POLL_SECONDS, len(open_ones) / JOBS_A_SECOND))
    return [over[number] for number in numbers]


class _Teller:
    """A line for each job that is over, and one whenever what keeps the others waiting changes."""

    def __init__(self, total: int, quiet: bool) -> None:
        self.total, self.quiet = total, quiet
        self.told = ""

    def ended(self, job: Data, count: int) -> None:
        found = outcome(job) if job["state"] == "done" else f"{job['state']}: {job['message']}"
        self._line(f"[{count}/{self.total}] {job['problem']}: {found}")

    def meanwhile(self, status: Data, open_ones: Sequence[int]) -> str:
        """How far the running one is, for a display; tells by itself what stands in the way."""
        running = [each for each in status["running"] if each["job"]["id"] in open_ones]
        if running:
            self.told = ""
            return f"{running[0]['job']['problem']}: {progress(running[0])}"
        # A gate counts the seconds of idleness in its reason: what changes alone is no news.
        reason = sentence(status) if status["state"] != "waiting" else obstacle(status)
        kind = "".join(letter for letter in reason if not letter.isdigit())
        if kind != self.told and status["state"] in ("paused", "waiting", "stopping"):
            self.told = kind
            self._line(f"waiting: {reason}")
        return reason

    def _line(self, text: str) -> None:
        click.echo(text, err=self.quiet)


@contextlib.contextmanager
def _live(quiet: bool) -> Iterator[Show]:
    """Gives a function that shows a line in place of the one before, on a terminal; elsewhere it does nothing."""
    if quiet or not is_terminal():
        yield lambda text: None
        return
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    with Live(console=Console(highlight=False), transient=True, refresh_per_second=4) as live:
        yield lambda text: live.update(Text(text, overflow="ellipsis", no_wrap=True))


def tell_results(jobs: Sequence[Data]) -> None:
    """A table of what was found."""
    if not jobs:
        return
    print_line()
    print_table(("problem", "default", "winner", "speed-up"), [_row(job) for job in jobs])


def _row(job: Data) -> tuple[str, ...]:
    result = job.get("result") or {}
    if job["state"] != "done" or not result.get("kernel"):
        return job["problem"], "-", job["state"] if job["state"] != "done" else outcome(job), "-"
    default = f"{result.get('default_kernel')} {seconds(result.get('default_p50'))}"
    if result.get("is_default"):
        return job["problem"], default, "the default", "-"
    return job["problem"], default, f"{result['kernel']} {seconds(result.get('p50'))}", ratio(result.get("speedup"))
