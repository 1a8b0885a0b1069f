"""Which calls count as hits of a miss, in which order misses are tuned, and when their hits go."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import faops
from faops import dispatch, execute, hits
from faops.autotune.cache import TuningCache, misses
from faops.device import DeviceProfile, known
from faops.errors import UnavailableError

from ..support import PROBLEM, make_entry, missed, untuned
from .test_misses import call, winner

H200 = known("h200")


def found(cache: TuningCache, cpu: DeviceProfile) -> dict[str, int]:
    """The hits of each waiting miss by its op, which is to be a single one."""
    waiting = misses.waiting(cache, cpu.identity)
    assert len({miss.problem.op for miss in waiting}) == len(waiting)
    return {miss.problem.op: miss.hits for miss in waiting}


def notes(cache: TuningCache) -> list[Path]:
    return sorted(cache.root.rglob("hits/*"))


# --- which calls count ------------------------------------------------------------------------------------------------

Call = Callable[[], object]


def plain() -> Call:
    q, k, v = (torch.randn(1, 9, 2, 8) for _ in range(3))
    return lambda: faops.attention(q, k, v)


def with_lse() -> Call:
    q, k, v = (torch.randn(1, 2, 9, 8) for _ in range(3))
    return lambda: faops.attention(q, k, v, layout="bhsd", return_lse=True)


def with_bias() -> Call:
    q, k, v = (torch.randn(1, 9, 2, 8) for _ in range(3))
    return lambda: faops.attention(q, k, v, bias=torch.zeros(1, 1, 9, 9))


def recorded() -> Call:
    q, k, v = (torch.randn(1, 9, 2, 8, requires_grad=True) for _ in range(3))
    return lambda: faops.attention(q, k, v)


def packed() -> Call:
    q = torch.randn(9, 2, 8)
    offsets = torch.tensor([0, 4, 9]).int()
    return lambda: faops.attention_varlen(q, q, q, offsets, offsets, 5, 5)


def operator() -> Call:
    q, k, v = (torch.randn(1, 9, 2, 8) for _ in range(3))
    numbers = (9, 9, -1, -1, 0.3, 0.0, 0.0, False, False, "")
    return lambda: torch.ops.faops.attention(q, k, v, *[None] * 7, *numbers)


def compiled() -> Call:
    q, k, v = (torch.randn(1, 9, 2, 8) for _ in range(3))
    model = torch.compile(lambda *tensors: faops.attention(*tensors), backend="eager", fullgraph=True)
    return lambda: model(q, k, v)


@pytest.mark.parametrize(
    "make", [plain, with_lse, with_bias, recorded, packed, operator, pytest.param(compiled, marks=pytest.mark.full)]
)
def test_every_call_counts_once(cache: TuningCache, cpu: DeviceProfile, make: Callable[[], Call]) -> None:
    run = make()
    for number in range(1, 17):
        run()
        if number & (number - 1) == 0:
            assert found(cache, cpu) == {"forward": number}
    assert len(notes(cache)) == 1


def test_backward_and_cache_calls_count_too(cache: TuningCache, cpu: DeviceProfile) -> None:
    q, k, v = (torch.randn(1, 5, 2, 8, requires_grad=True) for _ in range(3))
    for _ in range(8):
        faops.attention(q, k, v).sum().backward()
    assert found(cache, cpu) == {"forward": 8, "backward": 8}


@pytest.mark.parametrize("short", [True, False])
def test_cache_calls_count_by_both_ways(
    cache: TuningCache, cpu: DeviceProfile, monkeypatch: pytest.MonkeyPatch, short: bool
) -> None:
    if not short:
        monkeypatch.setattr("faops.repeat_kvcache.key_of", lambda *_: None)
    store, q, lengths = torch.randn(1, 16, 2, 8), torch.randn(1, 1, 2, 8), torch.tensor([7]).int()
    for _ in range(8):
        faops.attention_with_kvcache(q, store, store, cache_seqlens=lengths)
    assert found(cache, cpu) == {"decode": 8}


def test_shapes_of_one_key_count_together(cache: TuningCache, cpu: DeviceProfile) -> None:
    for length in (9, 10, 11, 16):
        for _ in range(4):
            call(length)
    assert found(cache, cpu) == {"forward": 16}


def test_a_count_survives_the_plans(cache: TuningCache, cpu: DeviceProfile) -> None:
    for _ in range(64):
        call()
    before = [note.read_text() for note in notes(cache)]
    for _ in range(10):
        dispatch.forget()  # as when a winner of any problem arrives: it is no reason to write again
        call()
    assert [note.read_text() for note in notes(cache)] == before
    for _ in range(54):
        call()
    assert found(cache, cpu) == {"forward": 128}


def test_a_call_that_fails_is_none(cache: TuningCache, cpu: DeviceProfile, monkeypatch: pytest.MonkeyPatch) -> None:
    original, tries = execute.run, iter(range(100))

    def broken(*arguments: Any) -> Any:
        if next(tries) % 2 == 0:
            raise RuntimeError("out of memory")
        return original(*arguments)

    monkeypatch.setattr(execute, "run", broken)
    q = torch.randn(1, 9, 2, 8, requires_grad=True)
    for _ in range(8):
        with pytest.raises(RuntimeError, match="out of memory"):
            faops.attention(q, q, q)
        faops.attention(q, q, q)
    assert found(cache, cpu) == {"forward": 8}


def test_a_kernel_that_gives_way_leaves_the_count_to_the_next(
    cache: TuningCache, cpu: DeviceProfile, monkeypatch: pytest.MonkeyPatch
) -> None:
    q = torch.randn(1, 9, 2, 8, requires_grad=True)
    faops.attention(q, q, q)
    with monkeypatch.context() as patch:
        patch.setattr(execute, "run", lambda *_: (_ for _ in ()).throw(UnavailableError("fake", "no")))
        with pytest.raises(UnavailableError):
            faops.attention(q, q, q)
    assert found(cache, cpu) == {"forward": 1}


def test_a_tuned_or_forced_call_counts_nothing(cache: TuningCache, cpu: DeviceProfile) -> None:
    call(64)
    (miss,) = misses.waiting(cache, cpu.identity)
    cache.store(cpu, winner(cpu, miss.problem))
    dispatch.forget()
    for _ in range(16):
        call(64)
        call(64, backend="torch")
    assert notes(cache) == []


# --- reading and removing ---------------------------------------------------------------------------------------------


def test_what_took_the_most_time_comes_first(cache: TuningCache) -> None:
    small, large = PROBLEM, replace(PROBLEM, batch=64, seqlen_q=4096, seqlen_k=4096, heads_q=32, heads_kv=8)
    for _ in range(4):
        untuned(small, H200)
    untuned(large, H200)
    waiting = misses.waiting(cache, H200.identity)
    assert [miss.hits for miss in misses.urgent(waiting, H200)] == [1, 4]
    assert [miss.problem for miss in misses.urgent(waiting, H200)] == [large, small]
    for path in missed(cache):
        if path.name == next(miss for miss in waiting if miss.problem == small).path.name:
            hits.add(path, 10**9)
    waiting = misses.waiting(cache, H200.identity)
    assert [miss.problem for miss in misses.urgent(waiting, H200)] == [small, large]


def test_hits_go_with_their_miss(cache: TuningCache, cpu: DeviceProfile) -> None:
    for length in (9, 64):
        for _ in range(4):
            call(length)
    assert len(notes(cache)) == len(missed(cache)) == 2
    (miss, _) = misses.waiting(cache, cpu.identity)
    cache.store(cpu, winner(cpu, miss.problem))
    assert misses.settle(cache, cpu.identity) == 1
    assert [note.stem for note in notes(cache)] == [path.stem for path in missed(cache)]
    assert misses.clear(cache) == 1
    assert notes(cache) == missed(cache) == []


def test_hits_that_a_call_wrote_too_late_go_as_well(cache: TuningCache, cpu: DeviceProfile) -> None:
    for _ in range(4):
        call()
    (path,) = missed(cache)
    path.unlink()
    cache.store(cpu, make_entry(cpu))
    assert misses.settle(cache, cpu.identity) == 0
    assert notes(cache) == []


def test_a_full_directory_still_counts_what_is_in_it(
    cache: TuningCache, cpu: DeviceProfile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(misses, "LIMIT", 1)
    call()
    call(64)
    assert len(missed(cache)) == 1
    dispatch.forget()
    for _ in range(7):
        call()
        call(64)
    assert found(cache, cpu) == {"forward": 8}
    assert len(notes(cache)) == 1
