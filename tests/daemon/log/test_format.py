"""How a line looks whatever it is given, and how it is read."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from faops.daemon.log.format import (
    DEEPEST,
    LARGEST,
    LONGEST,
    MOST_ITEMS,
    JsonFormatter,
    TextFormatter,
    plain,
    printable,
    render,
)

TEXT = st.text(st.characters(), max_size=30) | st.text("\n\r\x1b\x9b\u2028\ud800ab ", max_size=10)
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT | st.binary(max_size=5) | st.complex_numbers(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT | st.integers(), inner, max_size=3),
    max_leaves=8,
)


def record(message: str = "", **fields: Any) -> logging.LogRecord:
    made = logging.LogRecord("faops.daemon.part", logging.INFO, "", 0, "%s", (message,), None)
    made.event, made.fields = "event", fields
    return made


@contextmanager
def time_zone(name: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setenv("TZ", name)
        time.tzset()
        yield
    time.tzset()


@settings(max_examples=25, deadline=None)
@given(message=TEXT, name=TEXT, value=VALUES)
def test_any_value_makes_one_line_of_ascii_json(message: str, name: str, value: Any) -> None:
    line = JsonFormatter().format(record(message, **{name: value}))
    assert line.isascii() and line.isprintable()
    assert json.loads(line)["message"] == message


@settings(max_examples=25, deadline=None)
@given(message=TEXT, name=TEXT, value=VALUES)
def test_any_line_is_rendered_as_printable_text(message: str, name: str, value: Any) -> None:
    made = record(message, **{name: value})
    for text in (render(JsonFormatter().format(made)), TextFormatter().format(made)):
        assert all(line.isprintable() for line in text.split("\n"))


@settings(max_examples=25, deadline=None)
@given(st.text(max_size=50) | VALUES.map(lambda value: json.dumps(plain(value))))
def test_what_is_no_line_is_shown_as_it_is(text: str) -> None:
    shown = render(text)
    assert all(line.isprintable() for line in shown.split("\n"))
    if text.isprintable() and not text.lstrip().startswith("{"):
        assert shown == text


def test_values_keep_their_types_or_become_text() -> None:
    assert plain({"a": (1, 2.5, True, None), 3: {"x"}}) == {"a": [1, 2.5, True, None], "3": ["x"]}
    assert plain(Path("/tmp")) == "/tmp"
    assert [plain(value) for value in (math.inf, -math.inf, math.nan)] == ["inf", "-inf", "nan"]
    assert plain(2**70) == hex(2**70)
    assert plain(2**62) == 2**62


def test_a_value_without_a_text_is_named_by_its_type() -> None:
    class Mute:
        def __str__(self) -> str:
            raise RuntimeError

    assert plain([Mute()]) == ["(Mute without a text)"]


def test_huge_values_are_cut() -> None:
    assert plain("x" * LONGEST) == "x" * LONGEST
    assert plain("x" * (LONGEST + 1)) == "x" * LONGEST + f"... ({LONGEST + 1} characters)"
    assert plain(list(range(MOST_ITEMS + 5))) == [*range(MOST_ITEMS), "... 5 more"]
    assert plain({str(i): i for i in range(MOST_ITEMS + 5)})["..."] == "5 more"
    nested: Any = 0
    for _ in range(DEEPEST + 2):
        nested = [nested]
    assert plain(nested) == [[[["[[0]]"]]]]


def test_a_huge_message_is_cut_and_a_huge_traceback_keeps_its_end() -> None:
    line = json.loads(JsonFormatter().format(record("m" * 10_000, traceback="t" * 10_000 + "end")))
    assert line["message"] == "m" * LONGEST + "... (10000 characters)"
    assert line["traceback"].endswith("tend") and len(line["traceback"]) < LONGEST + 50


def test_a_line_that_is_too_long_loses_its_fields() -> None:
    line = JsonFormatter().format(record("said", **{f"f{i}": "x" * LONGEST for i in range(LARGEST // LONGEST + 1)}))
    assert len(line) < 1000
    content = json.loads(line)
    assert (content["event"], content["message"]) == ("event", "said")
    assert content["left_out"] > LARGEST


def test_a_line_is_rendered_in_local_time(monkeypatch: pytest.MonkeyPatch) -> None:
    line = json.dumps({
        "time": "2026-01-31T23:30:00.123Z", "level": "info", "part": "lane", "event": "job_done", "message": "1.34x",
        "job": 7, "words": "two words", "empty": "", "share": 0.5, "none": None, "list": [1, "a"],
    })  # fmt: skip
    with time_zone("EST-10", monkeypatch):
        assert render(line) == (
            '2026-02-01 09:30:00  INFO     job_done: 1.34x  job=7 words="two words" empty="" share=0.5 none=null '
            'list=[1, "a"]'
        )


def test_a_traceback_is_rendered_below_its_line() -> None:
    line = json.dumps({
        "time": "", "level": "error", "event": "defect", "message": "",
        "traceback": 'Traceback:\n  File "x"\nKeyError: \x1b',
    })  # fmt: skip
    assert render(line).split("\n")[1:] == ["    Traceback:", '      File "x"', "    KeyError: \\x1b"]
    assert render(line).split("\n")[0].endswith("ERROR    defect")


def test_text_that_a_terminal_would_obey_is_escaped() -> None:
    assert printable("a\x1b[2Jb\x9b1mc\r\n\u202ed é") == "a\\x1b[2Jb\\x9b1mc\\r\\n\\u202ed é"
