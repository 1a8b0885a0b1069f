"""Groups cache and settings."""

from __future__ import annotations

import errno
import os
from collections import namedtuple
from pathlib import Path

import pytest

from faops.autotune.cache import TuningCache
from faops.autotune.cache.entry import file_name
from faops.doctor import cache, results, settings
from faops.doctor.check import Check, perform


@pytest.fixture(autouse=True)
def no_other_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """The seed of the test run is an FAOPS_* variable too."""
    monkeypatch.delenv("FAOPS_TEST_SEED", raising=False)


@pytest.fixture
def directory() -> Path:
    return Path(os.environ["FAOPS_CACHE_DIR"])


def test_missing_directory_is_fine_and_stays_missing(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAOPS_CACHE_DIR", str(tmp_path / "a" / "b"))
    result = cache.check_directory()
    assert (result.status, result.summary) == ("ok", f"{tmp_path}/a/b can be created")
    assert not (tmp_path / "a").exists()


def test_existing_directory_is_left_as_it_was(directory: Path) -> None:
    directory.mkdir()
    (directory / "mine").write_text("kept")
    result = cache.check_directory()
    assert (result.status, result.summary) == ("ok", f"{directory} can be written")
    assert [path.name for path in directory.iterdir()] == ["mine"]


def test_directory_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FAOPS_CACHE_DIR", str(tmp_path / "file" / "cache"))
    result = cache.check_directory()
    assert result.status == "fail"
    assert f"{tmp_path}/file/cache cannot be written: Not a directory" in result.summary
    assert result.fix.startswith("export FAOPS_CACHE_DIR=")


def test_full_disk(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    result = cache.check_directory()
    assert result.status == "fail"
    assert "No space left on device" in result.summary
    assert not directory.exists()


def test_no_entries() -> None:
    assert results.check_entries().status == "ok"


def test_unreadable_entries_are_counted_and_named(directory: Path) -> None:
    place = TuningCache().base / "device" / "environment" / "entries"
    place.mkdir(parents=True)
    broken = place / file_name("key")
    broken.write_text('{"schema": 1, "key"')
    (finding,) = perform([Check("cache.entries", "cache", "", results.check_entries)])
    result = finding.result
    assert result.status == "warn"
    assert "1 of 1" in result.summary
    assert str(broken) in result.details
    assert result.fix == f"rm -r '{broken}'"
    assert any("is not used" in detail for detail in result.details)


Usage = namedtuple("Usage", "total used free")


@pytest.mark.parametrize(("free", "status"), [(10**12, "ok"), (50 * 2**20, "warn")])
def test_space(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, free: int, status: str) -> None:
    seen = []

    def usage(path: Path) -> Usage:
        seen.append(path)
        return Usage(10**13, 0, free)

    monkeypatch.setattr("shutil.disk_usage", usage)
    assert cache.check_space().status == status
    assert seen == [tmp_path]


def test_settings_without_a_file() -> None:
    result = settings.check_values()
    assert result.status == "ok"
    assert os.environ["FAOPS_CONFIG"] in result.summary


@pytest.mark.parametrize("written", ["tuning: maybe\n", "nonsense: 1\n", "- a\n", "a: [\n"])
def test_broken_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: str) -> None:
    path = tmp_path / "broken.yaml"
    monkeypatch.setenv("FAOPS_CONFIG", str(path))
    path.write_text(written)
    result = settings.check_values()
    assert result.status == "fail"
    assert str(path) in result.summary
    assert result.fix.startswith(f"edit '{path}'")


def test_good_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "good.yaml"
    monkeypatch.setenv("FAOPS_CONFIG", str(path))
    path.write_text("tuning: false\n")
    assert settings.check_values().summary == f"{path} is read"


def test_broken_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAOPS_TUNING", "perhaps")
    result = settings.check_values()
    assert (result.status, result.fix) == ("fail", "unset FAOPS_TUNING")


def test_unknown_variable_and_what_was_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    assert settings.check_variables().status == "ok"
    monkeypatch.setenv("FAOPS_BACKEMD", "torch")
    result = settings.check_variables()
    assert (result.status, result.fix) == ("warn", "unset FAOPS_BACKEMD")
    assert result.details == ("FAOPS_BACKEMD: did you mean FAOPS_BACKEND?",)


@pytest.mark.parametrize(
    ("name", "status"), [("", "ok"), ("torch", "ok"), ("torch.blockwise", "ok"), ("cudnn", "fail")]
)
def test_forced_backend(monkeypatch: pytest.MonkeyPatch, name: str, status: str) -> None:
    monkeypatch.setenv("FAOPS_BACKEND", name)
    result = settings.check_backend()
    assert result.status == status
    assert result.fix == ("" if status == "ok" else "unset FAOPS_BACKEND")


@pytest.mark.parametrize(
    ("written", "lines"),
    [
        ("# mine\ntuning: 1\nbackemd: torch\n", ("line 3: backemd: did you mean backend?",)),
        ("backend: torch\ntuning: maybe\ncheck_values: no\nrecord_misses: so\n",
         ("line 2: tuning: maybe: expected 0 or 1", "line 4: record_misses: so: expected 0 or 1")),
        ("xyz: 1\n", ("line 1: xyz",)),
        ("- a\n", ()),
    ],
)  # fmt: skip
def test_wrong_lines_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: str, lines: object) -> None:
    path = tmp_path / "broken.yaml"
    monkeypatch.setenv("FAOPS_CONFIG", str(path))
    path.write_text(written)
    assert settings.check_values().details == lines


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOLCK, "No locks available"), "files cannot be locked"),
        (BlockingIOError(errno.EWOULDBLOCK, "held"), "a lock that nobody holds cannot be had"),
    ],
)
def test_locks_that_do_not_work(monkeypatch: pytest.MonkeyPatch, error: OSError, words: str) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise error

    assert cache.check_locks().status == "ok"
    monkeypatch.setattr("fcntl.flock", refuse)
    result = cache.check_locks()
    assert (result.status, result.fix) == ("warn", cache.ELSEWHERE)
    assert result.summary.startswith(words)
