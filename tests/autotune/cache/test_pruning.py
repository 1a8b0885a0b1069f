"""`faops cache prune --stale`: what no call uses goes, and nothing else."""

from __future__ import annotations

import datetime
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from faops import registry
from faops.autotune.cache import TuningCache, environment, misses, pruning
from faops.autotune.cache.pruning import prune, stale
from faops.device import known
from faops.errors import CacheError

from ..support import PROBLEM, FakeKernel, make_entry, untuned

H200 = known("h200")
ELSEWHERE = {**environment.versions(), "torch": "0.1"}


def dims(number: int) -> Any:
    return replace(PROBLEM, head_dim=8 * number, head_dim_v=8 * number)


def reasons(cache: TuningCache, older_than: float = 0.0) -> dict[str, str]:
    """Why each stale file is stale, by its key, or its name where it has none."""
    return {item.key or item.path.name: item.reason for item in stale(cache, older_than)}


def days_ago(days: float) -> str:
    return (datetime.date.today() - datetime.timedelta(days=days)).isoformat()


@pytest.fixture
def stored(cache: TuningCache, kernel: FakeKernel) -> dict[str, str]:
    """Keys of entries that calls use and that they do not, by what is the matter with them."""
    entries = {
        "used": make_entry(H200, dims(1)),
        "changed": make_entry(H200, dims(2), source_hash="other"),
        "gone": make_entry(H200, dims(3), kernel="fake.gone"),
        "software": make_entry(H200, dims(4), environment=ELSEWHERE),
    }
    for entry in entries.values():
        cache.store(H200, entry)
    return {name: entry.key for name, entry in entries.items()}


def test_what_no_call_uses_is_removed(cache: TuningCache, stored: dict[str, str]) -> None:
    assert reasons(cache) == {
        stored["changed"]: "kernel changed",
        stored["gone"]: "kernel gone",
        stored["software"]: "other software",
    }
    assert len(prune(cache, stale(cache))) == 3
    assert [entry.key for entry in cache.entries()] == [stored["used"]]
    assert stale(cache) == []
    assert [path.name for path in (cache.base / H200.identity).iterdir()] == [environment.directory_name()]


def test_a_kernel_whose_backend_fails_to_load_may_come_back(
    cache: TuningCache, stored: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "_failures", {"fake": "ImportError: not today"})
    assert stored["gone"] not in reasons(cache)
    assert stored["changed"] in reasons(cache)


def test_an_age_spares_what_is_younger(cache: TuningCache, kernel: FakeKernel) -> None:
    for days in (0, 10, 100):
        cache.store(H200, make_entry(H200, dims(days + 1), source_hash="other", date=days_ago(days)))
        cache.store(H200, make_entry(H200, dims(days + 2), date=days_ago(days)))
    assert set(reasons(cache, 10)) == {dims(11).key(), dims(101).key()}
    assert set(reasons(cache, 90)) == {dims(101).key()}
    assert reasons(cache, 101) == {}


def test_what_cannot_be_read_stays(cache: TuningCache, kernel: FakeKernel) -> None:
    """Nobody can tell whether it is of use to somebody: a newer faops, for one."""
    path = cache.store(H200, make_entry(H200, environment=ELSEWHERE)).path
    assert path is not None
    path.write_text('{"schema": 99}')
    assert prune(cache, stale(cache)) == []
    assert path.exists()


def write(path: Path, days: float) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("text")
    os.utime(path, (time.time() - 86400 * days,) * 2)
    return path


def test_misses_and_journals_of_other_software_go_too(cache: TuningCache, kernel: FakeKernel) -> None:
    untuned(PROBLEM, H200)
    here, there = (cache.base / H200.identity / name for name in (environment.directory_name(), "schema-1_torch-0.1"))
    names = ("misses/a.json", "hits/a.txt", "journal/b.jsonl", "run.json")
    kept = [write(here / name, 50) for name in names]
    old = [write(there / name, 50) for name in names]
    write(there / "manifest.json", 50)
    unknown = write(there / "notes.txt", 50)
    assert {item.path for item in stale(cache)} == set(old)
    assert stale(cache, 51) == []
    prune(cache, stale(cache))
    assert all(path.exists() for path in [*kept, unknown, there / "manifest.json"])
    assert len(misses.waiting(cache, H200.identity)) == 1
    unknown.unlink()
    prune(cache, [])
    assert not there.exists()


def test_abandoned_temporary_files_go(cache: TuningCache, kernel: FakeKernel) -> None:
    directory = cache.directory(H200) / "entries"
    old, young = write(directory / ".old.tmp", 1), write(directory / ".young.tmp", 0)
    assert reasons(cache) == {".old.tmp": "left by a killed process"}
    prune(cache, stale(cache))
    assert young.exists() and not old.exists()


def test_an_entry_that_was_replaced_meanwhile_stays(cache: TuningCache, stored: dict[str, str]) -> None:
    found = stale(cache)
    fresh = make_entry(H200, dims(2))
    cache.store(H200, fresh)
    assert stored["changed"] not in {item.key for item in prune(cache, found)}
    assert cache.load(H200, dims(2)) == fresh


def test_a_file_that_cannot_be_removed_is_told_after_all_others(
    cache: TuningCache, stored: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = stale(cache)
    original = Path.unlink

    def unlink(path: Path, missing_ok: bool = False) -> None:
        if path == found[0].path:
            raise PermissionError(13, "Permission denied")
        original(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", unlink)
    with pytest.raises(CacheError, match="Permission denied"):
        prune(cache, found)
    assert [item.path for item in found if item.path.exists()] == [found[0].path]


def test_a_directory_that_is_used_again_stays(
    cache: TuningCache, stored: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another environment stores an entry while its directory is being removed."""
    found = stale(cache)
    original: Callable[[Path], None] = Path.rmdir
    entry = make_entry(H200, dims(9), environment=ELSEWHERE)

    def rmdir(path: Path) -> None:
        original(path)
        if path.name == "entries" and not cache.place(entry).exists():
            monkeypatch.setattr(Path, "rmdir", original)
            cache.store(H200, entry)

    monkeypatch.setattr(Path, "rmdir", rmdir)
    prune(cache, found)
    assert entry in cache.entries()


def test_an_empty_cache(cache: TuningCache) -> None:
    assert stale(cache) == [] and prune(cache, []) == []
    assert not cache.root.exists()


def test_age_of_a_file_in_days(tmp_path: Path) -> None:
    assert pruning._age(write(tmp_path / "file", 3)) == pytest.approx(3, abs=0.01)
    assert pruning._age(tmp_path / "missing") == 0.0
