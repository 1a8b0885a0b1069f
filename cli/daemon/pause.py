"""`faops daemon pause`: no tuning for a while."""

from __future__ import annotations

import click

from ..durations import parse_duration
from ..output import json_option, print_json, print_line
from .reach import client
from .words import sentence

LONGEST_SECONDS = 366 * 86400.0


@click.command("pause", short_help="Tune nothing for a while.")
@click.option("--for", "duration", callback=parse_duration, metavar="TIME", help="Go on after 60s, 30m, 2h...")
@click.option("--reason", metavar="TEXT", default="", help="What the status says of it.")
@json_option
def command(duration: float | None, reason: str, as_json: bool) -> None:
    """Tune nothing until `faops daemon resume`, or for some time. What is being measured stands still; jobs are still
    taken in. The pause outlives a restart of the daemon.

    \b
    Examples:
      faops daemon pause
      faops daemon pause --for 30m --reason "a benchmark runs"
    """
    if duration is not None and duration > LONGEST_SECONDS:
        raise click.UsageError("--for takes a year at most; without it the pause has no end")
    status = client().pause(reason=reason, seconds=duration)
    if as_json:
        print_json("daemon pause", state=status["state"], paused=status["paused"])
    else:
        print_line(sentence(status))
