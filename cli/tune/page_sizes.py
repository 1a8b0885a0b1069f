"""`--page-size`: one page size or several, and at the end of a run which of them is fastest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ..output import print_line, print_table, seconds

if TYPE_CHECKING:
    from faops.autotune.report.page_sizes import Comparison
    from faops.autotune.tuner.events import Result

Function = TypeVar("Function", bound=Callable[..., Any])


def page_sizes_option(function: Function) -> Function:
    """Add `--page-size` to a command; it arrives as the list `page_size`, empty where the option is not given."""
    return click.option(
        "--page-size",
        metavar="N,...",
        multiple=True,
        callback=_parse,
        help="Tune that call with a cache in pages of so many tokens; several are compared.",
    )(function)


def _parse(ctx: click.Context, param: click.Parameter, given: Sequence[str]) -> list[int]:
    """Option callback: 128 or 128,256,512, once or several times."""
    sizes = []
    for text in (part.strip() for value in given for part in value.split(",")):
        if not (text.isascii() and text.isdigit() and int(text) > 0):
            raise click.BadParameter(f"{text!r} is no whole number of at least 1", ctx, param)
        sizes.append(int(text))
    return sizes


def comparisons(results: list[Result]) -> list[Comparison]:
    """What a run tells of page sizes; nothing where it met only one."""
    from faops.autotune.report.page_sizes import compare

    return compare([result.entry for result in results if result.entry is not None])


def as_dict(found: Comparison) -> dict[str, Any]:
    """JSON-able form of one comparison, the fastest size first."""
    from faops.autotune.report.page_sizes import page_size

    sizes = [
        {
            "page_size": page_size(entry), "kernel": entry.kernel, "config": dict(entry.config),
            "seconds": entry.p50, "ratio": found.slower(entry), "as_fast": found.as_fast(entry),
        }
        for entry in found.entries
    ]  # fmt: skip
    return {
        "problem": found.problem.as_dict(),
        "fastest": page_size(found.fastest),
        "above_noise": found.above_noise,
        "sizes": sizes,
    }


def print_comparisons(found: list[Comparison]) -> None:
    """A table with a row for each page size of each problem; nothing where there is nothing to compare."""
    from faops.autotune.report.page_sizes import page_size

    rows = []
    for one in found:
        for index, entry in enumerate(one.entries):
            winner = f"{entry.kernel}\n{entry.config}"
            name = "" if index else str(one.problem)
            rows.append((name, page_size(entry), winner, seconds(entry.p50), one.verdict(entry)))
    if rows:
        print_table(("problem", "page size", "winner", "time", "verdict"), rows)
        print_line()
