"""`faops cache report`: entries to be looked at, as a page or a picture."""

from __future__ import annotations

from pathlib import Path

import click

from ..output import json_option, print_json, print_line
from .show import matching
from .words import counted


@click.command("report", short_help="Write a page or picture of entries.")
@click.argument("file", type=click.Path(path_type=Path))
@click.argument("keys", nargs=-1, metavar="[KEY]...")
@json_option
def command(file: Path, keys: tuple[str, ...], as_json: bool) -> None:
    """Write a report of all entries, or of those with the KEYs, to FILE, which ends in .html or .png: the tile space of
    each problem as a heat map with the chosen point, all timings, and why the winner won.

    \b
    Examples:
      faops cache report report.html
      faops cache report report.png q1024
    """
    from faops.autotune import report
    from faops.autotune.cache import TuningCache
    from faops.device import detect
    from faops.errors import CacheError

    from ..devices import present

    cache = TuningCache()
    entries = [entry for key in keys for entry in matching(key)] if keys else cache.entries()
    if not entries:
        raise CacheError(f"there are no entries in {cache.root} to report; `faops tune` makes them")
    report.write(entries, file, [detect(name) for name in present()])
    if as_json:
        print_json("cache report", report=str(file), keys=[entry.key for entry in entries])
    else:
        print_line(f"{counted(len(entries), 'entry', 'entries')} in {file}")
