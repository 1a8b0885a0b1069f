"""How a running `faops tune` is shown: a bar on a terminal, one line a problem anywhere else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from .output import is_terminal, seconds

if TYPE_CHECKING:
    from faops.autotune.tuner import Event

OnEvent = Callable[["Event"], None]


@contextmanager
def reporter(as_json: bool) -> Iterator[OnEvent]:
    """Gives the function that the tuner calls with every event. With `as_json` standard output stays free."""
    if is_terminal() and not as_json:
        with _bar() as on_event:
            yield on_event
    else:
        yield lambda event: _plain(event, err=as_json)


def _plain(event: Event, err: bool) -> None:
    if event.kind not in ("problem_started", "measured"):
        click.echo(_finished(event), err=err)


def _finished(event: Event) -> str:
    place = f"[{event.index + 1}/{event.total}] {event.problem}"
    if event.kind == "warm":
        return f"{place}: reused"
    if event.kind == "problem_done":
        return f"{place}: {seconds(event.best)} after {event.done} measurements, {event.message}"
    return f"{place}: {event.kind}{': ' if event.message else ''}{event.message}"


@contextmanager
def _bar() -> Iterator[OnEvent]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
    from rich.text import Text

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TextColumn("best {task.fields[best]}", markup=False),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(highlight=False), transient=True) as progress:
        task = progress.add_task("tuning", total=None, best="-")

        def on_event(event: Event) -> None:
            if event.kind in ("problem_started", "measured"):
                place = f"[{event.index + 1}/{event.total}] {event.problem}"
                best = seconds(event.best)
                progress.update(task, description=place, completed=event.done, total=event.planned or None, best=best)
            else:
                progress.console.print(Text(_finished(event)))

        yield on_event
