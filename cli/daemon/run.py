"""`faops daemon run`: the daemon itself, in the foreground."""

from __future__ import annotations

import click

from .addresses import parse_address
from .reach import CLIENT_PACKAGES, SERVER_PACKAGES, require

LEVELS = ("debug", "info", "warning", "error")


@click.command("run", short_help="Run the daemon in the foreground.")
@click.option("--http", metavar="HOST:PORT", callback=parse_address, help="Answer over TCP too, with a token.")
@click.option("--allow-remote", is_flag=True, help="Let --http name an address that other machines reach.")
@click.option("--no-idle-gate", is_flag=True, help="Tune whether devices are idle or not.")
@click.option("--log-level", type=click.Choice(LEVELS), default="info", help="What is logged at least.")
@click.option("--json", "as_json", is_flag=True, help="Write the log as JSON, a line each.")
def command(http: str | None, allow_remote: bool, no_idle_gate: bool, log_level: str, as_json: bool) -> None:
    """Run the daemon in the foreground, as systemd and containers want it; its log goes to standard error, too. SIGTERM
    and Ctrl-C end it within seconds, and SIGHUP makes it read faops.yaml again.

    \b
    Examples:
      faops daemon run
      faops daemon run --http 127.0.0.1:8741
      faops daemon run --no-idle-gate --log-level debug
    """
    if allow_remote and http is None:
        raise click.UsageError("--allow-remote goes with --http")
    require((*SERVER_PACKAGES, *CLIENT_PACKAGES))
    from faops.daemon.service import Options, run

    code = run(
        Options(
            http=http,
            allow_remote=allow_remote,
            idle_gate=False if no_idle_gate else None,
            log_level=log_level,
            json_log=as_json,
        )
    )
    raise click.exceptions.Exit(code)
