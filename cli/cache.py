"""`faops cache`: list, show and clear what tuning has found."""

from __future__ import annotations

import sys
from itertools import groupby
from typing import TYPE_CHECKING, Any

import click

from .output import json_option, print_json, print_line, print_pairs, print_table, ratio, seconds

if TYPE_CHECKING:
    from faops.autotune.entry import Entry


@click.group("cache", short_help="List, show and clear what tuning has found.")
def command() -> None:
    """List, show and clear the winners that tuning has found.

    \b
    Examples:
      faops cache ls
      faops cache show forward/dense/float32/b1/q1024
      faops cache clear --yes
    """


@command.command("ls", short_help="List all entries.")
@json_option
def ls(as_json: bool) -> None:
    """List all entries: key, winner, speed-up over the default, date, and whether calls on that device use
    it: not when it was measured with other versions of torch or the compilers, or of the kernel.

    \b
    Examples:
      faops cache ls
      faops cache ls --json
    """
    from faops.autotune.cache import TuningCache

    cache = TuningCache()
    entries = cache.entries()
    if as_json:
        print_json("cache ls", path=str(cache.root), entries=[_brief(entry) for entry in entries])
        return
    if not entries:
        print_line(f"no entries in {cache.root}; `faops tune` makes them")
        return
    for (device, software), group in groupby(entries, key=lambda entry: (entry.device, _software(entry))):
        print_line(f"{device} ({software})", style="bold")
        print_table(("key", "winner", "config", "speed-up", "date", "used"), [_row(entry) for entry in group])
        print_line()
    print_line(f"{len(entries)} {'entry' if len(entries) == 1 else 'entries'} in {cache.root}")


@command.command("show", short_help="Print everything about one entry.")
@click.argument("key")
@json_option
def show(key: str, as_json: bool) -> None:
    """Print everything about the entry with KEY, or with a key that KEY is a part of.

    \b
    Examples:
      faops cache show forward/dense/float32/b1/q1024/k1024/h8x8/d64x64/w-1_0
      faops cache show q1024
      faops cache show q1024 --json
    """
    entries = _matching(key)
    if as_json:
        print_json("cache show", entries=[{**entry.as_dict(), "path": str(entry.path)} for entry in entries])
        return
    for index, entry in enumerate(entries):
        if index:
            print_line()
        _show(entry)


@command.command("clear", short_help="Remove all entries or one.")
@click.argument("key", required=False)
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
def clear(key: str | None, yes: bool, as_json: bool) -> None:
    """Remove all entries, unreadable ones too, or only the one with KEY.

    \b
    Examples:
      faops cache clear
      faops cache clear --yes
      faops cache clear q1024 --yes
    """
    from faops.autotune.cache import TuningCache

    cache = TuningCache()
    exact = _matching(key)[0].key if key is not None else None
    if not yes:
        if not _can_ask():
            raise click.UsageError("without a terminal to ask on, --yes is needed to clear the cache")
        what = f"the entry {exact}" if exact else "all entries"
        if not click.confirm(f"Remove {what} in {cache.root}?", err=True):
            raise click.exceptions.Exit(1)
    removed = cache.clear(key=exact)
    if as_json:
        print_json("cache clear", path=str(cache.root), removed=removed)
    else:
        print_line(f"removed {removed} {'entry' if removed == 1 else 'entries'} from {cache.root}")


def _can_ask() -> bool:
    return sys.stdin.isatty()


def _matching(key: str) -> list[Entry]:
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


def _software(entry: Entry) -> str:
    return ", ".join(f"{name} {version}" for name, version in entry.environment.items())


def _row(entry: Entry) -> tuple[str, ...]:
    return entry.key, entry.kernel, str(entry.config), ratio(entry.speedup), entry.date, _obstacle(entry) or "yes"


def _brief(entry: Entry) -> dict[str, Any]:
    names = ("key", "device", "environment", "kernel", "default_kernel", "speedup", "measurements", "date")
    values = {name: getattr(entry, name) for name in names}
    return {**values, "config": dict(entry.config), "path": str(entry.path), "used": not _obstacle(entry)}


def _obstacle(entry: Entry) -> str:
    """Why a call on the entry's device does not use it; "" if it does."""
    from faops import registry
    from faops.autotune import environment
    from faops.autotune.cache import serving

    if entry.environment != environment.versions():
        return "other software"
    return "" if serving(entry, registry.kernels()) else "kernel changed"


def _show(entry: Entry) -> None:
    print_pairs(
        [
            ("key", entry.key),
            ("problem", entry.attention_problem()),
            ("device", entry.device),
            ("software", _software(entry)),
            ("winner", f"{entry.kernel} [{entry.config}] {seconds(entry.p50)}"),
            ("default", f"{entry.default_kernel} [{entry.default_config}] {seconds(entry.default_p50)}"),
            ("speed-up", ratio(entry.speedup)),
            ("measurements", entry.measurements),
            ("date", f"{entry.date}, faops {entry.faops_version}"),
            ("file", entry.path),
        ]
    )
    print_line()
    print_timings(entry)
    for dropped in entry.dropped:
        print_line("dropped  " + ", ".join(f"{name}: {value}" for name, value in dropped.items()))


def print_timings(entry: Entry) -> None:
    """Table of everything that was measured for an entry, the fastest first."""
    if obstacle := _obstacle(entry):
        print_line(f"not used now: {obstacle}")
    print_table(
        ("kernel", "config", "p20", "p50", "p80", "samples", "noisy"),
        [
            (t.kernel, t.config, seconds(t.p20), seconds(t.p50), seconds(t.p80), t.n, "noisy" if t.noisy else "")
            for t in sorted(entry.timings, key=lambda timing: timing.p50)
        ],
    )
