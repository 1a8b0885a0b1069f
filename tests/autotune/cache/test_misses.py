"""What programs ran untuned: which calls write it down, and which never do; broken disks and crowds."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import random
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import faops
from faops import dispatch, execute, registry
from faops.autotune import tuner
from faops.autotune.cache import TuningCache, misses
from faops.autotune.cache.entry import file_name
from faops.autotune.cache.misses import LIMIT, Miss
from faops.device import DeviceProfile, known
from faops.doctor import trial
from faops.problem import AttentionProblem, Band

from ..support import PROBLEM, make_entry, missed, untuned

H200 = known("h200")


def call(length: int = 9, heads: int = 2, dim: int = 8, **options: Any) -> Any:
    """A public call; its output, so that a test can look at it."""
    q, k, v = (torch.randn(1, length, heads, dim) for _ in range(3))
    return faops.attention(q, k, v, **options)


def winner(device: DeviceProfile, problem: AttentionProblem, **changes: Any) -> Any:
    """An entry that a call really uses: the default of the real kernel for ``problem``."""
    (kernel, *_) = dispatch.runnable(registry.kernels(problem.op), problem, device)
    config = kernel.default_config(problem, device)
    values = {"kernel": kernel.id, "source_hash": kernel.source_hash(), "config": config}
    return make_entry(device, problem, **{**values, **changes})


# --- which calls write ------------------------------------------------------------------------------------------------


def test_an_untuned_call_writes_its_problem_once(cache: TuningCache, cpu: DeviceProfile) -> None:
    call(9, causal=True)
    (path,) = missed(cache)
    assert path.parent == cache.directory(cpu) / "misses"
    content = json.loads(path.read_text())
    problem = AttentionProblem.from_dict(content["problem"])
    assert (problem.op, problem.seqlen_q, problem.heads_q, problem.band) == ("forward", 9, 2, Band(-1, 0))
    assert content["key"] == problem.key()
    assert path.name == file_name(problem.key())
    assert content["faops_version"] == faops.__version__
    assert len(content["date"]) == len("2026-11-21")
    assert content["device"] == cpu.as_dict()

    (miss,) = misses.waiting(cache, cpu.identity)
    assert miss == Miss(problem, problem.key(), content["date"], faops.__version__, path)
    before = path.stat()
    call(9, causal=True)
    call(12, causal=True)  # the same key
    dispatch.forget()
    call(12, causal=True)
    assert path.stat() == before
    assert missed(cache) == [path]
    call(17, causal=True)  # another key
    assert len(missed(cache)) == 2


def test_backward_and_cache_calls_are_written_too(cache: TuningCache, cpu: DeviceProfile) -> None:
    q, k, v = (torch.randn(1, 5, 2, 8, requires_grad=True) for _ in range(3))
    faops.attention(q, k, v).sum().backward()
    store = torch.randn(1, 16, 2, 8)
    faops.attention_with_kvcache(torch.randn(1, 1, 2, 8), store, store, cache_seqlens=torch.tensor([7]).int())
    found = {miss.problem.op: miss.problem for miss in misses.waiting(cache, cpu.identity)}
    assert set(found) == {"forward", "backward", "decode"}
    assert found["forward"].need_lse and found["backward"].need_lse
    assert found["decode"].seqlen_k == 16


def test_the_nearest_winner_is_a_miss_and_the_own_one_is_none(cache: TuningCache, cpu: DeviceProfile) -> None:
    problem = AttentionProblem(dtype="float32", seqlen_q=64, seqlen_k=64, heads_q=2, heads_kv=2, head_dim=8,
                               head_dim_v=8)  # fmt: skip
    cache.store(cpu, winner(cpu, problem))
    dispatch.forget()
    assert dispatch.plan(problem, cpu).source == "tuned"
    call(64)
    assert missed(cache) == []
    assert dispatch.plan(replace(problem, seqlen_q=32, seqlen_k=32), cpu).source == "nearest"
    call(32)
    assert [miss.problem.seqlen_q for miss in misses.waiting(cache, cpu.identity)] == [32]


@pytest.mark.parametrize(
    ("variable", "value"),
    [("FAOPS_BACKEND", "torch"), ("FAOPS_TUNING", "0"), ("FAOPS_RECORD_MISSES", "0"), ("FAOPS_EMULATE", "1")],
)
def test_settings_under_which_nothing_is_written(
    cache: TuningCache, monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    call()
    assert missed(cache) == []
    monkeypatch.delenv(variable)
    dispatch.forget()
    call()
    assert len(missed(cache)) == 1


def test_what_is_no_call_of_a_program_writes_nothing(
    cache: TuningCache, cpu: DeviceProfile, monkeypatch: pytest.MonkeyPatch
) -> None:
    q = torch.randn(1, 9, 2, 8)
    faops.explain(q, q, q)
    dispatch.explain(PROBLEM, H200)
    call(backend="torch")
    call(0)
    faops.attention(q, torch.randn(1, 0, 2, 8), torch.randn(1, 0, 2, 8))
    for op in ("forward", "backward", "decode"):  # what doctor does, and what the tuner does on a real device
        problem = trial.problems(op, cpu)[0]  # type: ignore[arg-type]
        (kernel, *_) = dispatch.runnable(registry.kernels(op), problem, cpu)  # type: ignore[arg-type]
        assert trial.run(kernel, problem, torch.device("cpu")).passed
        bench = tuner.DeviceBench(problem, torch.device("cpu"), cpu)
        bench.check(tuner.Candidate(kernel, kernel.default_config(problem, cpu)))
    assert missed(cache) == []

    def broken(*_: Any) -> Any:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(execute, "run", broken)
    with pytest.raises(RuntimeError, match="out of memory"):
        call()
    assert missed(cache) == []


def test_a_repeated_call_does_nothing_new(cache: TuningCache, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    original = misses.record
    monkeypatch.setattr(misses, "record", lambda *a: asked.append(1) or original(*a))
    q, k, v = (torch.randn(1, 9, 2, 8, requires_grad=True) for _ in range(3))
    for _ in range(4):
        faops.attention(q, k, v)  # through the memo of execute
        call()  # through the short path of a repeated call
    assert len(asked) == 2
    assert len(missed(cache)) == 2


def test_a_growing_length_looks_at_the_disk_once_a_key(cache: TuningCache, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[int] = []
    original = misses._record
    monkeypatch.setattr(misses, "_record", lambda *a: looks.append(1) or original(*a))
    q = torch.randn(1, 1, 2, 8)
    for length in range(33, 65):  # one key
        keys = torch.randn(1, length, 2, 8)
        faops.attention(q, keys, keys)
    assert len(looks) == len(missed(cache)) == 1


def test_problems_are_told_apart_as_keys_are() -> None:
    sizes, sides = (0, 1, 2, 3, 4, 5, 8, 9, 16, 1000, 1024, 1025), (-1, 0, 1, 2, 3, 4, 5)
    found = [
        AttentionProblem(
            dtype=random.choice(("float16", "float32")),
            batch=random.choice((1, 2, 3)),
            seqlen_q=random.choice(sizes),
            seqlen_k=1024,
            heads_q=random.choice((1, 2)),
            band=Band(random.choice(sides), random.choice(sides)),
            bias=random.choice(("", "..m.")),
        )
        for _ in range(400)
    ]
    pairs = {(misses._bucket(problem), problem.key()) for problem in found}
    assert len(pairs) == len({bucket for bucket, _ in pairs}) == len({key for _, key in pairs}) > 100


def test_a_running_process_writes_again_once_the_cache_is_cleared(cache: TuningCache, cpu: DeviceProfile) -> None:
    call()
    assert misses.clear(cache) == 1
    call()
    assert missed(cache) == []  # nothing has told this process
    dispatch.forget()  # as the dispatcher does when a winner has come or gone
    call()
    assert len(missed(cache)) == 1


# --- disks that fail, crowds ------------------------------------------------------------------------------------------


def test_there_is_a_limit(cache: TuningCache, cpu: DeviceProfile, monkeypatch: pytest.MonkeyPatch) -> None:
    assert LIMIT == 1000
    monkeypatch.setattr(misses, "LIMIT", 3)
    looks: list[object] = []
    original = os.listdir
    monkeypatch.setattr(os, "listdir", lambda *a: looks.extend(a) or original(*a))
    for heads in range(1, 8):
        untuned(replace(PROBLEM, heads_q=heads, heads_kv=heads), cpu)
    assert len(missed(cache)) == 3
    assert looks.count(cache.directory(cpu) / "misses") == 4  # and no more looks at a directory that is full
    untuned(PROBLEM, H200)  # another device has room of its own
    assert len(missed(cache)) == 4


def failing(error: int | Exception) -> Callable[..., Any]:
    def fail(*_: Any, **__: Any) -> Any:
        raise OSError(error, os.strerror(error)) if isinstance(error, int) else error

    return fail


@pytest.mark.parametrize(
    ("module", "name", "broken"),
    [
        (os, "open", failing(errno.EROFS)),
        (os, "mkdir", failing(errno.EACCES)),
        (os, "write", failing(errno.ENOSPC)),
        (os, "write", lambda descriptor, content: len(content) // 2),
        (os, "listdir", failing(errno.EIO)),
        (json, "dumps", failing(TypeError("a defect"))),
    ],
    ids=["read-only", "forbidden", "full", "nearly full", "unreadable", "defect"],
)
def test_a_failure_is_silent_and_leaves_nothing(
    cache: TuningCache, cpu: DeviceProfile, monkeypatch: pytest.MonkeyPatch, module: Any, name: str, broken: Any
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(module, name, broken)
        assert call(9).shape == (1, 9, 2, 8)
    assert missed(cache) == []


def test_the_first_failure_is_the_last_try(
    cache: TuningCache, cpu: DeviceProfile, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[int] = []

    def refuse(*_: Any) -> int:
        tries.append(1)
        raise OSError(errno.ENOSPC, "no space")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", refuse)
        for heads in (1, 2, 4):
            untuned(replace(PROBLEM, heads_q=heads, heads_kv=heads), cpu)
            untuned(replace(PROBLEM, heads_q=heads, heads_kv=heads), H200)
    untuned(replace(PROBLEM, heads_q=8), cpu)
    assert len(tries) == 1
    assert missed(cache) == []


@pytest.mark.parametrize("place", ["file", "file/cache"])
def test_a_cache_that_is_no_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    (tmp_path / "file").write_text("mine")
    monkeypatch.setenv("FAOPS_CACHE_DIR", str(tmp_path / place))
    assert call().shape == (1, 9, 2, 8)
    assert (tmp_path / "file").read_text() == "mine"
    cache = TuningCache()
    assert misses.waiting(cache, "cpu") == [] and misses.counts(cache) == {} and misses.clear(cache) == 0


def test_threads_write_each_problem_once(cache: TuningCache, cpu: DeviceProfile) -> None:
    start = threading.Barrier(8)

    def work() -> None:
        start.wait()
        for length in (3, 5, 9, 17, 33):
            call(length)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = misses.waiting(cache, cpu.identity)
    assert len(found) == len(missed(cache)) == 5


PROCESSES = multiprocessing.get_context("fork")  # which tests a process that has forked, too
CROWD, SHARED = 16, 10


def problem_of(number: int) -> AttentionProblem:
    return replace(PROBLEM, heads_q=number + 1, heads_kv=number + 1)


def crowd(number: int, device: DeviceProfile, start: Any, counts: Any) -> None:
    writes: list[int] = []
    original = os.write
    misses.os.write = lambda *a: writes.append(1) or original(*a)  # type: ignore[assignment]
    start.wait()
    for shared in range(SHARED):
        untuned(problem_of(shared), device)
    untuned(problem_of(SHARED + number), device)
    misses.os.write = original
    counts.put(len(writes))


def test_sixteen_processes_at_once(cache: TuningCache, cpu: DeviceProfile) -> None:
    untuned(problem_of(SHARED + CROWD), cpu)  # the parent has written before it forks
    start, counts = PROCESSES.Barrier(CROWD), PROCESSES.SimpleQueue()
    processes = [PROCESSES.Process(target=crowd, args=(number, cpu, start, counts)) for number in range(CROWD)]
    for process in processes:
        process.start()
    while any(process.is_alive() for process in processes):  # a reader meanwhile meets whole misses or none
        assert all(miss.key == miss.problem.key() for miss in misses.waiting(cache, cpu.identity))
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert sum(counts.get() for _ in processes) == (SHARED + 1) * CROWD  # a miss or a hit, each by one write
    found = misses.waiting(cache, cpu.identity)
    assert len(found) == len(missed(cache)) == SHARED + CROWD + 1
    assert sorted(miss.hits for miss in found) == [1] * (CROWD + 1) + [CROWD] * SHARED
