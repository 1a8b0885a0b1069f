"""The cache of compiled kernels: hits, broken files, many processes at once, unwritable directories, its bound."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import filelock
import pytest

from faops.architectures import MIB
from faops.backends.cuda_raw import cubin_cache, nvrtc
from faops.backends.cuda_raw.cubin_cache import compile_cached
from faops.backends.cuda_raw.nvrtc import Compiled
from faops.backends.cuda_raw.source import Source
from faops.backends.cuda_raw.targets import Target
from faops.errors import CacheError, CompileError, FaopsWarning, SettingsError
from tests.cuda_raw.sources import need_compiler, small

need_compiler()

SM_80 = Target("sm_80")


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    cubin_cache.forget()
    yield
    cubin_cache.forget()


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Source, Target]]:
    """Everything that NVRTC was called for."""
    calls: list[tuple[Source, Target]] = []
    usual = nvrtc.compile

    def counting(source: Source, target: Target) -> Compiled:
        calls.append((source, target))
        return usual(source, target)

    monkeypatch.setattr(nvrtc, "compile", counting)
    return calls


def files() -> list[Path]:
    return sorted(cubin_cache.directory().glob(f"*{cubin_cache.SUFFIX}"))


def again(source: Source, target: Target = SM_80) -> Compiled:
    """What a new process would get."""
    cubin_cache.forget()
    return compile_cached(source, target)


# --- hits and misses --------------------------------------------------------------------------------------------------


def test_compiled_once_then_read(compiled: list[object]) -> None:
    first = compile_cached(small(), SM_80)
    assert compile_cached(small(), SM_80) is first
    second = again(small())
    assert len(compiled) == len(files()) == 1
    assert (first.from_cache, second.from_cache) == (False, True)
    assert {**vars(second), "from_cache": False} == vars(first)


def test_ptx_is_kept_too(compiled: list[object]) -> None:
    first = compile_cached(small(), Target("compute_80"))
    second = again(small(), Target("compute_80"))
    assert (second.image, second.kind, second.registers) == (first.image, "ptx", None)
    assert len(compiled) == 1


def test_what_decides_the_code_decides_the_key(compiled: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    compile_cached(small(3), SM_80)
    compile_cached(small(4), SM_80)
    compile_cached(small(3), Target("sm_75"))
    assert len(compiled) == len(files()) == 3
    monkeypatch.setattr(nvrtc, "version_text", lambda: "99.9")
    again(small(3))
    usual = nvrtc.options
    monkeypatch.setattr(nvrtc, "options", lambda target: (*usual(target), "--use_fast_math"))
    again(small(3))
    assert len(compiled) == len(files()) == 5


def test_a_kernel_that_does_not_compile_leaves_nothing(compiled: list[object]) -> None:
    for _ in range(2):
        with pytest.raises(CompileError):
            compile_cached(small(text="wrong"), SM_80)
    assert len(compiled) == 2
    assert files() == []


@pytest.mark.parametrize("keep", [0, 10, 64, 65, 300, -50, -1])
def test_a_truncated_file_is_a_miss(compiled: list[object], keep: int) -> None:
    first = compile_cached(small(), SM_80)
    (path,) = files()
    whole = path.read_bytes()
    path.write_bytes(whole[:keep])
    assert again(small()).image == first.image
    assert len(compiled) == 2
    assert again(small()).from_cache  # the file is whole again
    assert len(compiled) == 2


@pytest.mark.parametrize("where", [0.0, 0.03, 0.2, 0.6, 0.99])
def test_a_changed_character_is_a_miss(compiled: list[object], where: float) -> None:
    first = compile_cached(small(), SM_80)
    (path,) = files()
    content = bytearray(path.read_bytes())
    at = int(where * len(content))
    content[at] = ord("A") if content[at] != ord("A") else ord("B")
    path.write_bytes(content)
    assert again(small()).image == first.image
    assert len(compiled) == 2


def test_files_that_are_no_files_of_ours_are_misses(compiled: list[object]) -> None:
    compile_cached(small(), SM_80)
    (path,) = files()
    path.write_bytes(b"\xff\x00\n" * 10)
    again(small())
    path.unlink()
    path.mkdir()
    with pytest.warns(FaopsWarning, match="Is a directory"):
        again(small())
    assert len(compiled) == 3


def test_a_hit_counts_as_use_and_takes_a_file_that_cannot_be_touched(
    compiled: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    compile_cached(small(), SM_80)
    (path,) = files()
    os.utime(path, (1000.0, 1000.0))
    again(small())
    assert time.time() - path.stat().st_mtime < 60

    def refused(path: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "utime", refused)
    assert again(small()).from_cache
    assert len(compiled) == 1


# --- many at once -----------------------------------------------------------------------------------------------------

PROCESS = """
import sys, time
from pathlib import Path
from faops.backends.cuda_raw import cubin_cache, nvrtc
from faops.backends.cuda_raw.targets import Target
from tests.cuda_raw.sources import small

usual = nvrtc.compile
def slow(source, target):
    print("compiled", flush=True)
    time.sleep(0.5)
    return usual(source, target)
nvrtc.compile = slow
nvrtc.version()
print("ready", flush=True)
sys.stdin.readline()
image = cubin_cache.compile_cached(small(), Target("sm_80")).image
print(len(image), flush=True)
"""


def test_processes_compile_once() -> None:
    """They start together, and the compiler is slow, so that without waiting both would compile."""
    root = Path(__file__).parents[2]
    running = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS], cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    for process in running:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    said = []
    for process in running:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in running:
        said += process.communicate(timeout=120)[0].split()
        assert process.returncode == 0
    assert said.count("compiled") == 1
    assert len(said) == 3
    assert len(set(said) - {"compiled"}) == 1


def test_threads_compile_once(monkeypatch: pytest.MonkeyPatch, compiled: list[object]) -> None:
    counting = nvrtc.compile

    def slow(source: Source, target: Target) -> Compiled:
        time.sleep(0.3)
        return counting(source, target)

    monkeypatch.setattr(nvrtc, "compile", slow)
    threads = [threading.Thread(target=compile_cached, args=(small(), SM_80)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(compiled) == 1


def test_a_lock_that_nobody_gives_back_is_not_waited_for_for_ever(
    monkeypatch: pytest.MonkeyPatch, compiled: list[object]
) -> None:
    monkeypatch.setattr(cubin_cache, "LOCK_SECONDS", 0.2)
    locks = cubin_cache.directory() / "locks"
    locks.mkdir(parents=True)
    with filelock.FileLock(locks / f"{cubin_cache.key_of(small(), SM_80)[:2]}.lock"):
        assert compile_cached(small(), SM_80).image
    assert len(compiled) == len(files()) == 1


def test_a_file_system_without_locks(monkeypatch: pytest.MonkeyPatch, compiled: list[object]) -> None:
    def unable(self: object, *arguments: object, **named: object) -> None:
        raise NotImplementedError("FileSystem does not appear to support flock")

    monkeypatch.setattr(filelock.FileLock, "acquire", unable)
    assert compile_cached(small(), SM_80).image
    assert again(small()).from_cache


# --- directories that cannot be written ------------------------------------------------------------------------------


def test_a_file_in_place_of_the_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compiled: list[object]
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FAOPS_CACHE_DIR", str(tmp_path / "file"))
    with pytest.warns(FaopsWarning, match="compiled kernels cannot be kept in .*: Not a directory") as caught:
        assert compile_cached(small(3), SM_80).image
    assert compile_cached(small(4), SM_80).image  # a second warning would be an error
    assert len(caught) == 1
    assert "FAOPS_CACHE_DIR" in str(caught[0].message)
    assert len(compiled) == 2
    assert cubin_cache.entries() == []
    assert cubin_cache.usage() == (0, 0)


def test_a_full_disk(monkeypatch: pytest.MonkeyPatch, compiled: list[object]) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.warns(FaopsWarning, match="No space left on device"):
        assert compile_cached(small(), SM_80).image
    assert [path for path in cubin_cache.directory().iterdir() if path.name != "locks"] == []


# --- its bound --------------------------------------------------------------------------------------------------------


def test_the_least_recently_used_make_room(monkeypatch: pytest.MonkeyPatch, compiled: list[object]) -> None:
    paths = []
    for index in range(4):
        compile_cached(small(index), SM_80)
        (path,) = set(files()) - set(paths)
        paths.append(path)
        os.utime(path, (1000.0 + index, 1000.0 + index))
    again(small(0))  # so that 1 is the one used longest ago
    size = paths[0].stat().st_size
    monkeypatch.setattr(cubin_cache, "limit_bytes", lambda: 3 * size + size // 2)
    compile_cached(small(9), SM_80)
    assert set(paths) - set(files()) == {paths[1], paths[2]}
    assert len(files()) == 3
    assert again(small(9)).from_cache


def test_the_setting(monkeypatch: pytest.MonkeyPatch, compiled: list[object]) -> None:
    assert cubin_cache.limit_bytes() == 512 * MIB
    monkeypatch.setenv("FAOPS_CUBIN_CACHE_MB", "3")
    assert cubin_cache.limit_bytes() == 3 * MIB
    monkeypatch.setenv("FAOPS_CUBIN_CACHE_MB", "0")
    compile_cached(small(), SM_80)
    again(small())
    assert len(compiled) == 2
    assert not cubin_cache.directory().exists()
    for wrong in ("-1", "much", "1.5"):
        monkeypatch.setenv("FAOPS_CUBIN_CACHE_MB", wrong)
        with pytest.raises(SettingsError, match=f"FAOPS_CUBIN_CACHE_MB='{wrong}': expected a whole number"):
            cubin_cache.limit_bytes()


def test_prune(compiled: list[object]) -> None:
    for index in range(3):
        compile_cached(small(index), SM_80)
    count, size = cubin_cache.usage()
    assert (count, size) == (3, sum(path.stat().st_size for path in files()))
    assert cubin_cache.prune(size) == (0, 0)
    assert cubin_cache.prune(size - 1)[0] == 1
    files()[0].write_text("not readable, and removed all the same")
    assert cubin_cache.prune(0)[0] == 2
    assert cubin_cache.usage() == (0, 0)


def test_prune_says_what_cannot_be_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    compile_cached(small(), SM_80)

    def refused(path: Path, missing_ok: bool = False) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "unlink", refused)
    with pytest.raises(CacheError, match="cannot be removed: Permission denied"):
        cubin_cache.prune(0)


def test_leftovers_of_killed_processes_go_after_an_hour() -> None:
    compile_cached(small(), SM_80)
    old, young = (cubin_cache.directory() / f".{name}.tmp" for name in ("old", "young"))
    for path in (old, young):
        path.write_text("half of a ker")
    an_hour_ago = time.time() - cubin_cache.LEFTOVER_SECONDS - 1
    os.utime(old, (an_hour_ago, an_hour_ago))
    cubin_cache.prune(10**9)
    assert (old.exists(), young.exists(), len(files())) == (False, True, 1)


# --- what the files tell ----------------------------------------------------------------------------------------------


def test_entries() -> None:
    for factor, name in ((5, "sm_80"), (5, "compute_75"), (4, "sm_80")):
        compile_cached(small(factor), Target(name))
    files_of = {path: path.stat().st_size for path in files()}
    found = cubin_cache.entries()
    assert [(entry.target, entry.specialization) for entry in found] == [
        ("compute_75", {"FACTOR": "5", "TWICE": "true"}),
        ("sm_80", {"FACTOR": "4", "TWICE": "true"}),
        ("sm_80", {"FACTOR": "5", "TWICE": "true"}),
    ]
    assert {entry.path: entry.file_bytes for entry in found} == files_of
    ptx, cubin, _ = found
    assert (ptx.figures["registers"], cubin.figures["static_shared_bytes"]) == (None, 256)
    assert cubin.image_bytes == len(compile_cached(small(4), SM_80).image)
    assert (cubin.name, cubin.nvrtc, cubin.date) == ("scale", nvrtc.version_text(), time.strftime("%Y-%m-%d"))
    shown = json.loads(json.dumps(cubin.as_dict()))
    assert shown["registers"] == cubin.figures["registers"]
    assert shown["path"] == str(cubin.path)


@pytest.mark.parametrize("content", ["", "one line", "hash\n[]\n", 'hash\n{"name": 1}\n', "hash\n{\n"])
def test_entries_leave_out_what_they_cannot_read(content: str) -> None:
    compile_cached(small(), SM_80)
    (cubin_cache.directory() / f"other{cubin_cache.SUFFIX}").write_text(content)
    assert [entry.name for entry in cubin_cache.entries()] == ["scale"]
    assert cubin_cache.usage()[0] == 2
