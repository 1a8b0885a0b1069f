"""`faops daemon retry`: jobs that are to be done once more."""

from __future__ import annotations

import click

from ..output import json_option, print_json, print_line
from .reach import client


@click.command("retry", short_help="Let jobs wait again that failed or were cancelled.")
@click.argument("numbers", metavar="JOB...", nargs=-1, required=True, type=click.IntRange(min=1))
@json_option
def command(numbers: tuple[int, ...], as_json: bool) -> None:
    """Let jobs with these numbers wait again: those that failed too often and are left alone (quarantined), that were
    cancelled, or that wait for a while after a failure.

    \b
    Examples:
      faops daemon retry 17
      faops daemon jobs --state quarantined
    """
    daemon = client()
    jobs = [daemon.retry(number) for number in numbers]
    if as_json:
        print_json("daemon retry", jobs=jobs)
        return
    for job in jobs:
        print_line(f"job {job['id']} waits: {job['problem']}")
