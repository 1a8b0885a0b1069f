"""A KV-cache call with one thing wrong, whatever else it asks for, names it and leaves the caches as they were.

Valid calls are drawn with features in any combination; each corruption breaks one argument of one of them.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, seed, settings
from hypothesis import strategies as st
from torch import Tensor

import faops
from faops.errors import ArgumentError
from faops.validate_cache import overlaps_itself

lawful = settings(max_examples=150, deadline=None, database=None)
fresh = seed(int(os.environ["FAOPS_TEST_SEED"]))

Call = dict[str, Any]


def ints(values: list[int] | Tensor) -> Tensor:
    return torch.as_tensor(values, dtype=torch.int32)


def make_call(features: frozenset[str]) -> Call:
    """A valid call of random sizes that has the features."""
    batch, M, dim = random.randint(2, 4), random.choice((1, 1, 3)), random.choice((8, 16))
    heads, heads_kv = random.choice(((4, 2), (3, 1), (2, 2)))
    page = random.choice((1, 3, 8, 32)) if "paged" in features else 0
    pages = random.randint(24, 40) // max(page, 1) + 1
    capacity = page * pages or random.randint(20, 40)
    new = random.choice((1, 1, 4)) if "append" in features else 0
    leading = (batch * pages + 2, page) if page else (batch + 2, capacity)
    lengths = [random.randint(1, capacity - max(new, M)) for _ in range(batch)]
    call: Call = {
        "q": torch.randn(batch, M, heads, dim),
        "k_cache": torch.randn(*leading, heads_kv, dim),
        "v_cache": torch.randn(*leading, heads_kv, dim),
        "cache_seqlens": ints(lengths),
        "causal": random.choice((True, False)),
    }
    if page:
        call["block_table"] = ints(torch.randperm(leading[0])[: batch * pages].view(batch, pages))
    elif "batch_idx" in features:
        call["cache_batch_idx"] = ints(torch.randperm(leading[0])[:batch])
    if new:
        call["k"], call["v"] = torch.randn(batch, new, heads_kv, dim), torch.randn(batch, new, heads_kv, dim)
    if "leftpad" in features:
        call["cache_leftpad"] = ints([random.randint(0, length) for length in lengths])
    if "rotary" in features:
        angles = torch.rand(capacity + 1, random.choice((1, 2, 4)))
        call |= {"rotary_cos": angles.cos(), "rotary_sin": angles.sin()}
        call["rotary_interleaved"] = random.choice((True, False))
    if "window" in features:
        call["window"] = (random.randint(0, 30), -1)
    return call


def capacity_of(call: Call) -> int:
    table = call.get("block_table")
    return call["k_cache"].shape[1] * (1 if table is None else table.shape[1])


def added(call: Call) -> int:
    return call["k"].shape[1] if "k" in call else 0


def set_one(name: str, value: Callable[[Call, int], int]) -> Callable[[Call], None]:
    """Changes one number of an index tensor."""

    def change(call: Call) -> None:
        index = random.randrange(call["q"].shape[0])
        call[name] = call[name].clone()
        call[name][index] = value(call, index)

    return change


def replaced(name: str, make: Callable[[Call], Any]) -> Callable[[Call], None]:
    def change(call: Call) -> None:
        call[name] = make(call)

    return change


def page_in_use(call: Call, page: int) -> None:
    """Puts ``page`` where a sequence reads or writes: at the last key, which no window hides."""
    index = random.randrange(call["q"].shape[0])
    last = int(call["cache_seqlens"][index]) + added(call) - 1
    call["block_table"] = call["block_table"].clone()
    call["block_table"][index, last // call["k_cache"].shape[1]] = page


def page_of_new_keys(call: Call) -> None:
    """Two sequences of equal length append to one page."""
    call["cache_seqlens"] = call["cache_seqlens"].clone()
    call["cache_seqlens"][1] = call["cache_seqlens"][0]
    at = int(call["cache_seqlens"][0]) // call["k_cache"].shape[1]
    call["block_table"] = call["block_table"].clone()
    call["block_table"][1, at] = call["block_table"][0, at]
    if "cache_leftpad" in call:
        call["cache_leftpad"] = torch.zeros_like(call["cache_leftpad"])


def inference(tensor: Tensor) -> Tensor:
    with torch.inference_mode():
        return tensor.clone()


class Corruption(NamedTuple):
    names: tuple[str, ...]  # the arguments that may be named
    change: Callable[[Call], None]
    needs: frozenset[str]


def bad(names: str, change: Callable[[Call], None], needs: str = "") -> Corruption:
    return Corruption(tuple(names.split("|")), change, frozenset(needs.split()))


def changed(name: str, make: Callable[[Tensor], Any], needs: str = "", named: str = "") -> Corruption:
    """One that puts ``make(tensor)`` in a tensor's place."""
    needs = f"{needs} {NEEDS.get(name, '')}"
    return bad(named or name, replaced(name, lambda call: make(call[name])), needs)


def both_tables(make: Callable[[Call, Tensor], Tensor]) -> Callable[[Call], None]:
    def change(call: Call) -> None:
        for name in ("rotary_cos", "rotary_sin"):
            call[name] = make(call, call[name])

    return change


def too_many(call: Call) -> None:
    for name in ("k", "v"):
        call[name] = call[name][:, :1].repeat(1, capacity_of(call) + 1, 1, 1)


def in_cache(name: str) -> Callable[[Call], Tensor]:
    """New keys or values that lie in the memory of k_cache."""
    return lambda call: call["k_cache"].view(-1)[: call[name].numel()].view_as(call[name])


def needed_positions(call: Call) -> int:
    return int(call["cache_seqlens"].max()) + max(added(call), 1)


def wider(axis: int) -> Callable[[Tensor], Tensor]:
    """One more along an axis."""
    return lambda tensor: torch.cat((tensor, tensor.narrow(axis, 0, 1)), axis)


def another_dtype(tensor: Tensor) -> Tensor:
    return tensor.to(torch.float64 if tensor.is_floating_point() else torch.int64)


NEEDS = {
    "k": "append", "v": "append", "cache_leftpad": "leftpad", "cache_batch_idx": "batch_idx", "block_table": "paged",
    "rotary_cos": "rotary", "rotary_sin": "rotary",
}  # fmt: skip
CACHES = ("k_cache", "v_cache")
INDICES = ("cache_seqlens", "cache_leftpad", "cache_batch_idx", "block_table")
FLOATS = (*CACHES, "k", "v")
EVERY = (*CACHES, *NEEDS, "cache_seqlens")

CORRUPTIONS = {
    **{f"{name} with an axis more": changed(name, lambda tensor: tensor[None]) for name in ("q", *EVERY)},
    **{f"{name} elsewhere": changed(name, lambda tensor: tensor.to("meta")) for name in EVERY},
    **{f"{name} of another dtype": changed(name, another_dtype) for name in (*FLOATS, *INDICES)},
    **{f"{name} for another batch": changed(name, wider(0)) for name in ("k", "v", *INDICES)},
    **{f"{name} no tensor": changed(name, Tensor.tolist) for name in ("q", *EVERY)},
    **{f"{name} with another head dim": changed(name, wider(3)) for name in ("k_cache", "k", "v")},
    **{f"{name} with more heads": changed(name, wider(2), named=f"{name}|k_cache") for name in FLOATS},
    **{f"{name} that requires grad": changed(name, Tensor.requires_grad_, "append") for name in CACHES},
    **{f"{name} expanded": changed(name, lambda cache: cache[:1].expand_as(cache), "append") for name in CACHES},
    **{f"{name} of inference mode": changed(name, inference, "append") for name in CACHES},
    "caches of one memory": bad("v_cache", replaced("v_cache", lambda call: call["k_cache"]), "append"),
    "k in the cache's memory": bad("k", replaced("k", in_cache("k")), "append"),
    "v in the cache's memory": bad("v", replaced("v", in_cache("v")), "append"),
    "v_cache of another length": changed("v_cache", wider(1)),
    "more new values than keys": changed("v", wider(1)),
    "keys without values": changed("v", lambda _: None),
    "values without keys": changed("k", lambda _: None),
    "no lengths": changed("cache_seqlens", lambda _: None, "append"),
    "more new keys than the cache holds": bad("k", too_many, "append"),
    "length past the capacity": bad("cache_seqlens", set_one("cache_seqlens", lambda call, _: capacity_of(call) + 1)),
    "no room for new keys": bad(
        "cache_seqlens", set_one("cache_seqlens", lambda call, _: capacity_of(call) + 1 - added(call)), "append"
    ),
    "a length of int32's limit": bad("cache_seqlens", set_one("cache_seqlens", lambda *_: 2**31 - 1)),
    "negative length": bad("cache_seqlens", set_one("cache_seqlens", lambda *_: -random.randint(1, 2**31))),
    "an int past the capacity": bad("cache_seqlens", replaced("cache_seqlens", lambda call: capacity_of(call) + 1)),
    "padding past the length": bad(
        "cache_leftpad",
        set_one("cache_leftpad", lambda call, b: int(call["cache_seqlens"][b]) + added(call) + 1),
        "leftpad",
    ),
    "negative padding": bad("cache_leftpad", set_one("cache_leftpad", lambda *_: -random.randint(1, 9)), "leftpad"),
    "row past the cache": bad(
        "cache_batch_idx", set_one("cache_batch_idx", lambda call, _: call["k_cache"].shape[0]), "batch_idx"
    ),
    "negative row": bad("cache_batch_idx", set_one("cache_batch_idx", lambda *_: -1), "batch_idx"),
    "a row twice": changed("cache_batch_idx", torch.zeros_like, "append"),
    "rows beside pages": bad(
        "cache_batch_idx", replaced("cache_batch_idx", lambda call: ints([0] * call["q"].shape[0])), "paged"
    ),
    "page past the cache": bad("block_table", lambda call: page_in_use(call, call["k_cache"].shape[0]), "paged"),
    "page far past the cache": bad("block_table", lambda call: page_in_use(call, 2**31 - 1), "paged"),
    "negative page": bad("block_table", lambda call: page_in_use(call, -random.randint(1, 2**31)), "paged"),
    "a shared page that both append to": bad("block_table", page_of_new_keys, "paged append"),
    "cosines without sines": changed("rotary_sin", lambda _: None),
    "sines without cosines": changed("rotary_cos", lambda _: None),
    "unlike tables": changed("rotary_sin", lambda table: table[:-1]),
    "tables of unlike dtype": changed("rotary_sin", Tensor.double),
    "tables wider than the head": bad(
        "rotary_cos", both_tables(lambda call, _: torch.ones(99, call["q"].shape[3] // 2 + 1)), "rotary"
    ),
    "tables too short": bad("rotary_cos", both_tables(lambda call, it: it[: needed_positions(call) - 1]), "rotary"),
    "rotary_interleaved a word": bad("rotary_interleaved", replaced("rotary_interleaved", lambda _: "half")),
    "negative splits": bad("num_splits", replaced("num_splits", lambda _: -1)),
    "splits a float": bad("num_splits", replaced("num_splits", lambda _: 2.0)),
    "splits a bool": bad("num_splits", replaced("num_splits", lambda _: True)),
    "window below -1": bad("window", replaced("window", lambda _: (-2, 0))),
    "scale NaN": bad("scale", replaced("scale", lambda _: float("nan"))),
    "slopes of other heads": bad("alibi_slopes", replaced("alibi_slopes", lambda _: torch.ones(5))),
    "sinks of other heads": bad("sinks", replaced("sinks", lambda _: torch.ones(5))),
    "mask too wide": bad("mask", replaced("mask", lambda call: torch.ones(capacity_of(call) + 2).bool())),
    "unknown layout": bad("layout", replaced("layout", lambda _: "sbhd")),
    "unknown backend": bad("backend", replaced("backend", lambda _: "cudnn")),
}

FEATURES = ("append", "rotary", "leftpad", "batch_idx", "paged", "window")


@fresh
@lawful
@given(st.sampled_from(sorted(CORRUPTIONS)), st.frozensets(st.sampled_from(FEATURES)), st.integers(0, 2**31))
def test_one_wrong_argument(label: str, features: frozenset[str], number: int) -> None:
    torch.manual_seed(number)
    random.seed(number)
    corruption = CORRUPTIONS[label]
    features |= corruption.needs
    if "batch_idx" in corruption.needs:
        features -= {"paged"}
    call = make_call(features)
    good = {name: value.clone() if isinstance(value, Tensor) else value for name, value in call.items()}
    corruption.change(call)
    caches = [call[name] for name in CACHES]
    watched = [cache for cache in caches if isinstance(cache, Tensor) and not cache.is_meta]
    before = [tensor.detach().clone() for tensor in watched]
    with pytest.raises(ArgumentError) as caught:
        faops.attention_with_kvcache(**call)
    assert caught.value.argument in corruption.names, caught.value
    assert str(caught.value).startswith(f"{caught.value.argument}: got ")
    assert all(torch.equal(tensor, kept) for tensor, kept in zip(watched, before)), "the caches have changed"
    assert faops.attention_with_kvcache(**good).isfinite().all(), "the call is wrong without the corruption too"


@pytest.mark.parametrize("label", sorted(CORRUPTIONS))
def test_every_corruption(label: str) -> None:
    """Each of them at least once, with what it needs and nothing else."""
    test_one_wrong_argument.hypothesis.inner_test(label, frozenset(), random.getrandbits(31))  # type: ignore[attr-defined]


def paged_call(page: int, lengths: list[int], table: list[list[int]], new: int, **options: Any) -> Call:
    batch = len(lengths)
    return {
        "q": torch.randn(batch, 1, 2, 8), "k_cache": torch.randn(6, page, 1, 8), "v_cache": torch.randn(6, page, 1, 8),
        "k": torch.randn(batch, new, 1, 8), "v": torch.randn(batch, new, 1, 8), "cache_seqlens": ints(lengths),
        "block_table": ints(table), "causal": True, **options,
    }  # fmt: skip


def test_entries_that_are_not_used_may_hold_anything() -> None:
    """Those behind the new keys, before every row's window, and before the left padding are not looked at."""
    for options in ({"window": (1, 0)}, {"cache_leftpad": ints([4, 4])}):
        call = paged_call(2, [5, 6], [[-1, -1, 0, 99], [-7, 2**31 - 1, 1, 2]], 1, **options)
        plain = paged_call(2, [5, 6], [[3, 4, 0, 5], [3, 4, 1, 2]], 1, **options)
        for name in ("q", "k", "v", "k_cache", "v_cache"):
            plain[name] = call[name].clone()
        for backend in (None, "torch.blockwise_decode"):
            torch.testing.assert_close(
                faops.attention_with_kvcache(**call, backend=backend), faops.attention_with_kvcache(**plain)
            )
    with pytest.raises(ArgumentError, match=r"block_table: got -1"):
        faops.attention_with_kvcache(**paged_call(2, [5, 6], [[-1, 3, 0, 5], [2, 4, 1, 2]], 1))


def test_a_shared_page_is_fine_where_nobody_writes_twice() -> None:
    """A common beginning, and two halves of one page."""
    for lengths, table in (([5, 5], [[0, 1, 2], [0, 1, 3]]), ([4, 5], [[0, 1, 2], [0, 1, 2]])):
        faops.attention_with_kvcache(**paged_call(2, lengths, table, 1))
    with pytest.raises(ArgumentError, match=r"block_table: got page 2 twice, both for slot 0"):
        faops.attention_with_kvcache(**paged_call(2, [3, 4], [[0, 1, 2], [0, 1, 2]], 2))
    with pytest.raises(ArgumentError, match=r"block_table: got page 4 twice"):
        faops.attention_with_kvcache(**paged_call(2, [1], [[4, 0, 4]], 5)), "within one sequence"


def test_reading_one_row_twice_is_fine() -> None:
    call = make_call(frozenset(["batch_idx"]))
    call["cache_batch_idx"] = torch.zeros_like(call["cache_batch_idx"])
    assert faops.attention_with_kvcache(**call).isfinite().all()


def test_a_query_behind_the_tables_is_refused() -> None:
    """A call that sees all keys rotates its rows at position cache_seqlens, also without new keys."""
    call = make_call(frozenset(["rotary"]))
    longest = int(call["cache_seqlens"].max())
    call["causal"] = False
    for name in ("rotary_cos", "rotary_sin"):
        call[name] = call[name][: longest + 1]
    faops.attention_with_kvcache(**call)
    for name in ("rotary_cos", "rotary_sin"):
        call[name] = call[name][:longest]
    with pytest.raises(ArgumentError, match=f"rotary_cos: got {longest} positions, expected at least {longest + 1}"):
        faops.attention_with_kvcache(**call)


def test_inference_mode_with_its_own_caches() -> None:
    with torch.inference_mode():
        assert faops.attention_with_kvcache(**make_call(frozenset(["append"]))).isfinite().all()


@pytest.mark.parametrize(
    ("tensor", "overlaps"),
    [
        (torch.empty(3, 4, 2, 8), False),
        (torch.empty(3, 2, 4, 8).transpose(1, 2), False),
        (torch.empty(2, 3, 4, 2, 8)[1], False),
        (torch.empty(3, 2, 4, 2, 8)[:, 1], False),
        (torch.empty(3, 4, 2, 16)[..., :8], False),
        (torch.empty(3, 4, 2, 8)[:, ::2], False),
        (torch.empty(1, 4, 2, 8).expand(3, 4, 2, 8), True),
        (torch.empty(3, 4, 1, 8).expand(3, 4, 2, 8), True),
        (torch.empty(100).as_strided((3, 4, 2, 8), (16, 8, 8, 1)), True),
        (torch.empty(100).as_strided((4, 8), (7, 1)), True),
        (torch.empty(0, 4, 2, 8), False),
        (torch.empty(1, 1, 1, 1).expand(0, 4, 2, 8), False),
        (torch.empty(1, 4, 2, 8).as_strided((1, 4, 2, 8), (0, 16, 8, 1)), False),
    ],
)
def test_overlaps_itself(tensor: Tensor, overlaps: bool) -> None:
    assert overlaps_itself(tensor) is overlaps
