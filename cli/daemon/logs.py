"""`faops daemon logs`: what the daemon wrote down."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from ..output import json_option, print_json
from .reach import require

LINES = 50


@click.command("logs", short_help="Print the daemon's log.")
@click.option("-n", "--lines", "count", type=click.IntRange(min=0), default=LINES, help=f"How many ({LINES}).")
@click.option("-f", "--follow", is_flag=True, help="Go on with what is written from now on, until Ctrl-C.")
@json_option
def command(count: int, follow: bool, as_json: bool) -> None:
    """Print the last lines of the daemon's log, whether it runs or not. With --follow and --json each line is a JSON
    object of its own.

    \b
    Examples:
      faops daemon logs
      faops daemon logs -n 200
      faops daemon logs -f
      faops daemon logs -f --json | jq -r .event
    """
    require()
    from faops.daemon import log, paths

    path = paths.log_path(create=False)
    with _readable(path):
        if follow:
            _echo(log.follow(path, count), as_json)
            return
        lines = log.tail(path, count)
    if as_json:
        print_json("daemon logs", path=str(path), lines=[_parsed(line) for line in lines])
    elif lines or path.exists():
        _echo(iter(lines), as_json=False)
    else:
        click.echo(f"no log yet: {path} is not there; `faops daemon start` starts the daemon", err=True)


def _echo(lines: Iterator[str], as_json: bool) -> None:
    from faops.daemon.log import render

    for line in lines:
        click.echo(line if as_json else render(line))


def _parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:  # half of a line, or not ours
        return {"message": line}


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    from faops.errors import DaemonError

    try:
        yield
    except OSError as error:
        raise DaemonError(f"{path} cannot be read: {error.strerror or error}") from None
