"""How a running `faops tune` is shown: a live display on a terminal, plain lines anywhere else."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from .output import is_terminal, seconds

if TYPE_CHECKING:
    from faops.autotune.tuner.events import Event

OnEvent = Callable[["Event"], None]

TOLD = (
    "resumed", "quarantined", "problem_done", "warm", "skipped", "failed", "waiting", "busy", "unisolated",
)  # kinds of events that are lines of their own; the others only move what a display shows  # fmt: skip
QUIET_SECONDS = 30.0  # without a terminal, a problem in work gives a line as often as this
BAR_WIDTH = 30


@contextmanager
def reporter(as_json: bool) -> Iterator[OnEvent]:
    """Gives the function that the tuner calls with every event. With `as_json` standard output stays free."""
    if is_terminal() and not as_json:
        with _live() as on_event:
            yield on_event
    else:
        yield Lines(err=as_json).on_event


class Lines:
    """One line for each problem that is finished, and now and then one about the problem in work."""

    def __init__(self, err: bool) -> None:
        self.err = err
        self.last = time.monotonic()

    def on_event(self, event: Event) -> None:
        if event.kind in TOLD:
            self._print(line(event))
        elif event.kind == "measured" and time.monotonic() - self.last > QUIET_SECONDS:
            left = "" if event.remaining is None else f", about {clock(event.remaining)} left"
            self._print(f"{place(event)}: {event.done} of {event.planned} timings, best {seconds(event.best)}{left}")

    def _print(self, text: str) -> None:
        self.last = time.monotonic()
        click.echo(text, err=self.err)


def place(event: Event) -> str:
    """Which problem of how many an event is about."""
    return f"[{event.index + 1}/{event.total}] {event.problem}"


def line(event: Event) -> str:
    """What an event says in one line."""
    if event.kind == "warm":
        return f"{place(event)}: reused"
    if event.kind == "problem_done":
        return f"{place(event)}: {seconds(event.best)} after {event.done} measurements, {event.message}"
    return f"{place(event)}: {event.kind}{': ' if event.message else ''}{event.message}"


def clock(duration: float) -> str:
    """Seconds as minutes and seconds, such as 2:05, or 1:02:05 from an hour on."""
    minutes, rest = divmod(round(duration), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


@contextmanager
def _live() -> Iterator[OnEvent]:
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console, display = Console(highlight=False), Display()
    with Live(display, console=console, transient=True, refresh_per_second=4) as live:

        def on_event(event: Event) -> None:
            display.update(event)
            if event.kind in TOLD:
                live.console.print(Text(line(event)), soft_wrap=True)

        yield on_event


class Display:
    """What is going on, in four lines that rich draws again a few times a second: which problem, how far the whole
    run is, what is being done, and the best so far."""

    def __init__(self) -> None:
        self.event: Event | None = None
        self.since = time.monotonic()  # when the event came
        self.part = 0.0  # of the whole run; never goes back
        self.doing = ""
        self.best: float | None = None
        self.best_name = ""

    def update(self, event: Event) -> None:
        self.event, self.since = event, time.monotonic()
        if event.kind == "problem_started":
            self.best, self.best_name = None, ""
        if event.kind == "measured" and event.best != self.best:  # this very timing made it shorter
            self.best, self.best_name = event.best, event.message
        self.doing = _doing(event) or self.doing
        self.part = max(self.part, _part(event))

    def __rich__(self) -> Any:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        if self.event is None:
            return Text("")
        bar = Table.grid(padding=(0, 1))
        bar.add_row(ProgressBar(total=1.0, completed=self.part, width=BAR_WIDTH), f"{self.part:.0%}", self.times())
        best = f"best so far: {seconds(self.best)}  {self.best_name}" if self.best is not None else ""
        place_line, doing_line, best_line = (
            Text(text, overflow="ellipsis", no_wrap=True) for text in (place(self.event), self.doing, best)
        )
        return Group(place_line, bar, doing_line, best_line)

    def times(self) -> str:
        """How long the run has gone on and will go on, counted on since the last event."""
        if self.event is None:
            return ""
        waited = time.monotonic() - self.since
        gone = clock(self.event.elapsed + waited)
        if self.event.remaining is None:
            return f"{gone} gone"
        return f"{gone} gone, about {clock(max(0.0, self.event.remaining - waited))} left"


def _part(event: Event) -> float:
    """Which part of the run is over: by time where the rest is known, else by problems and timings."""
    if event.remaining is not None:
        whole = event.elapsed + event.remaining
        return event.elapsed / whole if whole > 0 else 0.0
    of_problem = event.done / event.planned if event.kind == "measured" and event.planned else 0.0
    return (event.index + min(1.0, of_problem)) / max(1, event.total)


def _doing(event: Event) -> str:
    """What is being done, in words; "" for events that do not tell."""
    counted = f"{event.done}/{event.planned}"
    words = {
        "problem_started": "preparing",
        "compiling": f"compiling {counted}",
        "measured": f"timed {counted}  {event.message}",
        "checking": f"checking {event.message}",
        "waiting": "waiting",
    }
    return words.get(event.kind, "")
