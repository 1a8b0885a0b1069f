"""`faops cache merge`: take over winners from other caches."""

from __future__ import annotations

from pathlib import Path

import click

from ..output import json_option
from .imports import dry_run_option, offers_of_file, take_over


@click.command("merge", short_help="Take over entries from other caches.")
@click.argument("sources", metavar="DIR|FILE...", nargs=-1, required=True)
@dry_run_option
@json_option
def command(sources: tuple[str, ...], dry_run: bool, as_json: bool) -> None:
    """Take over the entries of other cache directories and exported files, as `faops cache import` does.

    \b
    Examples:
      faops cache merge /shared/faops
      faops cache merge node1.json node2.json --dry-run
    """
    from faops.autotune.cache import exchange

    offers = []
    for source in sources:
        directory = Path(source)
        offers += exchange.offers_of_directory(directory) if directory.is_dir() else offers_of_file(source)
    take_over("cache merge", offers, dry_run, as_json)
