"""Real small and read-only file systems, mounted where only a child process sees them."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import traceback
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from faops import dispatch, files
from faops.autotune.cache import TuningCache, lookup, misses
from faops.autotune.cache.exchange import Offer, take
from faops.autotune.cache.pruning import prune, stale
from faops.device import known
from faops.errors import CacheError
from faops.problem import AttentionProblem
from faops.registry import Config

from ..support import PROBLEM, FakeKernel, make_entry, missed, untuned

H200 = known("h200")
KERNEL = FakeKernel()
PROCESSES = multiprocessing.get_context("fork")
CANNOT_MOUNT, FAILED = 77, 9  # exit codes
NEW_MOUNTS, NEW_USER = 0x00020000, 0x10000000  # linux/sched.h: CLONE_NEWNS, CLONE_NEWUSER
PRIVATE, READ_ONLY, REMOUNT = 0x44000, 1, 32  # linux/mount.h: MS_REC | MS_PRIVATE, MS_RDONLY, MS_REMOUNT


def mount(directory: Path, options: str = "", flags: int = 0, kind: bytes = b"tmpfs") -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"none", bytes(directory), kind, flags, options.encode()):
        raise OSError(ctypes.get_errno(), "mount")


def privately(directory: Path, size: str, act: Callable[[TuningCache], None]) -> None:
    """In a child, mount a memory disk of ``size`` on ``directory`` and do something to the cache there."""

    def child() -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        try:
            if libc.unshare(NEW_MOUNTS) and libc.unshare(NEW_MOUNTS | NEW_USER):
                raise OSError(ctypes.get_errno(), "unshare")
            mount(Path("/"), flags=PRIVATE, kind=b"")
            mount(directory, f"size={size}")
        except (OSError, AttributeError):
            os._exit(CANNOT_MOUNT)
        warnings.simplefilter("error")
        try:
            act(TuningCache(directory))
        except BaseException:
            traceback.print_exc()
            os._exit(FAILED)
        os._exit(0)

    directory.mkdir(exist_ok=True)
    process = PROCESSES.Process(target=child)
    process.start()
    process.join()
    if process.exitcode == CANNOT_MOUNT:
        pytest.skip("this process may not mount")
    assert process.exitcode == 0


def numbered(number: int) -> AttentionProblem:
    return replace(PROBLEM, head_dim=8 * (number + 1))


def store_many(cache: TuningCache) -> None:
    for number in range(1000):
        cache.store(H200, make_entry(H200, numbered(number)))


def fill_up(cache: TuningCache) -> None:
    with pytest.raises(CacheError, match="No space left on device"):
        store_many(cache)
    stored = len(cache.entries())
    assert stored >= 3
    with pytest.raises(CacheError, match="No space left on device"):
        cache.store(H200, make_entry(H200, numbered(0), config=Config(block=5)))
    (outcome,) = take(cache, [Offer("x", make_entry(H200, numbered(1), p50=0.1))])
    assert outcome.status == "refused" and "No space left" in outcome.reason
    assert len(cache.entries()) == stored
    for number in range(stored):
        winner = lookup(numbered(number), H200, [KERNEL], cache.root)
        assert winner is not None and winner.config == Config(block=3)
    assert not list(cache.root.rglob(f"*{files.TEMPORARY_SUFFIX}"))
    dispatch.forget()
    untuned(replace(PROBLEM, heads_q=64), H200)  # a note for which there is no room is dropped, not half written
    assert missed(cache) == []
    cache.clear(key=numbered(0).key())
    cache.store(H200, make_entry(H200, numbered(0), config=Config(block=5)))


def test_a_full_disk(cache: TuningCache) -> None:
    privately(cache.root, "48k", fill_up)


def use_read_only(cache: TuningCache) -> None:
    cache.store(H200, make_entry(H200))
    cache.store(H200, make_entry(H200, numbered(1), environment={"torch": "0.1"}))
    mount(cache.root, flags=READ_ONLY | REMOUNT)
    assert lookup(PROBLEM, H200, [KERNEL], cache.root) is not None
    assert len(cache.entries()) == 2
    with pytest.raises(CacheError, match="Read-only file system"):
        cache.store(H200, make_entry(H200, config=Config(block=5)))
    (outcome,) = take(cache, [Offer("x", make_entry(H200, numbered(2)))])
    assert outcome.status == "refused" and "Read-only file system" in outcome.reason
    with pytest.raises(CacheError, match="Read-only file system"):
        cache.clear()
    with pytest.raises(CacheError, match="Read-only file system"):
        prune(cache, stale(cache))
    untuned(numbered(3), H200)
    assert missed(cache) == [] and misses.waiting(cache, H200.identity) == []
    assert len(cache.entries()) == 2


def test_a_read_only_disk(cache: TuningCache) -> None:
    privately(cache.root, "1m", use_read_only)
