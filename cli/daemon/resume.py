"""`faops daemon resume`: the end of a pause."""

from __future__ import annotations

import click

from ..output import json_option, print_json, print_line
from .reach import client
from .words import sentence


@click.command("resume", short_help="End a pause.")
@json_option
def command(as_json: bool) -> None:
    """End a pause; does nothing where there is none.

    \b
    Examples:
      faops daemon resume
      faops daemon resume --json
    """
    status = client().resume()
    if as_json:
        print_json("daemon resume", state=status["state"], paused=status["paused"])
    else:
        print_line(sentence(status))
