"""`faops daemon start`: the daemon in the background."""

from __future__ import annotations

import click

from ..durations import parse_duration
from ..output import json_option, print_json, print_line
from .addresses import parse_address
from .reach import CLIENT_PACKAGES, SERVER_PACKAGES, require
from .run import LEVELS


@click.command("start", short_help="Start the daemon in the background.")
@click.option("--http", metavar="HOST:PORT", callback=parse_address, help="Answer over TCP too, with a token.")
@click.option("--allow-remote", is_flag=True, help="Let --http name an address that other machines reach.")
@click.option("--no-idle-gate", is_flag=True, help="Tune whether devices are idle or not.")
@click.option("--log-level", type=click.Choice(LEVELS), help="What is logged at least (default: info).")
@click.option("--wait", callback=parse_duration, default="30s", metavar="TIME", help="How long it may take (30s).")
@json_option
def command(
    http: str | None, allow_remote: bool, no_idle_gate: bool, log_level: str | None, wait: float, as_json: bool
) -> None:
    """Start the daemon in the background and wait until it answers. It runs until `faops daemon stop`, or until the
    machine is shut down; `faops daemon install` lets systemd start it instead.

    \b
    Examples:
      faops daemon start
      faops daemon start --no-idle-gate --log-level debug
    """
    if allow_remote and http is None:
        raise click.UsageError("--allow-remote goes with --http")
    require((*SERVER_PACKAGES, *CLIENT_PACKAGES))
    from faops.daemon.start import start

    arguments = [*(["--http", http] if http else []), *(["--log-level", log_level] if log_level else [])]
    arguments += ["--allow-remote"] * allow_remote + ["--no-idle-gate"] * no_idle_gate
    holder = start(arguments, wait)
    if as_json:
        print_json("daemon start", pid=holder.pid, socket=str(holder.socket), version=holder.version)
    else:
        print_line(f"the daemon runs: pid {holder.pid}, socket {holder.socket}")
