"""The benchmark of the tuning cache: what it times is what it says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import lookup, record
from benchmarks.harness import Effort
from faops import registry
from faops.autotune.cache import TuningCache
from faops.device import detect

ONCE = Effort(0.0, min_rounds=1, warmup_rounds=0)
KINDS = {f"{kind}, {state}" for kind in ("exact", "near", "none") for state in ("first", "known")}


def test_a_thousand_problems_have_keys_of_their_own() -> None:
    keys = [problem.key() for problem in lookup.problems(1000)]
    assert len(set(keys)) == len(keys) == 1000
    assert lookup.PROBLEM.key() in keys and lookup.NEAR.key() not in keys and lookup.LONELY.key() not in keys


def test_the_entries_are_as_large_as_real_ones() -> None:
    kernel = registry.get(lookup.KERNEL)
    assert kernel is not None
    directory = lookup.fill(3, kernel, detect("cpu"))
    assert directory is not None and len(TuningCache().entries()) == 3
    assert all(path.stat().st_size > 5000 for path in directory.glob("*.json"))


@pytest.mark.parametrize("count", [0, 3])
def test_every_kind_of_look_up_is_timed(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(lookup, "CALLS", 2)
    found = lookup.measure(count, ONCE)
    kinds = {*KINDS, "changed"} if count else {"none, first", "none, known"}
    assert found["entries"] == count
    assert set(found["calls"]) == {*kinds, "recheck", "repeated"}
    assert all(one["n"] == 1 and one["median"] > 0 for one in found["calls"].values())


def test_a_quick_run_writes_its_result(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(record, "QUICK_RESULTS", tmp_path)
    monkeypatch.setattr(lookup, "COUNTS", (0,))
    monkeypatch.setattr(lookup, "CALLS", 2)
    assert lookup.main(["--quick"]) == 0
    (path,) = tmp_path.rglob("lookup.json")
    result = json.loads(path.read_text())
    assert [case["entries"] for case in result["cases"]] == [0]
    assert "repeated" in capsys.readouterr().out
