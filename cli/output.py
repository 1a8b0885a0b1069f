"""The one place that prints: tables and lines for a terminal (rich), plain text for a pipe, JSON for a program."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import click

SCHEMA_VERSION = 1

Function = TypeVar("Function", bound=Callable[..., Any])


def json_option(function: Function) -> Function:
    """Add `--json` to a command; it arrives as the argument `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON document and nothing else.")(function)


def is_terminal() -> bool:
    """Whether standard output is a terminal that can show colour and move the cursor."""
    return sys.stdout.isatty() and os.environ.get("TERM") != "dumb"


def print_json(command: str, **content: object) -> None:
    """Print one JSON document. It has `schema_version` and `command`, and null for numbers that are not finite."""
    document = {"schema_version": SCHEMA_VERSION, "command": command, **content}
    click.echo(json.dumps(_finite(document), indent=2, default=str))


def _finite(value: object) -> object:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def print_line(text: str = "", style: str = "") -> None:
    """Print one line; `style` is a rich style and counts only on a terminal."""
    if not (style and is_terminal()):
        click.echo(text)
        return
    from rich.console import Console
    from rich.text import Text

    Console(highlight=False).print(Text(text, style=style), soft_wrap=True)


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]], title: str = "") -> None:
    """Print a table. Plain text has aligned columns, two spaces apart, and no lines or escape codes."""
    cells = [[str(cell) for cell in row] for row in rows]
    if is_terminal():
        _print_rich_table(columns, cells, title)
    else:
        click.echo("\n".join(plain_table(columns, cells, title)))


def plain_table(columns: Sequence[str], rows: Sequence[Sequence[str]], title: str = "") -> list[str]:
    """Lines of a table in plain text; a cell of several lines continues in its column."""
    split = [[cell.split("\n") for cell in row] for row in (list(columns), *rows)]
    widths = [max(len(line) for row in split for line in row[column]) for column in range(len(columns))]
    lines = [title] if title else []
    for row in split:
        for index in range(max(len(cell) for cell in row)):
            parts = [cell[index] if index < len(cell) else "" for cell in row]
            lines.append("  ".join(part.ljust(width) for part, width in zip(parts, widths)).rstrip())
    return lines


def _print_rich_table(columns: Sequence[str], rows: Sequence[Sequence[str]], title: str) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title or None, title_justify="left", box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    Console(highlight=False).print(table)


def print_pairs(pairs: Sequence[tuple[str, object]]) -> None:
    """Print names and values in two columns without a heading."""
    width = max(len(name) for name, _ in pairs)
    for name, value in pairs:
        first, *more = str(value).split("\n")
        print_line(f"{name.ljust(width)}  {first}".rstrip())
        for line in more:
            print_line(f"{' ' * width}  {line}")


def seconds(value: float | None) -> str:
    """A duration with a unit that suits it, such as ``1.23 ms``; "-" for none."""
    from faops import quantities

    return quantities.seconds(value)


def ratio(value: float | None) -> str:
    """A speed-up, such as ``1.34x``; "-" for none."""
    from faops import quantities

    return quantities.ratio(value)


def percent(part: float) -> str:
    """A part of one, such as ``2.1 %``."""
    from faops import quantities

    return quantities.percent(part)
