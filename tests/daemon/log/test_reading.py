"""The last lines of the log, and those that are written while somebody reads."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from faops.daemon.log import follow, reading, tail
from faops.daemon.log.file import numbered


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are many blocks long."""
    monkeypatch.setattr(reading, "BLOCK", 7)
    monkeypatch.setattr(reading, "LOOK_SECONDS", 0.0)


class Reader:
    """Reads with follow() as far as there is something to read."""

    def __init__(self, path: Path, count: int) -> None:
        self._followed = follow(path, count)

    def next(self, count: int) -> list[str]:
        return [next(self._followed) for _ in range(count)]

    def close(self) -> None:
        self._followed.close()  # type: ignore[attr-defined]


def append(path: Path, text: str) -> None:
    with open(path, "a") as file:
        file.write(text)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lines=st.lists(st.text("ab\u2028é", max_size=20), max_size=12), count=st.integers(-1, 14), older=st.integers(0, 12)
)
def test_tail_gives_the_last_lines_of_all_files(lines: list[str], count: int, older: int) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "daemon.log"
        numbered(path, 1).write_text("".join(f"{line}\n" for line in lines[:older]), newline="")
        path.write_text("".join(f"{line}\n" for line in lines[older:]), newline="")
        assert tail(path, count) == (lines[-count:] if count > 0 else [])


def test_tail_passes_over_files_that_are_not_there(path: Path) -> None:
    assert tail(path, 5) == []
    numbered(path, 2).write_text("old\n")
    assert tail(path, 5) == ["old"]


def test_tail_shows_a_line_that_is_not_whole_and_bytes_that_are_no_text(path: Path) -> None:
    path.write_bytes(b"one\n\xfftwo")
    assert tail(path, 5) == ["one", "�two"]


def test_follow_gives_the_last_lines_and_then_new_ones(path: Path) -> None:
    numbered(path, 1).write_text("zero\n")
    path.write_text("one\ntwo\n")
    reader = Reader(path, count=3)
    assert reader.next(3) == ["zero", "one", "two"]
    append(path, "three\nfour\n")
    assert reader.next(2) == ["three", "four"]
    append(path, "five\n")
    assert reader.next(1) == ["five"]
    reader.close()


def test_follow_alone_gives_new_ones_only(path: Path) -> None:
    path.write_text("a line that is longer than a block\nhal")
    looks = iter([False, False, True])
    followed = follow(path, stopped=lambda: bool(append(path, "f\n")) or next(looks))
    assert list(followed) == ["half", "f", "f"]


def test_what_was_written_before_the_end_is_told(path: Path) -> None:
    path.touch()
    assert list(follow(path, stopped=lambda: not append(path, "last\n"))) == ["last"]


def test_follow_goes_on_after_a_rotation(path: Path) -> None:
    path.write_text("one\n")
    reader = Reader(path, count=1)
    assert reader.next(1) == ["one"]
    append(path, "two\n")
    path.rename(numbered(path, 1))
    path.write_text("three\n")
    assert reader.next(2) == ["two", "three"]
    append(path, "four\n")
    assert reader.next(1) == ["four"]
    reader.close()


def test_follow_waits_for_a_log_that_is_not_there(path: Path) -> None:
    steps = iter([lambda: None, lambda: append(path, "one\n"), lambda: None])

    def stopped() -> bool:
        step = next(steps, None)
        if step:
            step()
        return step is None

    assert list(follow(path, stopped=stopped)) == ["one"]


def test_follow_survives_a_log_that_is_removed_or_cut_short(path: Path) -> None:
    path.write_text("one\ntwo\n")
    texts = iter(["", "three\n", None, "four\nhal", "five\n"])

    def stopped() -> bool:
        text = next(texts, "end")
        if text == "end":
            return True
        path.write_text(text) if text is not None else path.unlink()
        return False

    assert list(follow(path, count=1, stopped=stopped)) == ["two", "three", "four", "five"]
