"""`faops cache export`: winners as a file for another machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..output import json_option, print_json, print_line
from .words import counted

if TYPE_CHECKING:
    from faops.autotune.cache.entry import Entry


@click.command("export", short_help="Write entries to a file for another machine.")
@click.argument("file", metavar="FILE")
@click.argument("keys", metavar="[KEY]...", nargs=-1)
@click.option("--device", metavar="NAME", help="Only entries of devices with NAME in their identity, such as H200.")
@json_option
def command(file: str, keys: tuple[str, ...], device: str | None, as_json: bool) -> None:
    """Write all entries, or those with a KEY in their key, to the JSON file FILE; "-" is standard output.

    \b
    Examples:
      faops cache export winners.json
      faops cache export winners.json --device H200
      faops cache export - forward/dense | ssh other faops cache import -
    """
    from faops.autotune.cache import TuningCache, exchange

    if file == "-" and as_json:
        raise click.UsageError("--json and the file - would both write to standard output")
    cache = TuningCache()
    entries = _chosen(cache.entries(), keys, device)
    text = exchange.export(cache, entries)
    if file == "-":
        click.echo(text, nl=False)
        return
    path = Path(file)
    exchange.write(path, text)
    if as_json:
        print_json("cache export", path=str(path), entries=[entry.key for entry in entries], bytes=len(text.encode()))
    else:
        print_line(f"wrote {counted(len(entries), 'entry', 'entries')} to {path}")


def _chosen(entries: list[Entry], keys: tuple[str, ...], device: str | None) -> list[Entry]:
    """The entries that are asked for. Raises CacheError where a device or key means none."""
    from faops.errors import CacheError

    if not entries:
        raise CacheError("there are no entries to export; `faops tune` makes them")
    if device is not None:
        known = sorted({entry.device for entry in entries})
        entries = [entry for entry in entries if device.lower() in entry.device.lower()]
        if not entries:
            raise CacheError(f"no entry is of a device with {device!r} in its identity, there are: {', '.join(known)}")
    for key in keys:
        if not any(key in entry.key for entry in entries):
            raise CacheError(f"no entry has a key with {key!r} in it; `faops cache ls` lists the keys")
    return [entry for entry in entries if not keys or any(key in entry.key for key in keys)]
