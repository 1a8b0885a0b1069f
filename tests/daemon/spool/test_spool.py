"""What the daemon sees of the misses: what is new, what was called more, at which cost, by any clock."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from faops import hits
from faops.daemon import spool as module
from faops.daemon.spool import BATCH, LOOK_SECONDS, Spool, SpoolMiss
from faops.files import file_name

from .support import DEVICE, ENVIRONMENT, IDENTITY, PROBLEM, Clock, content, directory, keys, settle, write


def test_a_miss_is_given_once(spool: Spool, root: Path, clock: Clock) -> None:
    assert spool.poll() == []  # before there is a cache
    path = write(directory(root), "a")
    assert spool.poll() == [SpoolMiss(IDENTITY, ENVIRONMENT, "a", PROBLEM, 1, DEVICE, path, "2026-11-21")]
    for _ in range(3):
        clock.seconds += LOOK_SECONDS
        assert spool.poll() == []
    write(directory(root), "b")
    (found,) = spool.poll()
    assert found.mark == (IDENTITY, ENVIRONMENT, "b")
    assert spool.problems == []


def test_every_device_and_environment_is_watched(spool: Spool, root: Path) -> None:
    places = [directory(root, identity, environment) for identity in "xy" for environment in "12"]
    for place in places:
        write(place, "a")
        assert len(spool.poll()) == 1
    for place in places:
        write(place, "b")
    assert [(miss.identity, miss.environment) for miss in spool.poll()] == [(i, e) for i in "xy" for e in "12"]


def test_hits_are_seen_at_the_next_look(spool: Spool, root: Path, clock: Clock) -> None:
    path = write(directory(root), "a")
    write(directory(root), "b")
    hits.add(path, 7)
    assert {miss.key: miss.hits for miss in spool.poll()} == {"a": 8, "b": 1}
    hits.add(path, 8)
    settle(directory(root))
    spool.poll()
    assert spool.poll() == []
    clock.seconds += LOOK_SECONDS
    assert [(miss.key, miss.hits) for miss in spool.poll()] == [("a", 16)]
    clock.seconds += LOOK_SECONDS
    assert spool.poll() == []


def test_the_same_hits_in_other_words_are_nothing_new(spool: Spool, root: Path, clock: Clock) -> None:
    path = write(directory(root), "a")
    for _ in range(10):
        hits.add(path, 1)
    assert [miss.hits for miss in spool.poll()] == [11]
    hits.place(path).write_text("10")
    clock.seconds += LOOK_SECONDS
    assert spool.poll() == []


def test_a_miss_that_comes_back_is_new(spool: Spool, root: Path) -> None:
    path = write(directory(root), "a")
    assert len(spool.poll()) == 1
    path.unlink()
    assert spool.poll() == []
    write(directory(root), "a")
    assert len(spool.poll()) == 1
    shutil.rmtree(root)
    assert spool.poll() == []
    write(directory(root), "a")
    assert len(spool.poll()) == 1


def test_one_that_was_replaced_between_two_looks_is_new(spool: Spool, root: Path) -> None:
    path = write(directory(root), "a")
    assert len(spool.poll()) == 1
    path.unlink()
    write(directory(root), "a", date="2026-11-22")
    assert [miss.date for miss in spool.poll()] == ["2026-11-22"]


def test_what_is_forgotten_is_not_given_for_its_hits(spool: Spool, root: Path, clock: Clock) -> None:
    path = write(directory(root), "a")
    (miss,) = spool.poll()
    spool.forget(miss.mark)
    spool.forget(("no", "such", "miss"))
    spool.forget((IDENTITY, ENVIRONMENT, "no such key"))
    hits.add(path, 100)
    clock.seconds += LOOK_SECONDS
    assert spool.poll() == []
    path.unlink()
    spool.poll()
    write(directory(root), "a")
    assert [found.hits for found in spool.poll()] == [101]


def test_what_an_older_faops_wrote_has_no_device(spool: Spool, root: Path) -> None:
    old = content("a")
    del old["device"]
    write(directory(root), "a", json.dumps(old))
    for key, device in (("b", []), ("c", {"threads": "many", "torch_type": "cpu"}), ("d", {"threads": 1})):
        write(directory(root), key, device=device)
    assert {miss.key: miss.device for miss in spool.poll()} == {key: {} for key in "abcd"}


def test_thousands_come_in_several_polls(spool: Spool, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BATCH", 10)
    assert BATCH == 200
    names = [f"k{number:02}" for number in range(25)]
    for name in names:
        write(directory(root, identity=name[:2]), name)
    found = [spool.poll() for _ in range(4)]
    assert [len(some) for some in found] == [10, 10, 5, 0]
    assert keys([miss for some in found for miss in some]) == names


# --- what it costs ----------------------------------------------------------------------------------------------------


def test_nothing_new_costs_a_stat_a_directory(
    spool: Spool, root: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(50):
        hits.add(write(directory(root), str(number)), 1)
    place = directory(root)
    settle(place, *place.parents[:3])
    spool.poll()
    asked: list[str] = []

    def counted(name: str, original: Any) -> Any:
        return lambda *a, **k: asked.append(name) or original(*a, **k)

    for name in ("stat", "listdir", "open"):
        monkeypatch.setattr(os, name, counted(name, getattr(os, name)))
    spool.poll()
    assert asked == ["stat"] * 3  # the devices, the environments, the misses
    asked.clear()
    clock.seconds += LOOK_SECONDS
    spool.poll()
    assert (asked.count("stat"), asked.count("listdir"), asked.count("open")) == (3 + 2 * 50, 3, 0)


# --- clocks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stamp", [0.0, 1e9, 4e9])
def test_a_change_without_a_new_time_stamp_is_seen_at_the_next_look(
    spool: Spool, root: Path, clock: Clock, stamp: float
) -> None:
    place = directory(root)
    write(place, "a")
    os.utime(place, (stamp, stamp))
    assert keys(spool.poll()) == ["a"]
    write(place, "b")
    os.utime(place, (stamp, stamp))
    assert spool.poll() == []
    clock.seconds += LOOK_SECONDS
    assert keys(spool.poll()) == ["b"]


@pytest.mark.parametrize("jump", [-1e6, 1e6])
def test_a_clock_that_jumps(spool: Spool, root: Path, monkeypatch: pytest.MonkeyPatch, jump: float) -> None:
    write(directory(root), "a")
    spool.poll()
    real = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: real() + int(jump * 1e9))
    time.sleep(0.02)  # longer than a file system's clock ticks
    write(directory(root), "b")
    assert keys(spool.poll()) == ["b"]


# --- any order of events ----------------------------------------------------------------------------------------------


EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.sampled_from("abc")),
        st.tuples(st.just("break"), st.sampled_from("abc")),
        st.tuples(st.just("remove"), st.sampled_from("abc")),
        st.tuples(st.just("hit"), st.sampled_from("abc")),
        st.tuples(st.just("poll"), st.just("")),
        st.tuples(st.just("look"), st.just("")),
    ),
    max_size=25,
)


@settings(max_examples=40, deadline=None)
@given(events=EVENTS)
def test_in_the_end_everything_was_given(tmp_path_factory: pytest.TempPathFactory, events: list[Any]) -> None:
    root, clock = tmp_path_factory.mktemp("events"), Clock()
    spool, known, expected = Spool(root, clock), {}, {}

    def poll() -> None:
        known.update({miss.key: miss.hits for miss in spool.poll()})

    for what, key in events:
        path = directory(root) / file_name(key)
        if what == "write":
            write(directory(root), key)
            expected[key] = hits.read(path)
        elif what == "break":
            write(directory(root), key, "{")
            expected.pop(key, None)
        elif what == "remove":
            path.unlink(missing_ok=True)
            hits.remove(path)
            expected.pop(key, None)
        elif what == "hit" and key in expected:
            hits.add(path, 1)
            expected[key] += 1
        else:
            clock.seconds += LOOK_SECONDS * (what == "look")
            poll()
    clock.seconds += LOOK_SECONDS
    poll()
    assert {key: known[key] for key in expected} == expected
