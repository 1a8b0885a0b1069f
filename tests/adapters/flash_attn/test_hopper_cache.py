"""flash-attn 3's call with a KV cache, against an oracle that keeps each sequence's keys by itself."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

import faops
from faops.adapters.flash_attn import hopper
from tests.adapters.flash_attn.hopper_oracle import Rules, attend, rotated
from tests.support import assert_accurate, cumulative

BATCH, CAPACITY, DIM, DIM_V = 3, 24, 16, 8
FEATURES = ("packed_q", "packed_k", "new", "paged", "rows", "leftpad", "rotary", "own_starts", "qv", "chunk", "full")


@dataclass
class Problem:
    """A random call. ``arguments`` go to the function; the lists say the same a sequence at a time."""

    features: set[str]
    dtype: torch.dtype
    rules: Rules
    rows: list[int]  # query rows
    added: list[int]  # new keys
    filled: list[int]  # keys in the cache
    pads: list[int]
    slots: list[list[tuple[int, int]]]  # where each position of a sequence lies in the caches
    starts: list[int]  # rotary positions of the first new tokens
    behind: int = 0  # packed tokens of no sequence
    arguments: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return (
            f"{sorted(self.features)} {self.rules} {self.rows=} {self.added=} {self.filled=} {self.pads=} {self.dtype}"
        )


def int32(values: list[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def make(features: set[str]) -> Problem:
    dtype = random.choice((torch.float32, torch.float16, torch.bfloat16))
    rows = [random.randint(0, 6) for _ in range(BATCH)] if "packed_q" in features else [random.randint(1, 6)] * BATCH
    added = [random.randint(0, 6) for _ in range(BATCH)] if "packed_k" in features else [random.randint(1, 6)] * BATCH
    if "new" not in features:
        added = [0] * BATCH
    full = "full" in features and "new" not in features
    filled = [CAPACITY if full else random.randint(0, CAPACITY - 6) for _ in range(BATCH)]
    pads = [random.randint(0, length + new) if "leftpad" in features else 0 for length, new in zip(filled, added)]
    dims = DIM + (DIM_V if "qv" in features else 0)
    causal, window = random.random() < 0.5, random.choice(((-1, -1), (random.randint(0, 9), random.randint(-1, 5))))
    rules = Rules(dims**-0.5, causal, window, random.randint(1, 30) if "chunk" in features else 0)
    starts = [random.randint(0, 9) for _ in range(BATCH)] if "own_starts" in features else filled
    problem = Problem(features, dtype, rules, rows, added, filled, pads, [], starts, random.choice((0, 2)))
    options = {"causal": causal, "window_size": window, "attention_chunk": rules.chunk}
    problem.arguments = {**options, **make_cache(problem), **make_tokens(problem)}
    if not full:
        same = len(set(filled)) == 1 and random.random() < 0.5
        problem.arguments["cache_seqlens"] = filled[0] if same else int32(filled)
    return problem


def make_cache(problem: Problem) -> dict[str, Any]:
    """Caches with the keys of each sequence at random rows or pages, NaN where there is none."""
    features, arguments = problem.features, {}
    order = random.sample(range(BATCH + 2), BATCH) if "rows" in features else list(range(BATCH))
    if "paged" in features:
        size = random.choice((1, 3, 8))
        count = CAPACITY // size
        table = torch.randperm(count * (BATCH + 3))[: count * (BATCH + 2)].view(BATCH + 2, count)
        shape: tuple[int, ...] = (count * (BATCH + 3), size)
        problem.slots = [[(int(table[row, p // size]), p % size) for p in range(CAPACITY)] for row in order]
        for row, length, new in zip(order, problem.filled, problem.added):
            table[row, -(-(length + new) // size) :] = 10**6  # pages that nothing needs need not exist
        arguments["page_table"] = (table if "rows" in features else table[:BATCH]).to(torch.int32)
    else:
        shape = (BATCH + 2, CAPACITY)
        problem.slots = [[(row, p) for p in range(CAPACITY)] for row in order]
    caches = [torch.full((*shape, 2, dim), torch.nan, dtype=problem.dtype) for dim in (DIM, DIM_V)]
    for slots, pad, length in zip(problem.slots, problem.pads, problem.filled):
        for slot in slots[min(pad, length) : length]:
            for cache in caches:
                cache[slot] = torch.randn(cache.shape[2:])
    arguments |= {"k_cache": caches[0], "v_cache": caches[1]}
    if "rows" in features:
        arguments["cache_batch_idx"] = int32(order)
    if "leftpad" in features:
        arguments["cache_leftpad"] = int32(problem.pads)
    return arguments


def make_tokens(problem: Problem) -> dict[str, Any]:
    """q, qv, new keys and values and rotary tables; packed tokens of no sequence are NaN."""
    features, arguments = problem.features, {}

    def tokens(name: str, counts: list[int], heads: int, dim: int, packed: bool) -> None:
        shape = (sum(counts) + problem.behind,) if packed else (BATCH, counts[0])
        made = torch.randn(*shape, heads, dim).to(problem.dtype)
        if packed:
            made[sum(counts) :] = torch.nan
        arguments[name] = made

    packed_q, packed_k = "packed_q" in features, "packed_k" in features
    tokens("q", problem.rows, 4, DIM, packed_q)
    if packed_q:
        arguments |= {"cu_seqlens_q": cumulative(problem.rows), "max_seqlen_q": max(problem.rows) + 1}
    if "qv" in features:
        tokens("qv", problem.rows, 4, DIM_V, packed_q)
    if "new" in features:
        tokens("k", problem.added, 2, DIM, packed_k)
        tokens("v", problem.added, 2, DIM_V, packed_k)
        if packed_k:
            arguments["cu_seqlens_k_new"] = cumulative(problem.added)
    if "rotary" in features:
        angles = torch.rand(CAPACITY + 20, random.choice((2, DIM // 2))) * 6
        arguments |= {"rotary_cos": angles.cos().to(problem.dtype), "rotary_sin": angles.sin().to(problem.dtype)}
        arguments["rotary_interleaved"] = random.random() < 0.5
        if "own_starts" in features:
            arguments["rotary_seqlens"] = int32(problem.starts)
    return arguments


def sequence(problem: Problem, tensor: Tensor, counts: list[int], b: int, packed: bool) -> Tensor:
    """The tokens of sequence b, (S, ...)."""
    return tensor[sum(counts[:b]) : sum(counts[: b + 1])] if packed else tensor[b]


def expect(problem: Problem, dtype: torch.dtype) -> tuple[list[tuple[Tensor, Tensor]], Tensor, Tensor]:
    """(out, lse) of each sequence computed in ``dtype``, and the caches afterwards."""
    given, features = problem.arguments, problem.features
    k_cache, v_cache, results = given["k_cache"].clone(), given["v_cache"].clone(), []
    packed_q, packed_k = "packed_q" in features, "packed_k" in features
    banded = problem.rules.causal or max(problem.rules.window) >= 0
    for b in range(BATCH):
        rows, added, length, start = problem.rows[b], problem.added[b], problem.filled[b], problem.starts[b]
        q = sequence(problem, given["q"], problem.rows, b, packed_q)
        qv = sequence(problem, given["qv"], problem.rows, b, packed_q) if "qv" in features else None
        tables = (given.get("rotary_cos"), given.get("rotary_sin"))
        if "rotary" in features:
            positions = [start + (row if banded else 0) for row in range(rows)]
            q = rotated(q, *tables, positions, given["rotary_interleaved"])
        if "new" in features:
            k = sequence(problem, given["k"], problem.added, b, packed_k)
            if "rotary" in features:
                k = rotated(k, *tables, [start + new for new in range(added)], given["rotary_interleaved"])
            v = sequence(problem, given["v"], problem.added, b, packed_k)
            for new, slot in enumerate(problem.slots[b][length : length + added]):
                k_cache[slot], v_cache[slot] = k[new], v[new]
        own = problem.slots[b][problem.pads[b] : length + added]
        keys = [torch.stack([cache[slot] for slot in own]) if own else cache[:0, 0] for cache in (k_cache, v_cache)]
        results.append(attend(q, *keys, qv, problem.rules, dtype))
    return results, k_cache, v_cache


def check(problem: Problem) -> None:
    exact, k_cache, v_cache = expect(problem, torch.float64)
    plain, _, _ = expect(problem, problem.dtype)
    out, lse, *parts = hopper.flash_attn_with_kvcache(**problem.arguments, return_softmax_lse=True)
    assert [part.numel() for part in parts] == [0, 0]
    assert lse.dtype == torch.float32
    packed = "packed_q" in problem.features
    assert out.shape == (*problem.arguments["q"].shape[:-1], DIM_V)
    assert lse.shape == ((4, out.shape[0]) if packed else (BATCH, 4, problem.rows[0]))
    for cache, expected in ((problem.arguments["k_cache"], k_cache), (problem.arguments["v_cache"], v_cache)):
        # A rotated key may be rounded the other way; the rest is what was given, or was there.
        torch.testing.assert_close(cache, expected, rtol=2 * torch.finfo(cache.dtype).eps, atol=1e-6, equal_nan=True)
    for b in range(BATCH):
        own = sequence(problem, out, problem.rows, b, packed)
        rows = slice(sum(problem.rows[:b]), sum(problem.rows[: b + 1]))
        own_lse = lse[:, rows] if packed else lse[b]
        assert_accurate("out", own, exact[b][0], plain[b][0], str(problem))
        assert_accurate("lse", own_lse, exact[b][1], plain[b][1], str(problem))
    if packed:
        assert (out[sum(problem.rows) :] == 0).all()
        assert (lse[:, sum(problem.rows) :] == -torch.inf).all()


@pytest.mark.parametrize("feature", FEATURES)
def test_feature(feature: str) -> None:
    needs = {"packed_k": {"new"}, "own_starts": {"rotary"}, "rotary": {"new"}}
    check(make({feature} | needs.get(feature, set())))


@pytest.mark.parametrize("filled", [0, CAPACITY])
def test_tokens_of_no_sequence(filled: int) -> None:
    """Packed tokens behind the last sequence, more than there is room or an angle for, are neither written nor read."""
    problem = make({"new", "packed_k", "packed_q", "rotary"})
    problem.filled = problem.starts = [filled] * BATCH
    problem.added = [2 if filled == 0 else 0] * BATCH
    problem.behind, problem.pads = CAPACITY + 60, [0] * BATCH
    problem.arguments |= {**make_cache(problem), **make_tokens(problem), "cache_seqlens": int32(problem.filled)}
    check(problem)


@pytest.mark.parametrize("attempt", range(40))
def test_features_together(attempt: int) -> None:
    check(make({feature for feature in FEATURES if random.random() < 0.5}))


@pytest.mark.full
@pytest.mark.parametrize("attempt", range(1500))
def test_features_together_many_times(attempt: int) -> None:
    check(make({feature for feature in FEATURES if random.random() < 0.5}))


def test_starts_that_are_the_lengths_need_no_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = make({"new", "rotary"})
    problem.arguments["cache_seqlens"] = problem.arguments["rotary_seqlens"] = int32(problem.filled)
    seen = []
    real = faops.attention_with_kvcache
    monkeypatch.setattr(
        faops, "attention_with_kvcache", lambda *args, **named: seen.append(named) or real(*args, **named)
    )
    check(problem)
    assert seen[0]["rotary_cos"] is problem.arguments["rotary_cos"]


# --- errors -----------------------------------------------------------------------------------------------------------

WRONG: list[tuple[str, set[str], dict[str, Any]]] = [
    ("max_seqlen_q", {"packed_q"}, {"max_seqlen_q": None}),
    ("cu_seqlens_q", {"packed_q"}, {"cu_seqlens_q": int32([0, 3, 2, 4])}),
    ("cu_seqlens_q", {"packed_q"}, {"cu_seqlens_q": int32([1, 3, 4, 4])}),
    ("cu_seqlens_q", {"packed_q"}, {"cu_seqlens_q": int32([0, 0, 0, 99]), "max_seqlen_q": 99}),
    ("cu_seqlens_q", {"packed_q"}, {"max_seqlen_q": 0, "cu_seqlens_q": int32([0, 1, 1, 1])}),
    ("cu_seqlens_k_new", {"new", "packed_k"}, {"cu_seqlens_k_new": int32([0, 1])}),
    ("cu_seqlens_k_new", {"new", "packed_k"}, {"cu_seqlens_k_new": torch.arange(4)}),
    ("cache_seqlens", {"new", "packed_k"}, {"cache_seqlens": None}),
    ("cache_seqlens", {"new", "packed_k"}, {"cache_seqlens": int32([0, 0])}),
    ("cache_seqlens", {"new", "qv"}, {"cache_seqlens": CAPACITY}),
    ("cache_seqlens", {"new", "qv"}, {"cache_seqlens": int32([1, -1, 1])}),
    ("cache_batch_idx", {"new", "qv", "rows"}, {"cache_batch_idx": int32([0, 1, 99])}),
    ("cache_batch_idx", {"new", "qv", "rows"}, {"cache_batch_idx": int32([1, 0, 1]), "cache_seqlens": 4}),
    ("cache_batch_idx", {"new", "qv", "rows", "paged"}, {"cache_batch_idx": int32([0, -1, 2])}),
    ("page_table", {"new", "qv", "paged"}, {"page_table": torch.full((BATCH, CAPACITY), -1, dtype=torch.int32)}),
    ("v", {"new", "packed_k"}, {"v": None}),
    ("v", {"new", "packed_k"}, {"v": torch.randn(3, 2, DIM_V)}),
    ("k", {"new", "qv"}, {"k": torch.randn(BATCH, 2, 1, DIM)}),
    ("qv", {"new", "qv"}, {"qv": torch.randn(BATCH, 2, 4, DIM)}),
    ("rotary_sin", {"new", "rotary"}, {"rotary_sin": None}),
    ("rotary_cos", {"new", "rotary", "own_starts"}, {"rotary_seqlens": int32([0, CAPACITY + 20, 0])}),
    ("rotary_cos", {"new", "rotary", "packed_k"}, {"rotary_cos": torch.randn(CAPACITY, DIM)}),
    ("rotary_seqlens", {"new", "rotary"}, {"rotary_seqlens": int32([0])}),
    ("softcap", {"new", "packed_k"}, {"softcap": -1.0}),
    ("window_size", {"new", "qv"}, {"window_size": (1, 2, 3)}),
    ("cache_leftpad", {"new", "packed_k"}, {"cache_leftpad": int32([0, CAPACITY + 1, 0])}),
    ("num_splits", {"new", "qv"}, {"num_splits": -1}),
    ("scheduler_metadata", {"new"}, {"scheduler_metadata": 3}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "features", "changes"), WRONG)
def test_error_leaves_the_cache(name: str, features: set[str], changes: dict[str, Any]) -> None:
    problem = make(features)
    caches = problem.arguments["k_cache"], problem.arguments["v_cache"]
    before = [cache.clone() for cache in caches]
    with pytest.raises(faops.ArgumentError, match=f"^{name}: got"):
        hopper.flash_attn_with_kvcache(**problem.arguments | changes)
    for cache, saved in zip(caches, before):
        assert torch.equal(cache.view(torch.uint8), saved.view(torch.uint8))


def test_new_keys_in_the_cache_itself() -> None:
    problem = make({"new", "packed_k"})
    problem.arguments["k"] = problem.arguments["k_cache"].flatten(0, 1)[: sum(problem.added) + problem.behind]
    with pytest.raises(faops.ArgumentError, match=r"^k: got a view of a cache's memory"):
        hopper.flash_attn_with_kvcache(**problem.arguments)


def test_no_kernel_leaves_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = make({"new", "packed_k"})
    before = problem.arguments["k_cache"].clone()
    monkeypatch.setenv("FAOPS_BACKEND", "cuda_raw")  # for GPUs, and its emulator is off
    monkeypatch.delenv("FAOPS_EMULATE", raising=False)
    with pytest.raises(faops.NoKernelError):
        hopper.flash_attn_with_kvcache(**problem.arguments)
    assert torch.equal(problem.arguments["k_cache"].view(torch.uint8), before.view(torch.uint8))
