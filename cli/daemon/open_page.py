"""`faops daemon open`: the dashboard in a browser."""

from __future__ import annotations

import click

from ..output import json_option, print_json, print_line
from .addresses import parse_address
from .reach import client


@click.command("open", short_help="Open the dashboard in a browser.")
@click.option("--http", metavar="HOST:PORT", callback=parse_address, help="Where to listen, on 127.0.0.1 or [::1].")
@click.option("--print", "print_only", is_flag=True, help="Print the address and open no browser.")
@json_option
def command(http: str | None, print_only: bool, as_json: bool) -> None:
    """Let the daemon answer on this machine's loopback address and open its dashboard in a browser. The address holds a
    token: who has it can do what these commands do. From another machine: ssh -L PORT:127.0.0.1:PORT, and --print.

    \b
    Examples:
      faops daemon open
      faops daemon open --print --http 127.0.0.1:8741
    """
    url = client().open_http(http)
    shown = False if print_only or as_json else _browse(url)
    if as_json:
        print_json("daemon open", url=url)
    elif not shown:
        print_line(url)


def _browse(url: str) -> bool:
    """Whether a browser took it."""
    import webbrowser

    try:
        return webbrowser.open(url)
    except webbrowser.Error:
        return False
