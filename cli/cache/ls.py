"""`faops cache ls`: every winner in a line."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, Any

import click

from ..output import json_option, print_json, print_line, print_table, ratio
from .words import counted, kernels, obstacle, readable_size, recheck, software, waiting_words

if TYPE_CHECKING:
    from faops.autotune.cache.entry import Entry


@click.command("ls", short_help="List all entries.")
@json_option
def command(as_json: bool) -> None:
    """List all entries: key, winner, speed-up over the default, date, and whether calls on that device use
    it: not when it was measured with other versions of torch or the compilers, or of the kernel. "re-check" is used
    too, but was measured with another driver: `faops tune` measures it again. The last lines tell how many problems
    wait for `faops tune --from-misses`, and how many compiled kernels there are.

    \b
    Examples:
      faops cache ls
      faops cache ls --json
    """
    from faops.autotune.cache import TuningCache, misses
    from faops.backends.cuda_raw import cubin_cache

    cache = TuningCache()
    entries, waiting = cache.entries(), misses.counts(cache)
    count, size = cubin_cache.usage()
    if as_json:
        cubins = {"path": str(cubin_cache.directory()), "count": count, "bytes": size}
        rows = [_brief(entry) for entry in entries]
        print_json("cache ls", path=str(cache.root), entries=rows, misses=waiting, cubins=cubins)
        return
    for (device, versions), group in groupby(entries, key=lambda entry: (entry.device, software(entry))):
        print_line(f"{device} ({versions})", style="bold")
        print_table(("key", "winner", "config", "speed-up", "date", "used"), [_row(entry) for entry in group])
        print_line()
    if entries:
        print_line(f"{counted(len(entries), 'entry', 'entries')} in {cache.root}")
    else:
        print_line(f"no entries in {cache.root}; `faops tune` makes them")
    if doubtful := [entry for entry in entries if not obstacle(entry) and recheck(entry)]:
        counts = counted(len(doubtful), "entry was", "entries were")
        print_line(f"{counts} {recheck(doubtful[0])}; `faops tune` measures again")
    for device, number in waiting.items():
        print_line(f"{waiting_words(number)} on {device}")
    if count:
        print_line(f"{kernels(count)}, {readable_size(size)}, in {cubin_cache.directory()}")


def _row(entry: Entry) -> tuple[str, ...]:
    used = obstacle(entry) or ("re-check" if recheck(entry) else "yes")
    return entry.key, entry.kernel, str(entry.config), ratio(entry.speedup), entry.date, used


def _brief(entry: Entry) -> dict[str, Any]:
    names = ("key", "device", "environment", "kernel", "default_kernel", "speedup", "measurements", "date")
    values = {name: getattr(entry, name) for name in names}
    state = {"used": not obstacle(entry), "obstacle": obstacle(entry), "recheck": recheck(entry)}
    return {**values, "config": dict(entry.config), "path": str(entry.path), **state}
