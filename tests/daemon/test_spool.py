"""The daemon's look at the misses: what is new, what was called more, and whatever else may lie there."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from faops import hits
from faops.daemon import spool as module
from faops.daemon.spool import BATCH, LOOK_SECONDS, Spool, SpoolMiss
from faops.files import file_name

IDENTITY, ENVIRONMENT = "cpu_x86-64_4t", "schema-1_torch-2.13.0"
DEVICE = {"torch_type": "cpu", "threads": 4, "name": "some CPU"}
PROBLEM = {"op": "forward", "seqlen_q": 16, "band": {"left": -1, "right": 0}}


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def spool(root: Path, clock: Clock) -> Spool:
    return Spool(root, clock)


def directory(root: Path, identity: str = IDENTITY, environment: str = ENVIRONMENT) -> Path:
    return root / "tune" / "v1" / identity / environment / "misses"


def content(key: str, /, **changes: Any) -> dict[str, Any]:
    values = {"schema": 1, "key": key, "problem": PROBLEM, "device": DEVICE, "date": "2026-11-21"}
    return {**values, "faops_version": "0.1.0", **changes}


def write(place: Path, key: str, text: str | bytes | None = None, /, **changes: Any) -> Path:
    """A miss, or what is given as text in its place."""
    place.mkdir(parents=True, exist_ok=True)
    path = place / file_name(key)
    if text is None:
        text = json.dumps(content(key, **changes))
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def settle(*places: Path) -> None:
    """Make it long ago that anything was written there."""
    for place in places:
        os.utime(place, (1e9, 1e9))


def keys(found: list[SpoolMiss]) -> list[str]:
    return sorted(miss.key for miss in found)


# --- what is given ----------------------------------------------------------------------------------------------------


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


# --- what is passed over ----------------------------------------------------------------------------------------------


BROKEN: dict[str, str | bytes] = {
    "empty": "", "half": json.dumps(content("x"))[:-9], "list": "[]", "number": "3", "binary": b"\xff\xfe\x00",
    "deep": "[" * 60_000, "large": " " * 10_000_000, "newer": json.dumps(content("x", schema=2)),
    "other": json.dumps(content("another")), "no key": json.dumps(content("x", key=None)),
    "problem": json.dumps(content("x", problem=[])), "date": json.dumps(content("x", date=7)),
    "infinite": json.dumps(content("x", problem={"batch": float("inf")})),
    "nested": json.dumps(content("x", problem={"a": {"b": {"c": 1}}})),
    "surrogate": json.dumps(content("\ud800")),
}  # fmt: skip


@pytest.mark.parametrize("text", BROKEN.values(), ids=BROKEN)
def test_what_is_no_whole_miss_is_told_once(spool: Spool, root: Path, clock: Clock, text: str | bytes) -> None:
    path = write(directory(root), "x", text)
    write(directory(root), "good")
    settle(path)
    assert keys(spool.poll()) == ["good"]
    assert spool.problems == []  # somebody may just be writing it
    for _ in range(3):
        clock.seconds += LOOK_SECONDS
        assert spool.poll() == []
    (problem,) = spool.problems
    assert problem.startswith(f"{path} is passed over: ")
    write(directory(root), "x")
    assert keys(spool.poll()) == ["x"]


def test_a_file_that_is_just_written_is_read_when_it_is_whole(spool: Spool, root: Path) -> None:
    whole = json.dumps(content("x"))
    write(directory(root), "x", whole[:20])
    assert spool.poll() == []
    write(directory(root), "x", whole)
    assert keys(spool.poll()) == ["x"]
    assert spool.problems == []


@pytest.mark.parametrize("thing", ["pipe", "folder", "loop", "nowhere", "device"])
def test_what_is_no_file_is_told_once(spool: Spool, root: Path, clock: Clock, thing: str) -> None:
    path = write(directory(root), "x")
    path.unlink()
    if thing == "pipe":
        os.mkfifo(path)
    elif thing == "folder":
        path.mkdir()
    else:
        path.symlink_to({"loop": path, "nowhere": path.with_name("gone"), "device": Path("/dev/zero")}[thing])
    for _ in range(4):
        assert spool.poll() == []
        clock.seconds += LOOK_SECONDS
    assert len(spool.problems) == (thing != "nowhere")


def test_other_files_are_none_of_its_business(spool: Spool, root: Path, clock: Clock) -> None:
    place = directory(root)
    write(place, "a")
    for path in (place / "note.txt", place / ".a-1.tmp", place.parents[1] / "measuring.lock", place.parents[2] / "x"):
        path.write_text("mine")
    for _ in range(3):
        found = spool.poll()
        clock.seconds += LOOK_SECONDS
    assert (found, spool.problems) == ([], [])


@pytest.mark.parametrize("level", [1, 2, 3, 4])
def test_a_file_in_place_of_a_directory(spool: Spool, root: Path, level: int) -> None:
    place = [directory(root), *directory(root).parents][level - 1]
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text("mine")
    assert spool.poll() == []
    place.unlink()
    write(directory(root), "a")
    assert keys(spool.poll()) == ["a"]


def test_directories_that_are_their_own_target(spool: Spool, root: Path, clock: Clock) -> None:
    directory(root).parent.mkdir(parents=True)
    directory(root).symlink_to(directory(root))
    for _ in range(3):
        assert spool.poll() == []
        clock.seconds += LOOK_SECONDS
    (problem,) = spool.problems
    assert str(directory(root)) in problem


def test_names_that_are_no_text(spool: Spool, root: Path) -> None:
    for name in (b"\xff\xfe", b"line\nbreak", b"\x1b[31m"):
        place = os.path.join(os.fsencode(root), b"tune", b"v1", name, b"env", b"misses")
        os.makedirs(place)
        with open(os.path.join(place, os.fsencode(file_name("a"))), "w") as file:
            json.dump(content("a"), file)
    assert (spool.poll(), spool.problems) == ([], [])


def test_there_are_limits(spool: Spool, root: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, most in (("MOST_FILES", 3), ("MOST_DIRECTORIES", 2), ("MOST_TOLD", 4)):
        monkeypatch.setattr(module, name, most)
    for number in range(5):
        write(directory(root, "one"), str(number))
        write(directory(root, f"other-{number}"), "broken", "{")
    found = [spool.poll()]
    for _ in range(3):
        clock.seconds += LOOK_SECONDS
        found.append(spool.poll())
    assert [len(some) for some in found] == [3, 0, 0, 0]
    assert len(spool.problems) == 3  # too many files, too many directories, one that is broken
    for number in range(9):
        write(directory(root, "other-0"), str(number), "{")
    for _ in range(3):
        clock.seconds += LOOK_SECONDS
        spool.poll()
    assert len(spool.problems) == 4


def test_files_that_vanish_in_between(spool: Spool, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(directory(root), "a")
    write(directory(root), "b")
    original = module.read_whole

    def vanishing(path: Path, *limit: int) -> str:
        path.unlink(missing_ok=True)
        return original(path, *limit)

    monkeypatch.setattr(module, "read_whole", vanishing)
    assert spool.poll() == []
    monkeypatch.undo()
    shutil.rmtree(directory(root))
    assert (spool.poll(), spool.problems) == ([], [])


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


# --- a program, and what it leaves ------------------------------------------------------------------------------------

WRITER = """
import json, os, sys
from pathlib import Path
from faops import hits
from faops.files import file_name

place, text = Path(sys.argv[1]), sys.argv[2]
for number in range(300):
    path = place / file_name(str(number))
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    line = text.replace("KEY", str(number)).encode()
    os.write(descriptor, line[:50])
    os.write(descriptor, line[50:])
    os.close(descriptor)
    for _ in range(number % 4):
        hits.add(path, 1)
    if number % 10 == 0:
        path.unlink()
        hits.remove(path)
"""


def test_beside_a_process_that_writes(spool: Spool, root: Path, clock: Clock) -> None:
    place = directory(root)
    place.mkdir(parents=True)
    text = json.dumps(content("KEY"))
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(place), text])
    known: dict[str, int] = {}
    try:
        while True:
            done = writer.poll() is not None
            clock.seconds += LOOK_SECONDS
            for _ in range(3):
                known.update({miss.key: miss.hits for miss in spool.poll()})
            if done:
                break
    finally:
        writer.kill()
        assert writer.wait() == 0
    kept = {str(number): 1 + number % 4 for number in range(300) if number % 10}
    assert {key: known[key] for key in kept} == kept
    assert all(key in kept or int(key) % 10 == 0 for key in known)
    assert spool.problems == []


PROGRAM = """
import sys, torch, faops

q = torch.randn(1, 16, 2, 16)
for line in sys.stdin:
    for _ in range(int(line)):
        faops.attention(q, q, q, causal=True)
    print("done", flush=True)
"""


@pytest.fixture
def program() -> Iterator[subprocess.Popen[str]]:
    """A program that makes as many calls as it reads in a line."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    yield process
    assert process.stdin is not None and process.stdout is not None
    process.stdin.close()
    assert process.wait(timeout=60) == 0
    process.stdout.close()


def calls(program: subprocess.Popen[str], count: int) -> None:
    assert program.stdin is not None and program.stdout is not None
    program.stdin.write(f"{count}\n")
    program.stdin.flush()
    assert program.stdout.readline() == "done\n"


def test_a_program_shows_its_hits_until_its_winner_arrives(program: subprocess.Popen[str], clock: Clock) -> None:
    from faops import dispatch, registry
    from faops.autotune.cache import TuningCache, misses
    from faops.device import DeviceProfile
    from faops.problem import AttentionProblem
    from tests.autotune.support import make_entry

    cache = TuningCache()
    spool = Spool(cache.root, clock)
    calls(program, 1)
    (miss,) = spool.poll()
    assert (miss.hits, miss.device["torch_type"], miss.device["threads"]) == (1, "cpu", 1)
    calls(program, 999)
    clock.seconds += LOOK_SECONDS
    (miss,) = spool.poll()
    assert 500 <= miss.hits <= 1000

    device, problem = DeviceProfile(**miss.device), AttentionProblem.from_dict(miss.problem)
    assert (device.identity, problem.key()) == (miss.identity, miss.key)
    (kernel, *_) = dispatch.runnable(registry.kernels("forward"), problem, device)
    cache.store(device, make_entry(device, problem, kernel=kernel.id, source_hash=kernel.source_hash(),
                                   config=kernel.default_config(problem, device)))  # fmt: skip
    assert misses.settle(cache, device.identity) == 0
    assert not miss.path.exists() and not hits.place(miss.path).exists()
    calls(program, 2000)  # whether it has seen its winner or not, it leaves nothing
    assert not miss.path.exists() and not hits.place(miss.path).exists()
    clock.seconds += LOOK_SECONDS
    assert spool.poll() == []
