"""The hours of the day in which the daemon tunes."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from faops.daemon.gate.window import Window

MINUTES = st.integers(0, 24 * 60 - 1)


@contextmanager
def clocks_of(place: str) -> Iterator[None]:
    """Local time is that of ``place``."""
    before = os.environ.get("TZ")
    os.environ["TZ"] = place
    time.tzset()
    try:
        yield
    finally:
        if before is None:
            del os.environ["TZ"]
        else:
            os.environ["TZ"] = before
        time.tzset()


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("22:00-06:00", "22:00-06:00"),
        ("9:30-17:05", "09:30-17:05"),
        (" 00:00 - 23:59\n", "00:00-23:59"),
        ("18:00-24:00", "18:00-00:00"),
    ],
)
def test_what_can_be_said(text: str, read: str) -> None:
    assert str(Window.parse(text)) == read
    assert Window.parse(read) == Window.parse(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "22:00",
        "22-06",
        "22:00-",
        "night",
        "22:00-06:00-07:00",
        "22:00–06:00",
        "-1:00-02:00",
        "22:0-06:00",
        "022:00-6:00",
    ],
)
def test_what_is_no_range(text: str) -> None:
    with pytest.raises(ValueError, match="expected hours of the day such as 22:00-06:00"):
        Window.parse(text)


@pytest.mark.parametrize("text", ["24:00-06:00", "22:60-06:00", "22:00-24:01", "22:00-25:00", "10:00-11:99"])
def test_what_no_clock_shows(text: str) -> None:
    with pytest.raises(ValueError, match="from 00:00 to 24:00"):
        Window.parse(text)


@pytest.mark.parametrize("text", ["06:00-06:00", "00:00-24:00", "0:00-00:00"])
def test_an_empty_range_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="two different hours"):
        Window.parse(text)


@settings(max_examples=50)
@given(MINUTES, MINUTES, MINUTES)
def test_it_holds_the_minutes_from_its_start_until_just_before_its_end(start: int, end: int, minute: int) -> None:
    if start == end:
        return
    held, passing = set(), start
    while passing != end:
        held.add(passing)
        passing = (passing + 1) % (24 * 60)
    noon = datetime(2026, 3, 3) + timedelta(minutes=minute, seconds=59)
    assert Window(start, end).holds(noon.timestamp()) == (minute in held)


def utc(day: int, hour: int, minute: int = 0, month: int = 3) -> float:
    return datetime(2026, month, day, hour, minute, tzinfo=timezone.utc).timestamp()


def test_it_goes_by_local_time() -> None:
    night = Window.parse("22:00-06:00")
    with clocks_of("UTC0"):
        assert night.holds(utc(3, 22)) and not night.holds(utc(3, 21, 59))
    with clocks_of("EAST-9"):
        assert night.holds(utc(3, 13)) and not night.holds(utc(3, 12, 59))
        assert night.holds(utc(3, 20, 59)) and not night.holds(utc(3, 21))


# Clocks go forward from 2 to 3 on 29 March, at 1 UTC, and back from 3 to 2 on 25 October, at 1 UTC.
CENTRAL = "CET-1CEST,M3.5.0,M10.5.0/3"


def test_on_the_day_that_has_23_hours() -> None:
    with clocks_of(CENTRAL):
        early = Window.parse("01:30-03:30")
        assert [early.holds(utc(29, 0, minute)) for minute in (29, 30, 59)] == [False, True, True]
        assert [early.holds(utc(29, 1, minute)) for minute in (0, 29, 30)] == [True, True, False]
        skipped = Window.parse("02:00-03:00")
        assert not any(skipped.holds(utc(29, 0) + 60 * minute) for minute in range(180))


def test_on_the_day_that_has_25_hours() -> None:
    with clocks_of(CENTRAL):
        twice = Window.parse("02:00-03:00")
        held = [minute for minute in range(-120, 240) if twice.holds(utc(25, 0, month=10) + 60 * minute)]
        assert held == list(range(120))
