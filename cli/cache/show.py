"""`faops cache show`: everything about one winner."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ..output import json_option, print_json, print_line, print_pairs, print_table, ratio, seconds
from .words import obstacle, software

if TYPE_CHECKING:
    from faops.autotune.cache.entry import Entry, Timing


@click.command("show", short_help="Print everything about one entry.")
@click.argument("key")
@json_option
def command(key: str, as_json: bool) -> None:
    """Print everything about the entry with KEY, or with a key that KEY is a part of: why its winner won, all timings,
    and what was left out.

    \b
    Examples:
      faops cache show forward/dense/float32/b1/q1024/k1024/h8x8/d64x64/w-1_0
      faops cache show q1024
      faops cache show q1024 --json
    """
    from faops.autotune.report.verdict import why

    entries = matching(key)
    if as_json:
        rows = [{**entry.as_dict(), "path": str(entry.path), "why": why(entry)} for entry in entries]
        print_json("cache show", entries=rows)
        return
    for index, entry in enumerate(entries):
        if index:
            print_line()
        _show(entry)


def matching(key: str) -> list[Entry]:
    """The entries of the one key that is `key` or contains it. Raises CacheError for none and for several keys."""
    from faops.autotune.cache import TuningCache
    from faops.errors import CacheError

    cache = TuningCache()
    entries = cache.entries()
    exact = [entry for entry in entries if entry.key == key]
    if exact:
        return exact
    found = [entry for entry in entries if key in entry.key]
    keys = sorted({entry.key for entry in found})
    if not keys:
        raise CacheError(f"no entry has a key with {key!r} in it; `faops cache ls` lists the keys in {cache.root}")
    if len(keys) > 1:
        listed = "\n".join(f"  {name}" for name in keys)
        raise CacheError(f"{len(keys)} keys have {key!r} in them, name one of:\n{listed}")
    return found


def _show(entry: Entry) -> None:
    from faops.autotune.report.verdict import why

    print_pairs(
        [
            ("key", entry.key),
            ("problem", entry.attention_problem()),
            ("device", entry.device),
            ("software", software(entry)),
            ("winner", f"{entry.kernel} [{entry.config}] {seconds(entry.p50)}"),
            ("default", f"{entry.default_kernel} [{entry.default_config}] {seconds(entry.default_p50)}"),
            ("speed-up", ratio(entry.speedup)),
            ("measurements", entry.measurements),
            ("date", f"{entry.date}, faops {entry.faops_version}"),
            ("file", entry.path),
        ]
    )
    print_line()
    for sentence in why(entry):
        print_line(f"- {sentence}")
    print_line()
    print_timings(entry)
    for dropped in entry.dropped:
        print_line("dropped  " + ", ".join(f"{name}: {value}" for name, value in dropped.items()))


def print_timings(entry: Entry) -> None:
    """Table of everything that was measured for an entry, the fastest first."""
    if reason := obstacle(entry):
        print_line(f"not used now: {reason}")
    columns = ("kernel", "config", "p20", "p50", "p80", "samples", "predicted", "noisy")
    print_table(columns, [_timing_row(timing) for timing in sorted(entry.timings, key=lambda timing: timing.p50)])


def _timing_row(timing: Timing) -> tuple[object, ...]:
    times = (seconds(value) for value in (timing.p20, timing.p50, timing.p80))
    noisy = "noisy" if timing.noisy else ""
    return timing.kernel, timing.config, *times, timing.n, seconds(timing.predicted), noisy
