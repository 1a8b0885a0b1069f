"""`faops cache clear`: remove winners, notes of misses, or compiled kernels."""

from __future__ import annotations

import sys

import click

from ..output import json_option, print_json, print_line
from .show import matching
from .words import counted, kernels


@click.command("clear", short_help="Remove all entries or one.")
@click.argument("key", required=False)
@click.option("--cubins", is_flag=True, help="Remove the compiled kernels, and no entry.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
def command(key: str | None, cubins: bool, yes: bool, as_json: bool) -> None:
    """Remove all entries, unreadable ones too, the notes of problems that ran untuned and what unfinished runs have
    measured; or only the entry with KEY; with --cubins the compiled kernels.

    \b
    Examples:
      faops cache clear
      faops cache clear --yes
      faops cache clear q1024 --yes
      faops cache clear --cubins --yes
    """
    from faops.autotune.cache import TuningCache, misses, pruning
    from faops.backends.cuda_raw import cubin_cache

    if cubins and key is not None:
        raise click.UsageError("--cubins removes all compiled kernels and takes no KEY")
    cache = TuningCache()
    place = cubin_cache.directory() if cubins else cache.root
    exact = matching(key)[0].key if key is not None else None
    if not yes:
        if not _can_ask():
            raise click.UsageError("without a terminal to ask on, --yes is needed to clear the cache")
        what = "all compiled kernels" if cubins else f"the entry {exact}" if exact else "all entries"
        if not click.confirm(f"Remove {what} in {place}?", err=True):
            raise click.exceptions.Exit(1)
    removed = cubin_cache.prune(0)[0] if cubins else cache.clear(key=exact)
    missed = 0 if cubins or exact else misses.clear(cache)
    unfinished = 0 if cubins or exact else pruning.clear_unfinished(cache)
    if as_json:
        print_json("cache clear", path=str(place), removed=removed, misses=missed, unfinished=unfinished)
        return
    gone = [kernels(removed) if cubins else counted(removed, "entry", "entries")]
    if missed:
        gone.append(f"{counted(missed, 'note of a problem', 'notes of problems')} that ran untuned")
    if unfinished:
        gone.append(f"what was measured of {counted(unfinished, 'unfinished problem', 'unfinished problems')}")
    print_line(f"removed {' and '.join(gone)} from {place}")


def _can_ask() -> bool:
    return sys.stdin.isatty()
