"""Entries: their JSON form, files of older versions, and values that no entry can have."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from faops.autotune.cache.entry import Entry, ForeignEntryError, NewerEntryError, Timing
from faops.autotune.cache.environment import SCHEMA
from faops.device import known
from faops.registry import Config

from ..support import make_entry

H200 = known("h200")
FULL = make_entry(
    H200,
    strategy="halving",
    pruned=7,
    decision={"kernel": "fake.forward", "config": {"block": 3}, "difference": 0.5, "won": True},
    driver="580.65.06",
    clocks={"sm_mhz_lowest": 1755},
    timings=(Timing("fake.forward", Config(block=3), 0.4, 0.5, 0.6, 0.01, 10, False, predicted=0.45),),
)
NEW = ("strategy", "pruned", "decision", "driver", "clocks")  # fields that the first version did not have


def document(**changes: Any) -> dict[str, Any]:
    return {**json.loads(FULL.to_json()), **changes}


def read(**changes: Any) -> Entry:
    return Entry.from_json(json.dumps(document(**changes)))


def test_an_entry_survives_its_json() -> None:
    assert Entry.from_json(FULL.to_json()) == FULL
    assert FULL.schema == SCHEMA == 1


def test_a_file_of_the_first_version_is_read() -> None:
    data = {name: value for name, value in document().items() if name not in NEW}
    del data["timings"][0]["predicted"]
    data["dropped"] = [{"config": "fake.forward [block=7]", "reason": "RuntimeError: no"}]
    found = Entry.from_json(json.dumps(data))
    assert (found.strategy, found.pruned, found.decision, found.driver, found.clocks) == ("", 0, {}, "", {})
    assert found.timings[0].predicted is None
    assert replace(found, **{name: getattr(FULL, name) for name in NEW}, timings=FULL.timings) == FULL


def test_the_first_version_would_read_what_is_written_now() -> None:
    """It took the fields that it knew and left the rest; none of these has changed its meaning."""
    kept = {name for name in document() if name not in NEW}
    assert kept == {
        "key", "problem", "device", "environment", "kernel", "source_hash", "config", "p50", "default_kernel",
        "default_config", "default_p50", "speedup", "timings", "dropped", "measurements", "faops_version", "date",
        "schema",
    }  # fmt: skip


@pytest.mark.parametrize("name", sorted(set(document()) - set(NEW) - {"schema"}))
def test_a_missing_field_is_told(name: str) -> None:
    data = document()
    del data[name]
    with pytest.raises(ForeignEntryError, match=name):
        Entry.from_json(json.dumps(data))


@pytest.mark.parametrize(
    "changes",
    [
        {"p50": float("nan")}, {"p50": float("inf")}, {"p50": -1.0}, {"p50": 0}, {"p50": "0.5"}, {"p50": True},
        {"p50": 10**400}, {"speedup": None}, {"key": 3}, {"strategy": 3}, {"driver": None}, {"decision": []},
        {"clocks": "fast"}, {"environment": []}, {"pruned": "many"}, {"pruned": 1.5}, {"measurements": True},
        {"config": {"block": 1.5}}, {"config": {"block": None}}, {"config": {"block": []}}, {"config": 3},
        {"default_config": {"block": {}}}, {"timings": 3}, {"timings": [3]}, {"timings": [{}]}, {"dropped": [3]},
        {"dropped": [{"config": 3}]}, {"problem": {}}, {"problem": 3}, {"problem": {"op": "sideways"}},
        {"timings": [{**FULL.timings[0].as_dict(), "mad": -1.0}]},
        {"timings": [{**FULL.timings[0].as_dict(), "n": 1.5}]},
        {"timings": [{**FULL.timings[0].as_dict(), "noisy": 1}]},
        {"timings": [{**FULL.timings[0].as_dict(), "p80": float("nan")}]},
        {"timings": [{**FULL.timings[0].as_dict(), "predicted": "soon"}]},
        {"timings": [{**FULL.timings[0].as_dict(), "config": {"block": 0.5}}]},
    ],
    ids=str,
)  # fmt: skip
def test_impossible_values_are_no_entry(changes: dict[str, Any]) -> None:
    with pytest.raises(ForeignEntryError):
        read(**changes)


def test_a_timing_without_deviation_is_possible() -> None:
    assert read(timings=[{**FULL.timings[0].as_dict(), "mad": 0}]).timings[0].mad == 0


def test_newer_files_are_told_apart() -> None:
    with pytest.raises(NewerEntryError, match="schema 2, this one reads 1"):
        read(schema=2)
    for schema in ("1", None, 1.5):
        with pytest.raises(ForeignEntryError):
            read(schema=schema)


def test_what_this_version_does_not_know_is_left() -> None:
    assert read(colour="blue") == FULL
