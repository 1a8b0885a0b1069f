"""`faops cache ls | show | clear | cubins | prune`."""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from faops_cli.main import command_line

from faops.autotune.cache import TuningCache
from faops.autotune.cache.entry import Entry
from faops.backends.cuda_raw import cubin_cache, nvrtc
from faops.backends.cuda_raw.nvrtc import Compiled
from faops.backends.cuda_raw.source import Source
from faops.backends.cuda_raw.targets import Target
from faops.device import detect
from tests.cli.conftest import Faops
from tests.cli.support import TINY, document, refused

OTHER = "sq=8,sk=24,h=2,d=16,dtype=float32"


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with two entries that were really tuned, for copies."""
    folder = tmp_path_factory.mktemp("tuned")
    shapes = ["--shape", TINY, "--shape", OTHER]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FAOPS_CACHE_DIR", str(folder))
        patch.setattr("faops.autotune.tuner.foreign_cores", lambda seconds: 0.0)
        assert CliRunner().invoke(command_line, ["tune", "--no-isolate", *shapes]).exit_code == 0
    return folder


@pytest.fixture
def entries(tuned: Path) -> list[Entry]:
    shutil.copytree(tuned, os.environ["FAOPS_CACHE_DIR"])
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
    assert shown == {**shown, **entries[0].as_dict(), "path": str(entries[0].path)}
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


def test_clear_removes_what_an_unfinished_run_has_measured(faops: Faops, entries: list[Entry]) -> None:
    path = entries[0].path
    assert path is not None
    directory = path.parents[1]
    (directory / "journal").mkdir(exist_ok=True)
    unfinished = [directory / "journal" / "one.jsonl", directory / "journal" / "two.jsonl", directory / "run.json"]
    for file in unfinished:
        file.write_text("whatever")
    faops("cache", "clear", entries[1].key, "--yes")
    assert all(file.exists() for file in unfinished)
    said = faops("cache", "clear", "--yes").stdout
    assert said.startswith("removed 1 entry and what was measured of 2 unfinished problems from ")
    assert not any(file.exists() for file in unfinished)


def test_clear_one(faops: Faops, entries: list[Entry]) -> None:
    result = faops("cache", "clear", entries[1].key, "--yes")
    assert result.stdout.startswith("removed 1 entry from ")
    assert [entry.key for entry in TuningCache().entries()] == [entries[0].key]


@pytest.mark.parametrize(("answer", "code", "left"), [("n\n", 1, 2), ("y\n", 0, 0)])
def test_clear_asks_on_a_terminal(
    faops: Faops, entries: list[Entry], monkeypatch: pytest.MonkeyPatch, answer: str, code: int, left: int
) -> None:
    monkeypatch.setattr("faops_cli.cache.clear._can_ask", lambda: True)
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


# --- compiled kernels -------------------------------------------------------------------------------------------------

CONSTANTS = """\
constexpr int TILE_M = 128;
constexpr bool CAUSAL = true;
constexpr bool ALIBI = false;
constexpr int BIAS = 0;
"""


@pytest.fixture
def cubins(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Three files as the cache writes them, the oldest first, with 300 kB of made-up code each; no compiler runs."""

    def compile(source: Source, target: Target) -> Compiled:
        registers = None if target.kind == "ptx" else 168
        return Compiled(bytes(300_000), target, "log", 0.5, registers, spill_store_bytes=None if not registers else 24)

    monkeypatch.setattr(nvrtc, "compile", compile)
    monkeypatch.setattr(nvrtc, "version_text", lambda: "13.0")
    cubin_cache.forget()
    made: list[Path] = []
    for index, (name, target) in enumerate((("new", "sm_80"), ("new", "compute_80"), ("other", "sm_90a"))):
        source = Source(name, "entry", (("specialization.cuh", CONSTANTS if index < 2 else ""),), "", 32)
        cubin_cache.compile_cached(source, Target(target))
        (path,) = set(cubin_cache.directory().glob("*.txt")) - set(made)
        os.utime(path, (1000.0 + index, 1000.0 + index))
        made.append(path)
    cubin_cache.forget()
    return made


def test_ls_counts_compiled_kernels(faops: Faops, cubins: list[Path]) -> None:
    size = sum(path.stat().st_size for path in cubins)
    counted = document(faops("cache", "ls", "--json"))["cubins"]
    assert counted == {"path": str(cubins[0].parent), "count": 3, "bytes": size}
    assert f"3 compiled kernels, 1.1 MiB, in {cubins[0].parent}\n" in faops("cache", "ls").stdout


def test_no_compiled_kernels(faops: Faops) -> None:
    assert "compiled kernel" not in faops("cache", "ls").stdout
    assert faops("cache", "cubins").stdout == f"no compiled kernels in {cubin_cache.directory()}\n"
    assert document(faops("cache", "cubins", "--json"))["cubins"] == []
    assert faops("cache", "prune").stdout.startswith("nothing to remove; 0 compiled kernels, 0 B, of at most 512.0 MiB")


def test_cubins_lists_them(faops: Faops, cubins: list[Path]) -> None:
    listed = document(faops("cache", "cubins", "--json"))["cubins"]
    assert [(row["name"], row["target"], row["registers"]) for row in listed] == [
        ("new", "compute_80", None),
        ("new", "sm_80", 168),
        ("other", "sm_90a", 168),
    ]
    assert listed[1]["specialization"] == {"TILE_M": "128", "CAUSAL": "true", "ALIBI": "false", "BIAS": "0"}
    assert {row["path"] for row in listed} == {str(path) for path in cubins}
    assert "log" not in listed[0]
    heading, ptx, cubin, other, *_ = faops("cache", "cubins").stdout.splitlines()
    today = time.strftime("%Y-%m-%d")
    assert heading.split()[:4] == ["kernel", "target", "registers", "spilled"]
    assert ptx.split()[:6] == ["new", "compute_80", "-", "-", "293.0", "KiB"]
    assert cubin.split() == ["new", "sm_80", "168", "24", "293.0", "KiB", today, "TILE_M=128", "CAUSAL"]
    assert other.split()[-1] == "-"


def test_cubins_mentions_files_that_cannot_be_read(faops: Faops, cubins: list[Path]) -> None:
    cubins[0].write_text("half")
    text = faops("cache", "cubins").stdout
    assert "1 file cannot be read" in text
    assert "3 compiled kernels" in text


def test_prune_keeps_what_was_used_last(faops: Faops, cubins: list[Path]) -> None:
    assert faops("cache", "prune").stdout.startswith("nothing to remove; 3 compiled kernels, 1.1 MiB, of at most 512.0")
    each = cubins[0].stat().st_size
    pruned = document(faops("cache", "prune", "--max-mb", "1", "--json"))
    assert (pruned["removed"], pruned["freed_bytes"], pruned["limit_bytes"]) == (1, each, 2**20)
    assert pruned["left"]["count"] == 2
    assert [path.exists() for path in cubins] == [False, True, True]
    assert faops("cache", "prune", "--max-mb", "0").stdout.startswith("removed 2 compiled kernels, 782.0 KiB; 0 ")
    assert cubin_cache.usage() == (0, 0)


def test_prune_takes_the_setting_and_refuses_nonsense(
    faops: Faops, cubins: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    refused(faops("cache", "prune", "--max-mb", "-1"), "--max-mb", code=2)
    monkeypatch.setenv("FAOPS_CUBIN_CACHE_MB", "1")
    assert document(faops("cache", "prune", "--json"))["removed"] == 1
    monkeypatch.setenv("FAOPS_CUBIN_CACHE_MB", "lots")
    refused(faops("cache", "prune"), "FAOPS_CUBIN_CACHE_MB='lots'", "whole number")


def test_clear_takes_either_entries_or_cubins(
    faops: Faops, entries: list[Entry], cubins: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    refused(faops("cache", "clear", "--cubins"), "--yes", code=2)
    refused(faops("cache", "clear", "q16", "--cubins", "--yes"), "no KEY", code=2)
    assert document(faops("cache", "clear", "--cubins", "--yes", "--json"))["removed"] == 3
    assert cubin_cache.usage() == (0, 0)
    assert len(TuningCache().entries()) == 2
    assert faops("cache", "clear", "--cubins", "--yes").stdout.startswith("removed 0 compiled kernels from ")


def test_clear_of_entries_leaves_cubins(faops: Faops, entries: list[Entry], cubins: list[Path]) -> None:
    assert document(faops("cache", "clear", "--yes", "--json"))["removed"] == 2
    assert cubin_cache.usage()[0] == 3
