"""Broken and hostile file systems: full, read-only, vanishing; and what may lie where a file of the cache should be."""

from __future__ import annotations

import errno
import multiprocessing
import os
import resource
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from faops import files
from faops.autotune.cache import TuningCache, lookup, misses, stamp
from faops.autotune.cache.exchange import Offer, take
from faops.device import DeviceProfile, known
from faops.errors import CacheError, FaopsWarning
from faops.files import read_whole, write_whole
from faops.registry import Config

from ..support import PROBLEM, FakeKernel, make_entry, untuned

H200 = known("h200")
PROCESSES = multiprocessing.get_context("fork")
SECONDS = 10  # after which a test hangs


class Blocked(BaseException):
    """Raised by the alarm; nothing takes it for an error of the file system."""


@pytest.fixture(autouse=True)
def alarm() -> Iterator[None]:
    """A read that blocks is a failure, not a test that never ends."""
    signal.signal(signal.SIGALRM, _blocked)
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)


def _blocked(*arguments: object) -> None:
    raise Blocked


# --- what lies where an entry should be -------------------------------------------------------------------------------


def _holes(path: Path) -> None:
    with open(path, "wb") as file:
        file.truncate(1 << 40)


def _loop(path: Path) -> None:
    path.symlink_to(path.name)


THINGS: dict[str, tuple[Callable[[Path], object], str]] = {
    "a FIFO": (os.mkfifo, "not a regular file"),
    "a directory": (Path.mkdir, "it is a directory"),
    "a link to itself": (_loop, "symbolic links"),
    "a link to a device": (lambda path: path.symlink_to("/dev/null"), "not a regular file"),
    "a link to a FIFO": (lambda path: (os.mkfifo(f"{path}.f"), path.symlink_to(f"{path}.f")), "not a regular file"),
    "a link to a directory": (lambda path: path.symlink_to("/"), "it is a directory"),
    "a link to another file": (lambda path: path.symlink_to(__file__), "not whole"),
    "a terabyte": (_holes, "larger than 4 MiB"),
}
UNTOUCHED = [name for name in THINGS if name != "a link to another file"]


@pytest.mark.parametrize("thing", THINGS)
def test_what_is_no_file_of_ours_is_a_miss_with_one_warning(cache: TuningCache, kernel: FakeKernel, thing: str) -> None:
    make, words = THINGS[thing]
    path = cache.path(H200, PROBLEM)
    path.parent.mkdir(parents=True)
    make(path)
    with pytest.warns(FaopsWarning, match=words) as caught:
        assert lookup(PROBLEM, H200, [kernel]) is None
    assert len(caught) == 1
    assert cache.load(H200, PROBLEM) is None  # a second warning would be an error here
    assert cache.entries() == []


@pytest.mark.parametrize("thing", UNTOUCHED)
def test_it_is_not_overwritten_and_others_are_stored(cache: TuningCache, kernel: FakeKernel, thing: str) -> None:
    path = cache.path(H200, PROBLEM)
    path.parent.mkdir(parents=True)
    THINGS[thing][0](path)
    before = os.lstat(path)
    with pytest.raises(CacheError, match=r"is left alone.*faops cache clear"):
        cache.store(H200, make_entry(H200))
    assert take(cache, [Offer("x", make_entry(H200))])[0].status == "refused"
    assert (os.lstat(path).st_ino, os.lstat(path).st_mode) == (before.st_ino, before.st_mode)
    other = replace(PROBLEM, head_dim=128)
    cache.store(H200, make_entry(H200, other))
    assert lookup(other, H200, [kernel]) is not None


def test_a_link_to_a_file_of_something_else_is_replaced_and_its_target_kept(
    cache: TuningCache, tmp_path: Path, kernel: FakeKernel
) -> None:
    """What looks like half an entry is replaced, and a link is replaced as a link."""
    target = tmp_path / "target"
    target.write_text("{")
    path = cache.path(H200, PROBLEM)
    path.parent.mkdir(parents=True)
    path.symlink_to(target)
    cache.store(H200, make_entry(H200))
    assert not path.is_symlink() and target.read_text() == "{"


def test_links_to_good_entries_and_dangling_ones(cache: TuningCache, tmp_path: Path, kernel: FakeKernel) -> None:
    path = cache.store(H200, make_entry(H200)).path
    assert path is not None
    path.rename(tmp_path / "entry.json")
    path.symlink_to(tmp_path / "entry.json")
    assert lookup(PROBLEM, H200, [kernel]) is not None
    (tmp_path / "entry.json").unlink()
    assert cache.load(H200, PROBLEM) is None
    cache.store(H200, make_entry(H200))
    assert cache.load(H200, PROBLEM) == make_entry(H200)


def test_clear_removes_all_it_can(cache: TuningCache, kernel: FakeKernel) -> None:
    path = cache.path(H200, PROBLEM)
    path.parent.mkdir(parents=True)
    path.mkdir()
    for heads in (2, 4, 6, 8):
        cache.store(H200, make_entry(H200, replace(PROBLEM, heads_q=heads, head_dim=32)))
    with pytest.raises(CacheError, match="cannot be removed"):
        cache.clear()
    assert [found.name for found in path.parent.iterdir()] == [path.name]
    path.rmdir()
    os.mkfifo(path)
    assert cache.clear() == 1


@pytest.mark.parametrize("thing", THINGS)
def test_misses_and_manifests_survive_it_too(cache: TuningCache, cpu: DeviceProfile, thing: str) -> None:
    directory = cache.directory(cpu)
    (directory / "misses").mkdir(parents=True)
    for path in (directory / "manifest.json", directory / "misses" / "x.json"):
        THINGS[thing][0](path)
    untuned(PROBLEM, cpu)
    assert [miss.key for miss in misses.waiting(cache, cpu.identity)] == [PROBLEM.key()]
    cache.store(cpu, make_entry(cpu, replace(PROBLEM, head_dim=128)))
    assert len(cache.entries()) == 1


# --- full and read-only -----------------------------------------------------------------------------------------------


class Refusal:
    """Stands for a function of ``os`` (or ``open``) that fails, from its ``after``-th call on."""

    def __init__(self, number: int, original: Any, after: int = 0) -> None:
        self.number, self.original, self.left = number, original, after

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        if self.left <= 0:
            raise OSError(self.number, os.strerror(self.number))
        self.left -= 1
        return self.original(*arguments, **options)


class FullFile:
    """A file whose write fails half-way, as that of a full disk does."""

    def __init__(self, path: Path, mode: str, encoding: str) -> None:
        self.file = path.open(mode, encoding=encoding)

    def __enter__(self) -> FullFile:
        return self

    def __exit__(self, *exception: object) -> None:
        self.file.close()

    def write(self, text: str) -> int:
        self.file.write(text[: len(text) // 2])
        self.file.flush()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


STEPS = ("mkdir", "open", "write", "fsync", "replace")


def _break(monkeypatch: pytest.MonkeyPatch, step: str, number: int) -> None:
    if step == "mkdir":
        monkeypatch.setattr(Path, "mkdir", Refusal(number, Path.mkdir))
    elif step == "open":
        monkeypatch.setattr(files, "open", Refusal(number, open), raising=False)
    elif step == "write":
        monkeypatch.setattr(files, "open", FullFile, raising=False)
    else:
        monkeypatch.setattr(files.os, step, Refusal(number, getattr(os, step)))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT, errno.EIO])
@pytest.mark.parametrize("step", STEPS)
def test_wherever_writing_fails_the_old_entry_stays(
    cache: TuningCache, kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch, step: str, number: int
) -> None:
    cache.store(H200, make_entry(H200))
    before = {path: path.read_bytes() for path in cache.root.rglob("*") if path.is_file()}
    with monkeypatch.context() as patch:
        _break(patch, step, number)
        for problem in (PROBLEM, replace(PROBLEM, head_dim=128)):
            with pytest.raises(CacheError, match="cannot be written"):
                cache.store(H200, make_entry(H200, problem, config=Config(block=1)))
    after = {path: path.read_bytes() for path in cache.root.rglob("*") if path.is_file()}
    assert after == before  # nothing lost, and nothing left behind
    winner = lookup(PROBLEM, H200, [kernel])
    assert winner is not None and winner.config == Config(block=3)


def _store_with_little_room(root: Path, room: int) -> None:
    """A real full disk, for this process: files may grow to ``room`` bytes."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
    cache = TuningCache(root)
    try:
        cache.store(H200, make_entry(H200, config=Config(block=1)))
    except CacheError as error:
        os._exit(7 if "File too large" in str(error) else 8)
    os._exit(0)


@pytest.mark.parametrize("room", [0, 1, 700, 1500])
def test_a_disk_that_is_really_full(cache: TuningCache, kernel: FakeKernel, room: int) -> None:
    cache.store(H200, make_entry(H200))
    (cache.directory(H200) / "manifest.json").unlink()
    process = PROCESSES.Process(target=_store_with_little_room, args=(cache.root, room))
    process.start()
    process.join()
    assert process.exitcode == 7
    assert cache.load(H200, PROBLEM) == make_entry(H200)
    assert not list(cache.root.rglob(f"*{files.TEMPORARY_SUFFIX}"))


def test_dev_full_stands_for_the_temporary_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel's own ENOSPC, at the flush."""
    path = tmp_path / "entry.json"
    path.write_text("old")
    monkeypatch.setattr(
        files, "open", lambda *unused, **options: os.fdopen(os.open("/dev/full", os.O_WRONLY), "w"), raising=False
    )
    with pytest.raises(OSError, match="No space left"):
        write_whole(path, "new")
    assert path.read_text() == "old"
    assert [found.name for found in tmp_path.iterdir()] == ["entry.json"]


READ_ONLY = [Path(name) for name in ("/proc/sys", "/sys", "/proc/self/fd")]


@pytest.mark.parametrize("root", READ_ONLY, ids=str)
def test_a_file_system_that_takes_no_files(
    cache: TuningCache, kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch, root: Path
) -> None:
    """Permissions do not bind root, so these are file systems in which nobody can make a directory."""
    monkeypatch.setenv("FAOPS_CACHE_DIR", str(root))
    here = TuningCache()
    assert lookup(PROBLEM, H200, [kernel]) is None and stamp() == stamp()
    untuned(PROBLEM, H200)
    with pytest.raises(CacheError, match="cannot be written"):
        here.store(H200, make_entry(H200))
    outcomes = take(here, [Offer("x", make_entry(H200))])
    assert outcomes[0].status == "refused" and "cannot be written" in outcomes[0].reason


# --- vanishing --------------------------------------------------------------------------------------------------------


def test_the_cache_is_removed_under_a_running_process(cache: TuningCache, kernel: FakeKernel) -> None:
    cache.store(H200, make_entry(H200))
    assert lookup(PROBLEM, H200, [kernel]) is not None
    seen = stamp()
    shutil.rmtree(cache.root)
    assert stamp() != seen
    assert lookup(PROBLEM, H200, [kernel]) is None
    assert cache.entries() == [] and cache.clear() == 0
    cache.store(H200, make_entry(H200))
    assert lookup(PROBLEM, H200, [kernel]) is not None


@pytest.mark.parametrize("step", ["open", "fsync", "replace"])
def test_the_directory_vanishes_while_an_entry_is_written(
    cache: TuningCache, kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    cache.store(H200, make_entry(H200))
    original: Any = open if step == "open" else getattr(os, step)
    removed: list[bool] = []

    def once(*arguments: Any, **options: Any) -> Any:
        if not removed:
            removed.append(True)
            shutil.rmtree(cache.base)
        return original(*arguments, **options)

    monkeypatch.setattr(files if step == "open" else files.os, step, once, raising=False)
    stored = cache.store(H200, make_entry(H200, config=Config(block=5)))
    assert removed
    assert cache.load(H200, PROBLEM) == stored


def test_the_directory_vanishes_while_it_is_made(cache: TuningCache, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between mkdir, which meets it, and the look whether it is a directory: Path.mkdir then says that it exists."""
    stored = cache.store(H200, make_entry(H200))
    made: list[Path] = []
    is_dir = Path.is_dir

    def hindered(self: Path) -> bool:
        if self == stored.path.parent and not made:
            made.append(self)
            shutil.rmtree(self)
        return is_dir(self)

    monkeypatch.setattr(Path, "is_dir", hindered)
    assert cache.load(H200, PROBLEM) == cache.store(H200, make_entry(H200))
    assert made


def test_a_directory_that_always_vanishes_is_an_error(cache: TuningCache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "open", Refusal(errno.ENOENT, open), raising=False)
    with pytest.raises(CacheError, match="No such file"):
        cache.store(H200, make_entry(H200))


# --- reading one file -------------------------------------------------------------------------------------------------


def test_files_are_read_whole_and_not_one_byte_more(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes("é".encode() * 50)
    assert read_whole(path, 100) == "é" * 50
    with pytest.raises(OSError, match="larger"):
        read_whole(path, 99)
    path.write_bytes(b"\xff")
    with pytest.raises(ValueError, match="utf-8"):
        read_whole(path)


def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        for path in (tmp_path / "fifo", tmp_path, tmp_path / "missing", Path("/dev/zero")):
            with pytest.raises(OSError, match=r"regular|directory"):
                read_whole(path)
    assert len(os.listdir("/proc/self/fd")) == before
