"""Whatever else may lie among the misses: it is passed over, and told once."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from faops.daemon import spool as module
from faops.daemon.spool import LOOK_SECONDS, Spool
from faops.files import file_name

from .support import Clock, content, directory, keys, settle, write

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
