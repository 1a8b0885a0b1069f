"""Attention through the caches, dense and paged, against the oracle over the whole sequences."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import faops
from faops import reference
from faops.errors import ArgumentError, NoKernelError
from faops.nn import KVCache, PagedKVCache, RotaryEmbedding, Step
from tests.support import assert_accurate

H, HK, D, DV, LAYERS = 6, 2, 16, 24, 2
FEATURES: dict[str, Callable[[], dict[str, Any]]] = {
    "plain": dict,
    "rotary": lambda: {"rotary": RotaryEmbedding(random.choice((4, 16)), interleaved=random.random() < 0.5)},
    "window": lambda: {"window": (random.randint(0, 9), random.choice((-1, 0, 4)))},
    "scores": lambda: {"scale": random.uniform(0.1, 0.5), "softcap": random.uniform(0.5, 3.0)},
    "alibi": lambda: {"alibi_slopes": torch.rand(H) * 0.3},
    "sinks": lambda: {"sinks": torch.randn(H) + 1},
}


class Cache:
    """Either kind behind one face, full of NaN to begin with."""

    def __init__(self, kind: str, batch: int, capacity: int, dtype: torch.dtype = torch.float32) -> None:
        self.sequences = None
        self.inner: Any
        if kind == "dense":
            self.inner = KVCache(batch, capacity, HK, D, DV, layers=LAYERS, dtype=dtype)
        else:
            page_size = random.choice((1, 3, 16))
            pages = batch * -(-capacity // page_size)
            self.inner = PagedKVCache(pages, page_size, HK, D, DV, layers=LAYERS, dtype=dtype)
            self.sequences = [self.inner.allocate() for _ in range(batch)]
        self.inner.k.fill_(torch.nan)
        self.inner.v.fill_(torch.nan)

    def append(self, counts: int | list[int]) -> Step:
        return self.inner.append(counts) if self.sequences is None else self.inner.append(self.sequences, counts)

    def snapshot(self) -> tuple[Tensor, Tensor]:
        return self.inner.k.clone(), self.inner.v.clone()


def tokens(count: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [torch.randn(count, heads, dim).to(dtype) for heads, dim in ((H, D), (HK, D), (HK, DV))]


def oracle(q: Tensor, k: Tensor, v: Tensor, features: dict[str, Any], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(out, lse) of one whole sequence, packed."""
    features = {**features}
    rotary = features.pop("rotary", None)
    if rotary is not None:
        q, k = rotary(q), rotary(k)
    q, k, v = (tensor[None].to(dtype) for tensor in (q, k, v))
    out, lse = reference.attention(q, k, v, causal=True, dtype=dtype, **features)
    return out[0], lse[0]


def check(kind: str, schedule: list[list[int]], features: dict[str, Any], dtype: torch.dtype, four_axes: bool) -> None:
    """Append by the schedule, a list of counts for each step, and compare all results with those of whole sequences."""
    batch = len(schedule[0])
    lengths = [sum(counts[b] for counts in schedule) for b in range(batch)]
    whole = [tokens(length, dtype) for length in lengths]
    cache, starts = Cache(kind, batch, max(lengths), dtype), [0] * batch
    results: list[list[tuple[Tensor, Tensor]]] = [[] for _ in range(batch)]
    for counts in schedule:
        step = cache.append(counts)
        new = [
            torch.cat([whole[b][part][starts[b] : starts[b] + counts[b]] for b in range(batch)]) for part in range(3)
        ]
        if four_axes and len(set(counts)) == 1:
            new = [tensor.view(batch, counts[0], *tensor.shape[1:]) for tensor in new]
        out, lse = step.attend(1, *new, return_lse=True, **features)
        if four_axes and len(set(counts)) == 1:
            out, lse = out.flatten(0, 1), lse.transpose(0, 1).flatten(1)
        assert out.dtype == dtype
        for b, (part, log) in enumerate(zip(out.split(counts), lse.split(counts, dim=1))):
            results[b].append((part, log))
            starts[b] += counts[b]
    for b, parts in enumerate(results):
        exact, unfused = (oracle(*whole[b], features, kind_) for kind_ in (torch.float64, dtype))
        context = f"{kind} {schedule} {features} {dtype}"
        for what, actual, index in (("out", torch.cat([out for out, _ in parts]), 0),
                                    ("lse", torch.cat([lse for _, lse in parts], dim=1), 1)):  # fmt: skip
            assert_accurate(what, actual, exact[index], unfused[index], context)
    assert cache.inner.k[0].isnan().all() and cache.inner.v[0].isnan().all()  # the other layer


def random_schedule() -> list[list[int]]:
    """Prompts, chunks and single tokens of some sequences, mixed, with idle ones among them."""
    batch = random.randint(1, 4)
    schedule = [[random.choice((0, 0, 1, random.randint(2, 20))) for _ in range(batch)] for _ in range(4)]
    return [*schedule, [random.randint(1, 3)] * batch, [1] * batch]


@pytest.mark.parametrize("feature", FEATURES)
@pytest.mark.parametrize("kind", ["dense", "paged"])
def test_attention_in_steps_is_attention_over_the_whole(kind: str, feature: str, poisoned: None) -> None:
    for four_axes in (False, True):
        check(kind, random_schedule(), FEATURES[feature](), torch.float32, four_axes)


@pytest.mark.parametrize("kind", ["dense", "paged"])
def test_features_together_and_other_dtypes(kind: str, poisoned: None) -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        features = {name: value for make in FEATURES.values() for name, value in make().items()}
        features["rotary"] = None if dtype == torch.float64 else features["rotary"]  # its tables are float32
        check(kind, random_schedule(), features, dtype, random.random() < 0.5)


@pytest.mark.full
@pytest.mark.parametrize("kind", ["dense", "paged"])
def test_many_schedules(kind: str, poisoned: None) -> None:
    for _ in range(150):
        chosen = random.sample(list(FEATURES), random.randint(1, len(FEATURES)))
        features = {name: value for feature in chosen for name, value in FEATURES[feature]().items()}
        check(kind, random_schedule(), features, torch.float32, random.random() < 0.5)


@pytest.mark.parametrize("kind", ["dense", "paged"])
def test_keys_are_cached_rotated_and_nothing_else_is_written(kind: str) -> None:
    cache, rotary, counts = Cache(kind, 3, 20), RotaryEmbedding(D), [5, 0, 12]
    new = tokens(17)
    cache.append(counts).attend(0, *new, rotary=rotary)
    more = [torch.randn(3, 2, *tensor.shape[1:]) for tensor in new]
    second = cache.append(2)
    second.attend(0, *more, rotary=rotary)
    keys, values = (tensor[0].flatten(0, 1) for tensor in (cache.inner.k, cache.inner.v))
    expected = rotary(more[1].flatten(0, 1), second.positions)
    torch.testing.assert_close(keys[second.slots], expected, rtol=0, atol=0)
    torch.testing.assert_close(values[second.slots], more[2].flatten(0, 1), rtol=0, atol=0)
    assert second.positions.tolist() == [5, 6, 0, 1, 12, 13]
    assert int(keys[:, 0, 0].isfinite().sum()) == int(values[:, 0, 0].isfinite().sum()) == 17 + 6


@pytest.mark.parametrize("kind", ["dense", "paged"])
def test_a_layer_reads_the_keys_that_another_wrote(kind: str) -> None:
    cache, rotary = Cache(kind, 2, 20), RotaryEmbedding(D)
    for counts in ([7, 4], [1, 1], [3, 0]):
        step, new = cache.append(counts), tokens(sum(counts))
        written = step.attend(1, *new, rotary=rotary)
        before = cache.snapshot()
        torch.testing.assert_close(step.attend(1, new[0], rotary=rotary), written)
        for was, is_now in zip(before, cache.snapshot()):
            torch.testing.assert_close(was, is_now, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("kind", ["dense", "paged"])
def test_the_tensors_of_a_step(kind: str) -> None:
    cache = Cache(kind, 3, 20)
    cache.append([2, 0, 4])
    step = cache.append([3, 0, 1])
    assert (step.total, step.starts.tolist(), step.counts.tolist()) == (4, [2, 0, 4], [3, 0, 1])
    assert step.cu_seqlens.tolist() == [0, 3, 3, 4] and step.cu_seqlens.dtype == torch.int32
    assert step.cache_seqlens.tolist() == [5, 0, 5] and step.cache_seqlens.dtype == torch.int32
    assert step.last_rows.tolist() == [2, 2, 3]
    assert step.positions.tolist() == [2, 3, 4, 4]
    assert step.block_table.dtype == torch.int32 and step.block_table.shape[0] == 3


@pytest.mark.parametrize("kind", ["dense", "paged"])
def test_a_step_of_no_tokens(kind: str) -> None:
    cache = Cache(kind, 2, 5)
    step = cache.append(0)
    out, lse = step.attend(0, *tokens(0), return_lse=True)
    assert out.shape == (0, H, DV) and lse.shape == (H, 0)
    out, lse = step.attend(0, *(tensor.view(2, 0, *tensor.shape[1:]) for tensor in tokens(0)), return_lse=True)
    assert out.shape == (2, 0, H, DV) and lse.shape == (2, H, 0)


@pytest.mark.parametrize("kind", ["dense", "paged"])
def test_prompts_have_a_gradient_and_what_follows_refuses_one(kind: str) -> None:
    cache = Cache(kind, 2, 9)
    new = [tensor.requires_grad_() for tensor in tokens(7)]
    out = cache.append([3, 4]).attend(0, *new)
    weights = torch.randn_like(out)
    actual = torch.autograd.grad(out, new, weights)
    lengths = torch.tensor([0, 3, 7], dtype=torch.int32)
    expected = torch.autograd.grad(
        faops.attention_varlen(*new, lengths, lengths, 4, 4, causal=True), new, weights
    )  # fmt: skip
    for ours, theirs in zip(actual, expected):
        torch.testing.assert_close(ours, theirs)
    assert not cache.inner.k.requires_grad
    with pytest.raises(RuntimeError, match="has no gradient"):
        cache.append(1).attend(0, *(tensor.requires_grad_() for tensor in tokens(2))).sum().backward()


HINT = "num_splits"  # for kernels that read a cache, which a prompt does not
BAD: dict[str, tuple[Callable[[list[Tensor]], dict[str, Any]], str]] = {
    "layer": (lambda new: {"layer": LAYERS}, "layer: got 2, expected a layer of a cache of 2"),
    "negative layer": (lambda new: {"layer": -1}, "layer: got -1"),
    "too few tokens": (lambda new: {"q": new[0][1:]}, r"q: got shape \(4, 6, 16\)"),
    "k of other tokens": (lambda new: {"k": new[1][1:]}, r"k: got shape \(4, 2, 16\), expected \(5, 2, 16\)"),
    "heads": (lambda new: {"k": new[1][:, :1]}, "k: got shape"),
    "head_dim_v": (lambda new: {"v": new[2][..., 1:]}, "v: got shape"),
    "dtype": (lambda new: {"q": new[0].half()}, "q: got dtype torch.float16, expected the dtype of the cache"),
    "k alone": (lambda new: {"v": None}, "v: got None, expected new keys and new values together"),
    "v alone": (lambda new: {"k": None}, "k: got None"),
    "four axes": (lambda new: {"q": new[0][None]}, r"packed tokens, for counts of \[2, 3\]"),
    "rotary": (lambda new: {"rotary": RotaryEmbedding(D + 2)}, "at (least|most)"),
    "alibi": (lambda new: {"alibi_slopes": torch.rand(2, H)}, "alibi_slopes: got"),
    "softcap": (lambda new: {"softcap": -1.0}, "softcap: got -1.0"),
    "window": (lambda new: {"window": (1, 2, 3)}, "window: got"),
    "sinks": (lambda new: {"sinks": torch.rand(H + 1)}, "sinks: got"),
    HINT: (lambda new: {"num_splits": -1}, "num_splits: got -1"),
}


@pytest.mark.parametrize(
    ("bad", "filled"), [(bad, filled) for bad in BAD for filled in (0, 3) if filled or bad != HINT]
)
@pytest.mark.parametrize("kind", ["dense", "paged"])
def test_what_is_refused_before_anything_is_written(kind: str, bad: str, filled: int) -> None:
    cache = Cache(kind, 2, 10)
    cache.append(filled).attend(0, *tokens(2 * filled))
    step, new = cache.append([2, 3]), tokens(5)
    before = cache.snapshot()
    change, words = BAD[bad]
    arguments = {"layer": 0, **dict(zip("qkv", new)), **change(new)}
    with pytest.raises(ArgumentError, match=words):
        step.attend(**arguments)
    for was, is_now in zip(before, cache.snapshot()):
        torch.testing.assert_close(was, is_now, rtol=0, atol=0, equal_nan=True)
    step.attend(0, *new)  # and goes on


def test_a_backend_can_be_forced() -> None:
    cache = Cache("paged", 1, 10)
    with pytest.raises(NoKernelError):
        cache.append(2).attend(0, *tokens(2), backend="cuda_raw")
    cache.append(2).attend(0, *tokens(2), backend="torch.blockwise_decode")


@pytest.mark.parametrize("what", ["append", "truncate", "fork", "free"])
def test_a_step_of_a_sequence_that_changed_is_refused(what: str) -> None:
    cache = PagedKVCache(20, 4, HK, D, DV)
    first, second, other = (cache.allocate() for _ in range(3))
    step = cache.append([first, second], [2, 3])
    changes = {
        "append": lambda: cache.append([second], 1), "truncate": lambda: cache.truncate(second, 1),
        "fork": lambda: cache.fork(second), "free": lambda: cache.free(second),
    }  # fmt: skip
    step.attend(0, *tokens(5))
    cache.append([other], 5).attend(0, *tokens(5))
    cache.free(other)
    step.attend(0, *tokens(5))  # others may change
    changes[what]()
    with pytest.raises(ArgumentError, match="step: got one made before <CachedSequence 1"):
        step.attend(0, *tokens(5))


def test_a_step_of_a_dense_cache_that_changed_is_refused() -> None:
    for change in (lambda c: c.append(1), lambda c: c.truncate(1), lambda c: c.reset(), lambda c: c.reorder([1, 0])):
        cache = KVCache(2, 9, HK, D, DV)
        step = cache.append([2, 3])
        change(cache)
        with pytest.raises(ArgumentError, match="step: got one made before the cache changed"):
            step.attend(0, *tokens(5))
