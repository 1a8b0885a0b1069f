"""`faops cache`: list, show and clear what tuning has found, and the kernels that were compiled."""

from __future__ import annotations

import sys
from itertools import groupby
from typing import TYPE_CHECKING, Any

import click

from .output import json_option, print_json, print_line, print_pairs, print_table, ratio, seconds

if TYPE_CHECKING:
    from faops.autotune.entry import Entry
    from faops.backends.cuda_raw.cubin_cache import Entry as Cubin


@click.group("cache", short_help="List, show and clear what tuning has found.")
def command() -> None:
    """List, show and clear the winners that tuning has found, and the CUDA kernels that were compiled.

    \b
    Examples:
      faops cache ls
      faops cache show forward/dense/float32/b1/q1024
      faops cache clear --yes
      faops cache cubins
    """


@command.command("ls", short_help="List all entries.")
@json_option
def ls(as_json: bool) -> None:
    """List all entries: key, winner, speed-up over the default, date, and whether calls on that device use
    it: not when it was measured with other versions of torch or the compilers, or of the kernel. The last lines
    tell how many problems wait for `faops tune --from-misses`, and how many compiled kernels there are.

    \b
    Examples:
      faops cache ls
      faops cache ls --json
    """
    from faops.autotune import misses
    from faops.autotune.cache import TuningCache
    from faops.backends.cuda_raw import cubin_cache

    cache = TuningCache()
    entries, waiting = cache.entries(), misses.counts(cache)
    count, size = cubin_cache.usage()
    if as_json:
        cubins = {"path": str(cubin_cache.directory()), "count": count, "bytes": size}
        rows = [_brief(entry) for entry in entries]
        print_json("cache ls", path=str(cache.root), entries=rows, misses=waiting, cubins=cubins)
        return
    for (device, software), group in groupby(entries, key=lambda entry: (entry.device, _software(entry))):
        print_line(f"{device} ({software})", style="bold")
        print_table(("key", "winner", "config", "speed-up", "date", "used"), [_row(entry) for entry in group])
        print_line()
    if entries:
        print_line(f"{_counted(len(entries), 'entry', 'entries')} in {cache.root}")
    else:
        print_line(f"no entries in {cache.root}; `faops tune` makes them")
    for device, number in waiting.items():
        print_line(f"{waiting_words(number)} on {device}")
    if count:
        print_line(f"{_kernels(count)}, {_size(size)}, in {cubin_cache.directory()}")


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
@click.option("--cubins", is_flag=True, help="Remove the compiled kernels, and no entry.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
def clear(key: str | None, cubins: bool, yes: bool, as_json: bool) -> None:
    """Remove all entries, unreadable ones too, and the notes of problems that ran untuned; or only the entry with KEY;
    with --cubins the compiled kernels.

    \b
    Examples:
      faops cache clear
      faops cache clear --yes
      faops cache clear q1024 --yes
      faops cache clear --cubins --yes
    """
    from faops.autotune import misses
    from faops.autotune.cache import TuningCache
    from faops.backends.cuda_raw import cubin_cache

    if cubins and key is not None:
        raise click.UsageError("--cubins removes all compiled kernels and takes no KEY")
    cache = TuningCache()
    place = cubin_cache.directory() if cubins else cache.root
    exact = _matching(key)[0].key if key is not None else None
    if not yes:
        if not _can_ask():
            raise click.UsageError("without a terminal to ask on, --yes is needed to clear the cache")
        what = "all compiled kernels" if cubins else f"the entry {exact}" if exact else "all entries"
        if not click.confirm(f"Remove {what} in {place}?", err=True):
            raise click.exceptions.Exit(1)
    removed = cubin_cache.prune(0)[0] if cubins else cache.clear(key=exact)
    missed = 0 if cubins or exact else misses.clear(cache)
    if as_json:
        print_json("cache clear", path=str(place), removed=removed, misses=missed)
    else:
        what = _kernels(removed) if cubins else _counted(removed, "entry", "entries")
        if missed:
            what += f" and {_counted(missed, 'note of a problem', 'notes of problems')} that ran untuned"
        print_line(f"removed {what} from {place}")


@command.command("cubins", short_help="List the compiled kernels.")
@json_option
def cubins(as_json: bool) -> None:
    """List the CUDA kernels that were compiled: target, registers and spilled bytes of a thread, size of the code,
    date, and what the kernel was specialised for (constants that are 0 or false are left out, but for --json).

    \b
    Examples:
      faops cache cubins
      faops cache cubins --json
    """
    from faops.backends.cuda_raw import cubin_cache

    place = str(cubin_cache.directory())
    found = cubin_cache.entries()
    if as_json:
        print_json("cache cubins", path=place, cubins=[entry.as_dict() for entry in found])
        return
    if found:
        columns = ("kernel", "target", "registers", "spilled", "size", "date", "specialised for")
        print_table(columns, [_cubin_row(entry) for entry in found])
        print_line()
    count, size = cubin_cache.usage()
    if unreadable := count - len(found):
        print_line(f"{_counted(unreadable, 'file', 'files')} cannot be read; the kernel is compiled again when needed")
    print_line(f"{_kernels(count)}, {_size(size)}, in {place}" if count else f"no compiled kernels in {place}")


@command.command("prune", short_help="Remove the compiled kernels used least recently.")
@click.option(
    "--max-mb", type=click.IntRange(min=0), metavar="N", help="MiB to keep; by default the setting cubin_cache_mb."
)
@json_option
def prune(max_mb: int | None, as_json: bool) -> None:
    """Remove compiled kernels, those used least recently first, until the others take no more than N MiB.

    This happens by itself whenever a kernel is compiled. What is removed is compiled again when it is needed.

    \b
    Examples:
      faops cache prune
      faops cache prune --max-mb 64
    """
    from faops.architectures import MIB
    from faops.backends.cuda_raw import cubin_cache

    limit = cubin_cache.limit_bytes() if max_mb is None else max_mb * MIB
    removed, freed = cubin_cache.prune(limit)
    count, size = cubin_cache.usage()
    place = str(cubin_cache.directory())
    if as_json:
        left = {"count": count, "bytes": size}
        print_json("cache prune", path=place, limit_bytes=limit, removed=removed, freed_bytes=freed, left=left)
        return
    gone = f"removed {_kernels(removed)}, {_size(freed)}" if removed else "nothing to remove"
    print_line(f"{gone}; {_kernels(count)}, {_size(size)}, of at most {_size(limit)} in {place}")


def _kernels(count: int) -> str:
    return _counted(count, "compiled kernel", "compiled kernels")


def _counted(count: int, one: str, many: str) -> str:
    return f"{count} {one if count == 1 else many}"


def waiting_words(count: int) -> str:
    """How many problems that programs ran untuned are still to be tuned."""
    waiting = _counted(count, "problem that ran untuned waits", "problems that ran untuned wait")
    return f"{waiting} for `faops tune --from-misses`"


def _size(size: int) -> str:
    """Bytes with a unit that suits them."""
    for unit, bytes_each in (("MiB", 2**20), ("KiB", 2**10)):
        if size >= bytes_each:
            return f"{size / bytes_each:.1f} {unit}"
    return f"{size} B"


def _cubin_row(entry: Cubin) -> tuple[str, ...]:
    registers, stores = entry.figures.get("registers"), entry.figures.get("spill_store_bytes")
    constants = [name if value == "true" else f"{name}={value}" for name, value in entry.specialization.items()]
    constants = [text for text in constants if not text.endswith(("=false", "=0"))]
    figures = ("-" if value is None else str(value) for value in (registers, stores))
    return entry.name, entry.target, *figures, _size(entry.image_bytes), entry.date, " ".join(constants) or "-"


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
