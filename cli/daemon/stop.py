"""`faops daemon stop`: the end of the daemon."""

from __future__ import annotations

import click

from ..durations import parse_duration
from ..output import json_option, print_json, print_line
from .reach import require


@click.command("stop", short_help="Stop the daemon.")
@click.option("--kill", is_flag=True, help="End it by force where it does not end by itself.")
@click.option("--wait", callback=parse_duration, default="15s", metavar="TIME", help="How long it may take (15s).")
@json_option
def command(kill: bool, wait: float, as_json: bool) -> None:
    """Stop the daemon. What is being tuned is left as it is and gone on with after the next start; no job is lost, not
    with --kill either.

    \b
    Examples:
      faops daemon stop
      faops daemon stop --kill
    """
    require()
    from faops.daemon.start import stop

    holder = stop(wait, kill=kill)
    if as_json:
        print_json("daemon stop", pid=holder.pid)
    else:
        print_line(f"the daemon has ended (pid {holder.pid})")
