"""Entries whose text is whole and whose values are wrong: never served, never an exception, at most one warning."""

from __future__ import annotations

import copy
import json
import math
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from faops.autotune import cache as cache_module
from faops.autotune.cache import TuningCache, lookup, parse
from faops.autotune.cache.entry import Entry, ForeignEntryError, Timing, file_name
from faops.autotune.cache.validation import complaint, is_directory_name, is_possible, plain
from faops.device import known
from faops.errors import CacheError, FaopsWarning
from faops.problem import AttentionProblem, Band
from faops.registry import Config

from ..support import PROBLEM, FakeKernel, make_entry

H200 = known("h200")
KERNEL = FakeKernel()
GOOD: dict[str, Any] = make_entry(H200).as_dict()

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.sampled_from([10**400, -1, 2**63, 1 << 20]),
    st.floats(),
    st.text(max_size=5),
    st.sampled_from(["../../etc/passwd", "..", "", "\x1b[31m", "\ud800", "0.5", "fake.forward", "nan", "/"]),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=4,
)


def places(value: Any, prefix: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path to every value inside a JSON document."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [*([prefix] if prefix else []), *(place for key, one in items for place in places(one, (*prefix, key)))]


PLACES = places(GOOD)


def put(data: dict[str, Any], place: tuple[Any, ...], value: Any) -> None:
    *way, last = place
    for step in way:
        data = data[step]
    data[last] = value


@st.composite
def mutated(draw: st.DrawFn) -> dict[str, Any]:
    """A good entry with one to three values replaced by others, or removed."""
    data = copy.deepcopy(GOOD)
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.sampled_from(PLACES))
        try:
            put(data, place, draw(VALUES))
        except (TypeError, KeyError, IndexError):  # an earlier mutation removed the way there
            continue
    if draw(st.booleans()):
        data.pop(draw(st.sampled_from(list(GOOD))))
    return data


def is_harmless(entry: Entry) -> bool:
    """Whether everything that a look-up uses, and the commands print, is what it should be."""
    numbers = (entry.p50, entry.default_p50, entry.speedup, *(timing.p50 for timing in entry.timings))
    words = (entry.key, entry.kernel, entry.date, entry.device, entry.faops_version, str(entry.config))
    return (
        all(type(number) in (int, float) and math.isfinite(number) and number > 0 for number in numbers)
        and all(type(word) is str and word.isprintable() for word in words)
        and all(type(value) in (int, str, bool) for value in entry.config.values())
        and entry.attention_problem().key() == entry.key
    )


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=mutated())
@example(data={**GOOD, "speedup": "2.0"})
@example(data={**GOOD, "speedup": math.nan})
@example(data={**GOOD, "p50": math.inf})
@example(data={**GOOD, "p50": 10**400})
@example(data={**GOOD, "p50": True})
@example(data={**GOOD, "schema": True})
@example(data={**GOOD, "schema": 0})
@example(data={**GOOD, "date": "2026-13-45"})
@example(data={**GOOD, "config": {"block": 1.5}})
@example(data={**GOOD, "config": {"block": "3"}})
@example(data={**GOOD, "config": {"block": -1}})
@example(data={**GOOD, "config": {"block": 10**9}})
@example(data={**GOOD, "config": {"other": 3}})
@example(data={**GOOD, "config": {}})
@example(data={**GOOD, "problem": {**GOOD["problem"], "batch": math.inf}})
@example(data={**GOOD, "problem": {**GOOD["problem"], "colour\x1b": 1}})
@example(data={**GOOD, "kernel": "fake.forward\x1b[31m"})
@example(data={**GOOD, "environment": {}})
def test_a_mutated_entry_is_served_only_if_nothing_is_wrong(cache: TuningCache, data: dict[str, Any]) -> None:
    cache_module._warned.clear()
    cache_module._indices.clear()
    path = cache.path(H200, PROBLEM)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        winners = [lookup(PROBLEM, H200, [KERNEL]) for _ in range(2)]
        listed = cache.entries()
    assert len(caught) <= 1
    assert all(str(one.message).replace(str(path), "").isprintable() for one in caught)
    assert bool(listed) is not bool(caught)
    assert all(is_harmless(entry) for entry in listed)
    for winner in winners:
        if winner is not None:
            config = winner.config
            assert (
                config == KERNEL.default_config(PROBLEM, H200)
                or config in KERNEL.configs(PROBLEM, H200)
                or (set(config) == {"block"} and type(config["block"]) is int and 0 <= config["block"] <= 1 << 16)
            )


@pytest.mark.parametrize("place", PLACES, ids=lambda place: ".".join(map(str, place)))
def test_every_field_is_looked_at(place: tuple[Any, ...]) -> None:
    """No value can be replaced by a list without the entry being refused; free-form notes aside."""
    if place[0] in ("decision", "clocks"):
        return
    data = copy.deepcopy(GOOD)
    put(data, place, [[1]])
    with pytest.raises(ForeignEntryError):
        parse(json.dumps(data))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"date": "yesterday"}, "YYYY-MM-DD"),
        ({"date": "2026-02-30"}, "YYYY-MM-DD"),
        ({"device": "../../elsewhere"}, "identity"),
        ({"device": ".."}, "identity"),
        ({"device": ""}, "identity"),
        ({"device": "a" * 300}, "identity"),
        ({"device": "a/b"}, "identity"),
        ({"environment": {}}, "environment"),
        ({"environment": {"torch": "\x1b[2J"}}, "environment"),
        ({"kernel": "fake\nforward"}, "kernel"),
        ({"source_hash": "\x07"}, "source_hash"),
        ({"measurements": -1}, "measurements"),
        ({"schema": 0}, "schema"),
        ({"config": Config(order="\x1b[0m")}, "config"),
        ({"default_config": Config({"a\x00": 1})}, "config"),
        ({"timings": (Timing("fake\t", Config(block=3), 0.4, 0.5, 0.6, 0.01, 10, False),)}, "kernel"),
    ],
)
def test_what_is_wrong_is_said_and_never_stored(cache: TuningCache, change: dict[str, Any], words: str) -> None:
    entry = replace(make_entry(H200), **change)
    assert words in complaint(entry)
    with pytest.raises(CacheError, match="cannot be stored"):
        cache.store(H200, entry)
    assert not list(cache.root.rglob("*.json"))


def test_nothing_is_wrong_with_a_good_entry() -> None:
    assert complaint(make_entry(H200)) == ""
    assert parse(json.dumps(GOOD)) == make_entry(H200)


@pytest.mark.parametrize(
    "change",
    [
        {"batch": True}, {"batch": -1}, {"batch": 1 << 60}, {"seqlen_q": 1.0}, {"heads_q": 3}, {"heads_kv": 0},
        {"head_dim": 0}, {"op": "sideways"}, {"dtype": "int8"}, {"layout": "round"}, {"softcap": 1}, {"bias": None},
        {"band": (1, 2)}, {"band": Band(-2, 0)}, {"band": Band(0.5, 0)}, {"page_size": -1},  # type: ignore[arg-type]
    ],
)  # fmt: skip
def test_impossible_problems(change: dict[str, Any]) -> None:
    assert is_possible(PROBLEM)
    assert is_possible(replace(PROBLEM, seqlen_k=0))
    assert not is_possible(replace(PROBLEM, **change))


def test_names_of_directories() -> None:
    assert is_directory_name(H200.identity)
    for name in ("", ".", "..", ".hidden", "a/b", "a\\b", "a b", "a\n", "a" * 201, None, 3):
        assert not is_directory_name(name)


def test_plain_text_keeps_lines_only() -> None:
    assert plain("a\n\tb") == "a\n\tb"
    assert plain("\x1b[31mred\x07") == "?[31mred?"


class Odd(FakeKernel):
    """Its configs have different names."""

    def configs(self, problem: AttentionProblem, device: Any) -> list[Config]:
        return [Config(block=0), Config(block=3, split=1 << 20), Config(mode="fast")]


@pytest.mark.parametrize(
    ("config", "served"),
    [
        (Config(block=3), True),
        (Config(block=1 << 16), True),
        (Config(block=(1 << 16) + 1), False),
        (Config(block=True), False),
        (Config(block=3, split=1 << 20), True),
        (Config(block=3, split=1), False),
        (Config(mode="fast"), True),
        (Config(mode="slow"), False),
        (Config(), False),
    ],
)
def test_a_config_that_the_kernel_cannot_read_is_not_served(
    cache: TuningCache, register: Callable[[Any], Any], config: Config, served: bool
) -> None:
    cache.store(H200, make_entry(H200, config=config))
    winner = lookup(PROBLEM, H200, [register(Odd())])
    assert (winner is not None) is served
    near = lookup(replace(PROBLEM, batch=2), H200, [register(Odd())])
    assert (near is not None) is served


DATA = sorted((Path(__file__).parent / "data").glob("schema-1-*.json"))


@pytest.mark.parametrize("path", DATA, ids=lambda path: path.stem)
def test_entries_that_the_first_version_wrote_are_read(cache: TuningCache, path: Path) -> None:
    entry = parse(path.read_text())
    assert entry.schema == 1
    assert path.name == f"schema-1-{file_name(entry.key)}"
    assert (entry.strategy, entry.driver, entry.pruned) == ("", "", 0)
    assert entry.timings and all(timing.predicted is None for timing in entry.timings)
    place = cache.place(entry)
    place.parent.mkdir(parents=True)
    place.write_bytes(path.read_bytes())
    assert cache.entries() == [entry]
    assert parse(entry.to_json()) == entry


def test_there_are_such_entries() -> None:
    assert len(DATA) >= 2


@pytest.mark.parametrize("schema", [0, -1, True, 0.5, "1", None])
def test_a_schema_that_never_was_is_ignored_with_one_warning(
    cache: TuningCache, kernel: FakeKernel, schema: object
) -> None:
    path = cache.path(H200, PROBLEM)
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({**GOOD, "schema": schema}))
    with pytest.warns(FaopsWarning, match=path.name) as caught:
        assert lookup(PROBLEM, H200, [kernel]) is None
    assert len(caught) == 1
    with pytest.raises(CacheError, match="left alone"):
        cache.store(H200, make_entry(H200))
