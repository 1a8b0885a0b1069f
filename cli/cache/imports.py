"""`faops cache import`: take over winners from a file."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..output import json_option, print_json, print_line, print_table
from .words import counted

if TYPE_CHECKING:
    from faops.autotune.cache.exchange import Offer, Outcome

dry_run_option = click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")


@click.command("import", short_help="Take over entries from an exported file.")
@click.argument("file", metavar="FILE")
@dry_run_option
@json_option
def command(file: str, dry_run: bool, as_json: bool) -> None:
    """Take over the entries in FILE, which `faops cache export` wrote; "-" is standard input. Where there is an entry
    for the same problem, device and software, the better one stays. Each entry is checked as it is when a call reads
    it, and refused if it is not valid; the exit code is 1 when one was.

    \b
    Examples:
      faops cache import winners.json --dry-run
      faops cache import winners.json
    """
    take_over("cache import", offers_of_file(file), dry_run, as_json)


def offers_of_file(file: str) -> list[Offer]:
    """What is in the file, or in standard input for "-". Raises CacheError."""
    from faops.autotune.cache import exchange

    if file == "-":
        return exchange.offers_of_text(exchange.text_of(sys.stdin.buffer, "standard input"), "standard input")
    return exchange.offers_of_file(Path(file))


def take_over(name: str, offers: list[Offer], dry_run: bool, as_json: bool) -> None:
    """Import `offers` and print what became of each; ends in exit code 1 when one was refused."""
    from faops.autotune.cache import TuningCache, exchange

    cache = TuningCache()
    outcomes = exchange.take(cache, offers, dry_run)
    counts: Counter[str] = Counter(outcome.status for outcome in outcomes)
    if as_json:
        numbers = {status: counts[status] for status in ("imported", "kept", "refused")}
        rows = [outcome.as_dict() for outcome in outcomes]
        print_json(name, path=str(cache.root), dry_run=dry_run, **numbers, entries=rows)
    else:
        _print(outcomes, counts, dry_run, str(cache.root))
    if counts["refused"]:
        raise click.exceptions.Exit(1)


def _print(outcomes: list[Outcome], counts: Counter[str], dry_run: bool, place: str) -> None:
    if outcomes:
        rows = [(item.status, item.key or item.name, item.device or "-", item.reason) for item in outcomes]
        print_table(("", "key", "device", "reason"), rows)
        print_line()
    done = "would be imported" if dry_run else "imported"
    others = ", ".join(f"{counts[status]} {status}" for status in ("kept", "refused") if counts[status])
    words = f"{counted(counts['imported'], 'entry', 'entries')} {done} into {place}"
    print_line(f"{words}; {others}" if others else words)
