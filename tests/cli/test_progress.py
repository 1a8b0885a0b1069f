"""What is shown while tuning goes on: lines in a pipe, a live display on a terminal."""

from __future__ import annotations

import io
import itertools
from typing import Any, get_args

import pytest
from faops_cli import progress
from faops_cli.progress import BAR_WIDTH, Display, Lines, clock, line, reporter
from rich.console import Console

from faops.autotune.tuner.events import Event, Kind
from tests.autotune.support import PROBLEM

PLACE = f"[2/4] {PROBLEM}"


def event(kind: Any, **values: Any) -> Event:
    """An event about the second of four problems."""
    return Event(kind, PROBLEM, 1, 4, **values)


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The clock of the display, for tests to set."""
    moment = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: moment[0])
    return moment


def shown(display: Display, width: int = 100) -> list[str]:
    """The lines that the display draws."""
    console = Console(file=io.StringIO(), width=width, color_system=None, force_terminal=True)
    with console.capture() as capture:
        console.print(display)
    return [text.rstrip() for text in capture.get().splitlines()]


@pytest.mark.parametrize(
    ("seen", "text"),
    [
        (event("warm", message="tuned before"), "reused"),
        (event("problem_done", done=59, best=0.002, message="1.5x"), "2 ms after 59 measurements, 1.5x"),
        (event("failed", message="no kernel"), "failed: no kernel"),
        (event("waiting"), "waiting"),
        (event("resumed", message="3 timings count"), "resumed: 3 timings count"),
        (event("quarantined", message="k [a=1]: signal 11"), "quarantined: k [a=1]: signal 11"),
    ],
)
def test_lines(seen: Event, text: str) -> None:
    assert line(seen) == f"{PLACE}: {text}"


@pytest.mark.parametrize(("duration", "text"), [(0.4, "0:00"), (59.6, "1:00"), (125, "2:05"), (3725, "1:02:05")])
def test_clock(duration: float, text: str) -> None:
    assert clock(duration) == text


def test_pipe_gets_a_line_for_what_matters(capsys: pytest.CaptureFixture[str]) -> None:
    lines = Lines(err=False)
    for kind in (
        "problem_started",
        "compiling",
        "measured",
        "checking",
        "dropped",
        "problem_done",
        "quarantined",
        "busy",
    ):
        lines.on_event(event(kind, message="x"))
    printed = capsys.readouterr()
    assert [text.split(": ")[1] for text in printed.out.splitlines()] == [
        "- after 0 measurements, x",
        "quarantined",
        "busy",
    ]
    assert printed.err == ""
    Lines(err=True).on_event(event("warm"))
    assert "reused" in capsys.readouterr().err


def test_pipe_hears_of_a_long_problem_now_and_then(capsys: pytest.CaptureFixture[str], now: list[float]) -> None:
    lines = Lines(err=False)
    measured = event("measured", done=12, planned=45, best=0.0015, remaining=125.0)
    for moment in (101.0, 129.0, 131.0, 140.0, 162.0):
        now[0] = moment
        lines.on_event(measured)
    told = f"{PLACE}: 12 of 45 timings, best 1.5 ms, about 2:05 left\n"
    assert capsys.readouterr().out == 2 * told  # after 31 and 62 seconds
    now[0] = 200.0
    lines.on_event(event("measured", done=1, planned=45, best=0.0015))
    assert capsys.readouterr().out.endswith("best 1.5 ms\n")


def test_display_has_four_lines(now: list[float]) -> None:
    display = Display()
    display.update(event("problem_started", planned=45))
    display.update(event("measured", done=1, planned=45, best=0.002, message="k [block=1]", elapsed=30, remaining=90))
    display.update(event("measured", done=2, planned=45, best=0.001, message="k [block=2]", elapsed=40, remaining=60))
    display.update(event("measured", done=3, planned=45, best=0.001, message="k [block=3]", elapsed=50, remaining=50))
    first, bar, doing, best = shown(display)
    assert first == PLACE
    assert bar.split(maxsplit=1)[1] == "50% 0:50 gone, about 0:50 left"
    assert len(bar.split()[0]) <= BAR_WIDTH
    assert doing == "timed 3/45  k [block=3]"
    assert best == "best so far: 1 ms  k [block=2]"  # and not the one timed last


def test_display_counts_on_between_events(now: list[float]) -> None:
    display = Display()
    display.update(event("measured", done=1, planned=9, best=1.0, elapsed=10.0, remaining=20.0))
    now[0] += 5.0
    assert display.times() == "0:15 gone, about 0:15 left"
    now[0] += 60.0
    assert display.times() == "1:15 gone, about 0:00 left"  # and never below nothing
    display.update(event("compiling", done=1, planned=9, elapsed=75.0))
    assert display.times() == "1:15 gone"


def test_best_begins_anew_with_every_problem() -> None:
    display = Display()
    display.update(event("measured", done=1, planned=9, best=0.001, message="k [block=1]"))
    display.update(event("problem_started"))
    assert display.best is None
    assert "best" not in " ".join(shown(display))
    display.update(event("measured", done=1, planned=9, best=0.001, message="k [block=9]"))
    assert display.best_name == "k [block=9]"


@pytest.mark.parametrize(
    ("seen", "text"),
    [
        (event("compiling", done=12, planned=40), "compiling 12/40"),
        (event("checking", message="k [block=1]"), "checking k [block=1]"),
        (event("problem_started"), "preparing"),
        (event("waiting"), "waiting"),
    ],
)
def test_display_says_what_is_done(seen: Event, text: str) -> None:
    display = Display()
    display.update(seen)
    assert text in shown(display)
    display.update(event("dropped", message="k: no"))  # says nothing about what is done now
    assert text in shown(display)


def test_bar_never_goes_back() -> None:
    """The time left is an estimate, and may grow."""
    display = Display()
    parts = []
    for elapsed, remaining in ((10, 10), (20, 60), (30, 30), (70, 10)):
        display.update(event("measured", done=1, planned=9, best=1.0, elapsed=elapsed, remaining=remaining))
        parts.append(display.part)
    assert parts == [0.5, 0.5, 0.5, 0.875]


def test_bar_goes_by_problems_where_the_time_left_is_not_known() -> None:
    display = Display()
    parts = []
    for seen in (
        event("problem_started"),
        event("measured", done=5, planned=10),
        event("measured", done=20, planned=10),
    ):
        display.update(seen)
        parts.append(display.part)
    assert parts == [0.25, 0.375, 0.5]


def test_empty_and_narrow_displays() -> None:
    assert shown(Display()) == [""]
    display = Display()
    display.update(event("measured", done=1, planned=9, best=1.0, message="k [" + "x" * 200 + "]"))
    assert len(shown(display, width=60)) == 4
    assert shown(display, width=60)[2].endswith("…")


def test_terminal_gets_the_display_and_the_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "is_terminal", lambda: True)
    with reporter(as_json=False) as on_event:
        on_event(event("measured", done=1, planned=9, best=1.0, message="k [block=1]"))
        on_event(event("problem_done", done=9, best=1.0, message="the default stays"))
    assert f"{PLACE}: 1 s after 9 measurements, the default stays\n" in capsys.readouterr().out
    with reporter(as_json=True) as on_event:
        on_event(event("warm"))
    printed = capsys.readouterr()
    assert (printed.out, "reused" in printed.err) == ("", True)


def test_every_kind_of_event_can_be_shown() -> None:
    display = Display()
    for kind, done in itertools.product(get_args(Kind), (0, 3)):
        display.update(event(kind, done=done))
        assert shown(display)
        assert line(event(kind, done=done)).startswith(PLACE)
    assert set(progress.TOLD) < set(get_args(Kind))
