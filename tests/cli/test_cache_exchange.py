"""`faops cache export | import | merge`: what the commands print, refuse and return."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from faops.autotune.cache import TuningCache
from faops.autotune.cache.entry import Entry
from faops.device import known
from tests.autotune.support import PROBLEM, make_entry
from tests.cli.conftest import Faops
from tests.cli.support import document, refused

H200, T4 = known("h200"), known("t4")


@pytest.fixture
def entries() -> list[Entry]:
    """Two entries, of two devices."""
    return [TuningCache().store(device, make_entry(device)) for device in (H200, T4)]


@pytest.fixture
def winners(faops: Faops, entries: list[Entry], tmp_path: Path) -> Path:
    """The file that an export of them gives; the cache is empty again."""
    path = tmp_path / "winners.json"
    assert faops("cache", "export", str(path)).exit_code == 0
    assert TuningCache().clear() == 2
    return path


def keys_in(path: Path) -> list[tuple[str, str]]:
    return [(entry["device"], entry["key"]) for entry in json.loads(path.read_text())["entries"]]


def test_export_writes_a_file(faops: Faops, entries: list[Entry], tmp_path: Path) -> None:
    path = tmp_path / "winners.json"
    assert faops("cache", "export", str(path)).stdout == f"wrote 2 entries to {path}\n"
    assert sorted(keys_in(path)) == sorted((entry.device, entry.key) for entry in entries)
    exported = document(faops("cache", "export", str(path), "--device", "h200", "--json"))
    assert exported["entries"] == [PROBLEM.key()] and exported["bytes"] == path.stat().st_size
    assert keys_in(path) == [(H200.identity, PROBLEM.key())]
    assert faops("cache", "export", str(path), "q128", "k128", "--device", "T4").exit_code == 0
    assert keys_in(path) == [(T4.identity, PROBLEM.key())]


def test_export_refuses(faops: Faops, entries: list[Entry], tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    refused(faops("cache", "export", str(path), "q999"), "'q999'", "faops cache ls")
    refused(faops("cache", "export", str(path), "--device", "tpu"), "'tpu'", H200.identity, T4.identity)
    refused(faops("cache", "export", "-", "--json"), "standard output", code=2)
    refused(faops("cache", "export", str(tmp_path / "no" / "place.json")), "cannot be written")
    path.write_text("my thesis")
    refused(faops("cache", "export", str(path)), str(path), "no exported file")
    assert path.read_text() == "my thesis"
    TuningCache().clear()
    refused(faops("cache", "export", str(tmp_path / "new.json")), "no entries", "faops tune")
    assert not (tmp_path / "new.json").exists()


def test_import_says_what_became_of_each(faops: Faops, winners: Path) -> None:
    planned = faops("cache", "import", str(winners), "--dry-run")
    assert "2 entries would be imported into" in planned.stdout
    assert TuningCache().entries() == []
    done = faops("cache", "import", str(winners))
    assert done.exit_code == 0
    heading, first, second, _, last = done.stdout.splitlines()
    assert heading.split() == ["key", "device", "reason"]
    assert first.split()[:2] == ["imported", PROBLEM.key()] and second.split()[0] == "imported"
    assert last == f"2 entries imported into {TuningCache().root}"
    again = faops("cache", "import", str(winners)).stdout
    assert "the same entry is there" in again and "0 entries imported" in again and again.endswith("; 2 kept\n")


def test_import_reports_as_json_and_fails_when_one_is_refused(faops: Faops, winners: Path) -> None:
    content = json.loads(winners.read_text())
    content["entries"][0]["p50"] = -1
    winners.write_text(json.dumps(content))
    result = faops("cache", "import", str(winners), "--json")
    assert result.exit_code == 1
    report = json.loads(result.stdout)
    assert (report["imported"], report["kept"], report["refused"], report["dry_run"]) == (1, 0, 1, False)
    assert report["entries"][0]["status"] == "refused"
    assert report["entries"][0]["name"] == f"{winners}, entry 1"
    assert "p50" in report["entries"][0]["reason"]
    text = faops("cache", "import", str(winners))
    assert text.exit_code == 1 and "1 kept, 1 refused" in text.stdout


def test_import_refuses_what_is_no_export(faops: Faops, tmp_path: Path) -> None:
    refused(faops("cache", "import", str(tmp_path / "missing")), "missing cannot be read", "No such file")
    (tmp_path / "half").write_text('{"kind": ')
    refused(faops("cache", "import", str(tmp_path / "half")), "half is not JSON")
    refused(faops("cache", "import", "-", input="[]"), "standard input was not written by `faops cache export`")
    refused(faops("cache", "import"), "FILE", code=2)


def test_an_export_without_entries_is_imported_as_such(faops: Faops, winners: Path) -> None:
    content = json.loads(winners.read_text())
    winners.write_text(json.dumps({**content, "entries": []}))
    assert faops("cache", "import", str(winners)).stdout == f"0 entries imported into {TuningCache().root}\n"


def test_through_a_pipe(faops: Faops, entries: list[Entry], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One command writes to standard output, another reads it from standard input."""
    text = faops("cache", "export", "-").stdout
    here = TuningCache().entries()
    monkeypatch.setenv("FAOPS_CACHE_DIR", str(tmp_path / "there"))
    assert document(faops("cache", "import", "-", "--json", input=text))["imported"] == 2
    assert TuningCache().entries() == here
    assert faops("cache", "export", "-").stdout == text


def test_merge_takes_directories_and_files(faops: Faops, winners: Path, tmp_path: Path) -> None:
    other = TuningCache(tmp_path / "other")
    other.store(H200, make_entry(H200))
    planned = document(faops("cache", "merge", str(other.root), str(winners), "--dry-run", "--json"))
    assert (planned["imported"], planned["kept"]) == (2, 1)
    assert TuningCache().entries() == []
    merged = document(faops("cache", "merge", str(other.root), str(winners), "--json"))
    assert (merged["imported"], merged["kept"], merged["refused"]) == (2, 1, 0)
    assert len(TuningCache().entries()) == 2
    refused(faops("cache", "merge", str(tmp_path)), "no cache of faops")
    refused(faops("cache", "merge"), "DIR|FILE", code=2)
