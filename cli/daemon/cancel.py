"""`faops daemon cancel`: jobs that are not to be done."""

from __future__ import annotations

import click

from ..output import json_option, print_json, print_line
from .reach import client


@click.command("cancel", short_help="Cancel jobs.")
@click.argument("numbers", metavar="JOB...", nargs=-1, required=True, type=click.IntRange(min=1))
@json_option
def command(numbers: tuple[int, ...], as_json: bool) -> None:
    """Cancel the jobs with these numbers; one that runs is ended. Programs that run such a problem untuned do not bring
    it back, `faops daemon retry` does.

    \b
    Examples:
      faops daemon cancel 17
      faops daemon cancel 17 18 19
    """
    daemon = client()
    jobs = [daemon.cancel(number) for number in numbers]
    if as_json:
        print_json("daemon cancel", jobs=jobs)
        return
    for job in jobs:
        print_line(f"job {job['id']} is cancelled: {job['problem']}")
