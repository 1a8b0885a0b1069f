"""`faops tune --from-misses`, and what `faops cache` says about misses."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

import faops as library
from faops.autotune import tuner
from faops.autotune.cache import TuningCache
from faops.device import detect
from tests.cli.conftest import Faops
from tests.cli.support import TINY, document, refused

NAMES = ("forward float32 b1 16x16 h2/2 d16 causal", "forward float32 b1 24x24 h2/2 d16")


def call(length: int, **options: Any) -> None:
    q, k, v = (torch.randn(1, length, 2, 16) for _ in range(3))
    library.attention(q, k, v, **options)


@pytest.fixture
def missed() -> None:
    """Two problems that this process ran untuned; the first is TINY."""
    call(16, causal=True)
    call(24)


def written() -> list[Path]:
    return sorted(TuningCache().root.rglob("misses/*"))


def test_misses_are_tuned_and_removed(faops: Faops, missed: None) -> None:
    assert len(written()) == 2
    result = faops("tune", "--from-misses")
    assert result.exit_code == 0, result.output
    assert all(f": {name}" not in result.stdout and name in result.stdout for name in NAMES)
    assert result.stdout.splitlines()[0].startswith("[1/2] forward float32 ")
    assert "2 tuned; " in result.stdout
    assert "waits" not in result.stdout and "wait for" not in result.stdout
    assert written() == []
    assert sorted(str(entry.attention_problem()) for entry in TuningCache().entries()) == sorted(NAMES)
    call(16, causal=True)
    call(24)
    assert written() == []


def test_nothing_to_do(faops: Faops) -> None:
    identity = detect("cpu").identity
    for arguments in ((), ("--dry-run",), ("--force",)):
        result = faops("tune", "--from-misses", *arguments)
        assert result.exit_code == 0
        assert result.stdout == f"nothing to tune: no problem that ran untuned waits on {identity}\n"
    tuned = document(faops("tune", "--from-misses", "--json"))
    assert (tuned["problems"], tuned["measurements"], tuned["misses_waiting"]) == ([], 0, 0)
    assert document(faops("tune", "--from-misses", "--dry-run", "--json"))["problems"] == []


def test_what_waits_on_another_device_is_told(faops: Faops) -> None:
    threads = torch.get_num_threads()
    identity = detect("cpu").identity
    try:
        torch.set_num_threads(threads + 1)
        call(16)
        other = detect("cpu").identity
    finally:
        torch.set_num_threads(threads)
    result = faops("tune", "--from-misses")
    assert result.stdout.splitlines() == [
        f"nothing to tune: no problem that ran untuned waits on {identity}",
        f"1 problem that ran untuned waits for `faops tune --from-misses` on {other}",
    ]
    assert len(written()) == 1


def test_dry_run_removes_nothing(faops: Faops, missed: None) -> None:
    rows = document(faops("tune", "--from-misses", "--dry-run", "--json"))["problems"]
    assert sorted(row["problem"]["seqlen_q"] for row in rows) == [16, 24]
    assert all(row["configs"] > 1 for row in rows)
    assert "2 of 2 problems to tune" in faops("tune", "--from-misses", "--dry-run").stdout
    assert len(written()) == 2
    assert TuningCache().entries() == []


def test_what_was_called_most_comes_first(faops: Faops, missed: None) -> None:
    def order() -> list[int]:
        rows = document(faops("tune", "--from-misses", "--dry-run", "--json"))["problems"]
        return [row["problem"]["seqlen_q"] for row in rows]

    for _ in range(64):
        call(16, causal=True)
    assert order() == [16, 24]
    for _ in range(1000):
        call(24)
    assert order() == [24, 16]


def test_only_what_has_no_valid_winner_yet(faops: Faops, missed: None) -> None:
    (kept,) = [path for path in written() if json.loads(path.read_text())["problem"]["seqlen_q"] == 16]
    text = kept.read_text()
    left = document(faops("tune", "--shape", TINY, "--json"))
    assert left["misses_waiting"] == 1
    assert not kept.exists()  # any way of tuning removes it
    kept.write_text(text)  # as if a process that had not seen the winner yet had written it again
    tuned = document(faops("tune", "--from-misses", "--force", "--json"))
    assert [row["problem"]["seqlen_q"] for row in tuned["problems"]] == [24]
    assert written() == []


def test_what_failed_is_told_and_kept(faops: Faops, missed: None, monkeypatch: pytest.MonkeyPatch) -> None:
    original = tuner.DeviceBench

    def bench(problem: Any, *rest: Any) -> Any:
        if problem.seqlen_q == 16:
            raise library.FaopsError("the fan fell off")
        return original(problem, *rest)

    monkeypatch.setattr(tuner.tune, "__kwdefaults__", {**tuner.tune.__kwdefaults__, "make_bench": bench})
    result = faops("tune", "--from-misses")
    assert result.exit_code == 1
    assert f"{NAMES[0]}: the fan fell off" in result.stdout
    assert "1 tuned, 1 failed" in result.stdout
    assert "1 problem that ran untuned waits for `faops tune --from-misses`" in result.stdout
    assert [json.loads(path.read_text())["problem"]["seqlen_q"] for path in written()] == [16]
    again = faops("tune", "--from-misses", "--json")
    assert again.exit_code == 1
    (row,) = json.loads(again.stdout)["problems"]
    assert (row["status"], json.loads(again.stdout)["misses_waiting"]) == ("failed", 1)


def test_what_was_finished_before_an_interrupt_is_removed(
    faops: Faops, missed: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = tuner._Run.tune_one
    done: list[Any] = []

    def interrupted(self: Any, place: Any) -> Any:
        if done:
            raise KeyboardInterrupt
        done.append(original(self, place))
        return done[0]

    monkeypatch.setattr(tuner._Run, "tune_one", interrupted)
    assert faops("tune", "--from-misses").exit_code == 130
    (left,) = written()
    assert json.loads(left.read_text())["key"] != done[0].problem.key()


def test_a_winner_that_cannot_be_stored_keeps_its_miss(
    faops: Faops, missed: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    (TuningCache().directory(detect("cpu")) / "entries").write_text("in the way")
    result = faops("tune", "--from-misses")
    assert result.exit_code == 1
    assert result.stdout.count("not stored") >= 2
    assert "2 problems that ran untuned wait" in result.stdout
    assert len(written()) == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--shape", TINY), "--shape and --from-misses"),
        (("--model", "gpt2"), "--model and --from-misses"),
        (("--plan", "x"), "--plan and --from-misses"),
        (("--hf-config", "x"), "--hf-config and --from-misses"),
        (("--batch", "2"), "--batch goes with --model"),
        (("--training",), "--training goes with --model"),
    ],
)
def test_misses_go_with_nothing_else(faops: Faops, arguments: tuple[str, ...], words: str) -> None:
    refused(faops("tune", "--from-misses", *arguments), words, code=2)


def test_a_device_that_is_not_there_is_refused(faops: Faops) -> None:
    refused(faops("tune", "--from-misses", "--device", "t4"), "'t4'", "a device of this machine")


def test_explaining_leaves_no_miss(faops: Faops) -> None:
    assert faops("explain", "--shape", TINY).exit_code == 0
    assert faops("explain", "--shape", TINY, "--device", "h200").exit_code == 0
    assert faops("doctor", "kernels").exit_code == 0
    assert written() == []


def test_ls_tells_how_many_wait_and_clear_removes_them(faops: Faops, missed: None) -> None:
    identity = detect("cpu").identity
    line = f"2 problems that ran untuned wait for `faops tune --from-misses` on {identity}\n"
    assert line in faops("cache", "ls").stdout
    assert document(faops("cache", "ls", "--json"))["misses"] == {identity: 2}
    old = written()[0].parents[2] / "other-software" / "misses"
    old.mkdir(parents=True)
    (old / "half.json").write_text("{")
    assert line in faops("cache", "ls").stdout  # these two only
    result = faops("cache", "clear", "--yes")
    assert result.stdout.startswith("removed 0 entries and 3 notes of problems that ran untuned from ")
    assert written() == []
    assert document(faops("cache", "ls", "--json"))["misses"] == {}
    assert "untuned" not in faops("cache", "clear", "--yes").stdout


def test_clear_of_one_entry_or_of_cubins_leaves_misses(faops: Faops, missed: None) -> None:
    assert faops("tune", "--shape", TINY).exit_code == 0
    (entry,) = TuningCache().entries()
    assert document(faops("cache", "clear", "--cubins", "--yes", "--json"))["misses"] == 0
    assert document(faops("cache", "clear", entry.key, "--yes", "--json"))["misses"] == 0
    assert len(written()) == 1
    assert document(faops("cache", "clear", "--yes", "--json")) == {
        "schema_version": 1, "command": "cache clear", "path": os.environ["FAOPS_CACHE_DIR"], "removed": 0, "misses": 1,
        "unfinished": 0,
    }  # fmt: skip


def test_a_miss_that_cannot_be_removed_is_told(faops: Faops, missed: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "unlink", refuse)
    refused(faops("cache", "clear", "--yes"), str(written()[0]), "Permission denied")
