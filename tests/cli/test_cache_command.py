"""`faops cache ls | show | clear`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from faops.autotune.cache import TuningCache
from faops.autotune.entry import Entry
from faops.device import detect
from tests.cli.conftest import Faops
from tests.cli.support import TINY, document, refused

OTHER = "sq=8,sk=24,h=2,d=16,dtype=float32"


@pytest.fixture
def entries(faops: Faops) -> list[Entry]:
    """Two entries that were really tuned."""
    assert faops("tune", "--shape", TINY, "--shape", OTHER).exit_code == 0
    found = TuningCache().entries()
    assert len(found) == 2
    return found


def test_empty_cache(faops: Faops) -> None:
    assert "no entries in" in faops("cache", "ls").stdout
    assert document(faops("cache", "ls", "--json"))["entries"] == []


def test_ls_lists_all(faops: Faops, entries: list[Entry]) -> None:
    listed = document(faops("cache", "ls", "--json"))["entries"]
    assert {row["key"] for row in listed} == {entry.key for entry in entries}
    assert all(row["used"] for row in listed)
    text = faops("cache", "ls").stdout
    for entry in entries:
        assert entry.key in text
        assert entry.kernel in text
        assert entry.date in text
    assert "2 entries in" in text


def test_ls_marks_entries_of_a_changed_kernel(faops: Faops, entries: list[Entry]) -> None:
    TuningCache().store(detect("cpu"), replace(entries[0], source_hash="0" * 12))
    assert "kernel changed" in faops("cache", "ls").stdout
    listed = document(faops("cache", "ls", "--json"))["entries"]
    assert {row["key"]: row["used"] for row in listed} == {entries[0].key: False, entries[1].key: True}


def test_show_prints_everything(faops: Faops, entries: list[Entry]) -> None:
    (shown,) = document(faops("cache", "show", entries[0].key, "--json"))["entries"]
    assert shown == {**entries[0].as_dict(), "path": str(entries[0].path)}
    text = faops("cache", "show", entries[0].key).stdout
    assert str(entries[0].path) in text
    for timing in entries[0].timings:
        assert f"{timing.kernel}" in text
        assert str(timing.config) in text


def test_show_takes_part_of_a_key(faops: Faops, entries: list[Entry]) -> None:
    (shown,) = document(faops("cache", "show", "k16/", "--json"))["entries"]
    assert "/k16/" in shown["key"]


def test_show_refuses_unknown_and_ambiguous_keys(faops: Faops, entries: list[Entry]) -> None:
    refused(faops("cache", "show", "q999"), "'q999'", "faops cache ls")
    refused(faops("cache", "show", "forward"), "2 keys", entries[0].key, entries[1].key)


def test_clear_asks_for_yes_without_a_terminal(faops: Faops, entries: list[Entry]) -> None:
    refused(faops("cache", "clear"), "--yes", code=2)
    assert len(TuningCache().entries()) == 2


def test_clear_everything(faops: Faops, entries: list[Entry]) -> None:
    assert document(faops("cache", "clear", "--yes", "--json"))["removed"] == 2
    assert TuningCache().entries() == []


def test_clear_one(faops: Faops, entries: list[Entry]) -> None:
    result = faops("cache", "clear", entries[1].key, "--yes")
    assert result.stdout.startswith("removed 1 entry from ")
    assert [entry.key for entry in TuningCache().entries()] == [entries[0].key]


@pytest.mark.parametrize(("answer", "code", "left"), [("n\n", 1, 2), ("y\n", 0, 0)])
def test_clear_asks_on_a_terminal(
    faops: Faops, entries: list[Entry], monkeypatch: pytest.MonkeyPatch, answer: str, code: int, left: int
) -> None:
    monkeypatch.setattr("faops_cli.cache._can_ask", lambda: True)
    result = faops("cache", "clear", input=answer)
    assert result.exit_code == code
    assert "Remove all entries in" in result.stderr
    assert len(TuningCache().entries()) == left


@pytest.mark.filterwarnings("default::faops.errors.FaopsWarning")
def test_truncated_entry_is_a_warning_and_clear_removes_it(faops: Faops, entries: list[Entry]) -> None:
    path = entries[0].path
    assert path is not None
    path.write_text(path.read_text()[:100])
    result = faops("cache", "ls")
    assert result.exit_code == 0
    assert result.stderr.startswith(f"warning: tuning cache: {path} is not used")
    assert "1 entry in" in result.stdout
    assert document(faops("cache", "clear", "--yes", "--json"))["removed"] == 2


def test_cache_directory_that_is_no_directory(faops: Faops, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FAOPS_CACHE_DIR", str(tmp_path / "file"))
    assert "no entries in" in faops("cache", "ls").stdout
