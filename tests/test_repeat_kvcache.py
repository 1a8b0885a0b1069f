"""The short path of a repeated KV-cache call gives what the long one gives, sees every change, and checks values."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import faops
from faops import dispatch, kvcache, registry, repeat_kvcache
from faops.errors import ArgumentError, FaopsWarning, UnavailableError
from tests.kvcache import FEATURES, make_call

Call = dict[str, Any]
TENSORS = ("q", "k_cache", "v_cache", "k", "v")


@pytest.fixture(autouse=True)
def _fresh_memo() -> Iterator[None]:
    dispatch.forget()
    yield
    dispatch.forget()


def call_with(*features: str, **sizes: Any) -> Call:
    made = make_call(*features, **{"dtype": torch.float32, "M": 2, **sizes})
    return {**dict(zip(TENSORS, made.tensors)), **made.options, "return_lse": True}


def copied(call: Call) -> Call:
    """The call with tensors of its own, laid out in memory as before."""
    return {name: copy.deepcopy(value) if isinstance(value, Tensor) else value for name, value in call.items()}


@pytest.fixture
def long_calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that grows with every call that takes the long path."""
    calls: list[int] = []
    original = kvcache._check_cache

    def counted(*args: Any) -> None:
        calls.append(1)
        original(*args)

    monkeypatch.setattr(kvcache, "_check_cache", counted)
    return calls


def assert_same_as_the_first_time(call: Call) -> None:
    """A call gives, and writes, what it would if nothing had been called before."""
    first, repeated = copied(call), copied(call)
    results = faops.attention_with_kvcache(**repeated)
    dispatch.forget()
    for one, other in zip(results, faops.attention_with_kvcache(**first)):
        assert torch.equal(one.nan_to_num(77), other.nan_to_num(77))
        assert one.stride() == other.stride()
    for name in ("k_cache", "v_cache"):
        assert torch.equal(repeated[name].nan_to_num(77), first[name].nan_to_num(77))


@pytest.mark.parametrize("feature", [name for name in FEATURES if name not in ("bias", "mask")])
def test_a_repeated_call_is_short_and_gives_the_same(feature: str, long_calls: list[int]) -> None:
    call = call_with(*dict.fromkeys(["append" if feature != "full_cache" else "causal", feature]))
    for _ in range(3):
        faops.attention_with_kvcache(**copied(call))
    assert len(long_calls) == 1
    assert_same_as_the_first_time(call)


def test_lengths_as_numbers(long_calls: list[int]) -> None:
    """A number is no part of the key: each step of a generation has another."""
    call = call_with("append", "causal", keys=50)
    for length in (1, 7, 40):
        faops.attention_with_kvcache(**{**copied(call), "cache_seqlens": length})
    assert len(long_calls) == 1
    assert_same_as_the_first_time({**call, "cache_seqlens": 33})


def strided(tensor: Tensor) -> Tensor:
    """The same values in wider rows."""
    return torch.cat([tensor, tensor], dim=-1)[..., : tensor.shape[-1]]


# What changes, by argument; each gives another result, or is at least another call to a kernel.
CHANGES: dict[str, Callable[[Call], Any]] = {
    "causal": lambda call: not call.get("causal", False),
    "window": lambda call: (3, 1),
    "scale": lambda call: 0.123,
    "softcap": lambda call: 1.5,
    "rotary_interleaved": lambda call: not call["rotary_interleaved"],
    "num_splits": lambda call: 3,
    "layout": lambda call: "bshd",
    "return_lse": lambda call: True,
    "backend": lambda call: "torch.blockwise_decode",
    "q": lambda call: call["q"][:, :1],
    "k_cache": lambda call: strided(call["k_cache"]),
    "v_cache": lambda call: call["v_cache"][..., :9].contiguous(),
    "cache_seqlens": lambda call: None,
    "cache_batch_idx": lambda call: torch.tensor([1, 0], dtype=torch.int32),
    "cache_leftpad": lambda call: torch.tensor([2, 1], dtype=torch.int32),
    "rotary_cos": lambda call: call["rotary_cos"][:, :1].contiguous(),
    "alibi_slopes": lambda call: torch.rand(4),
    "sinks": lambda call: torch.randn(4),
    "bias": lambda call: torch.randn(1, 1, 1, call["k_cache"].shape[1]),
    "mask": lambda call: torch.rand(1, 1, 2, call["k_cache"].shape[1]) < 0.5,
}  # fmt: skip


def test_another_dtype_is_seen(long_calls: list[int]) -> None:
    call = call_with("append", "sinks", keys=50)
    for dtype in (torch.float16, torch.float32, torch.float64):
        faops.attention_with_kvcache(**{**copied(call), **{name: call[name].to(dtype) for name in TENSORS}})
    assert len(long_calls) == 3


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_argument_is_seen(name: str, long_calls: list[int]) -> None:
    call = call_with("rotary", keys=20)
    call["k_cache"], call["v_cache"] = (torch.randn_like(call[cache]) for cache in ("k_cache", "v_cache"))
    call.update(rotary_cos=torch.rand(40, 6), rotary_sin=torch.rand(40, 6))
    call["cache_seqlens"] = torch.tensor([20, 9], dtype=torch.int32)
    changed = {**call, name: CHANGES[name](call)}
    if name == "rotary_cos":
        changed["rotary_sin"] = call["rotary_sin"][:, :1].contiguous()
    for before, after in ((call, changed), (changed, call)):
        dispatch.forget()
        faops.attention_with_kvcache(**copied(before))
        faops.attention_with_kvcache(**copied(before))
        long_calls.clear()
        faops.attention_with_kvcache(**copied(after))
        assert name in ("layout", "return_lse") or long_calls, "it was taken for the call before"
        faops.attention_with_kvcache(**copied(before))
        assert_same_as_the_first_time(after)


def test_new_keys_and_a_block_table_are_seen() -> None:
    for features in (("append",), ("append_more",), ("paged",), ("paged", "append"), ("leftpad",), ()):
        for _ in range(2):
            assert_same_as_the_first_time(call_with(*features, keys=random.choice((20, 21)), dim_v=20))
            faops.attention_with_kvcache(**call_with(*features, keys=20))


@pytest.mark.parametrize("change", [
    {"cache_seqlens": torch.tensor([1, 99], dtype=torch.int32)},
    {"cache_seqlens": 99},
    {"cache_seqlens": -1},
    {"cache_seqlens": True},
    {"causal": 1},
    {"num_splits": True},
    {"window": [-5, 0]},
    {"scale": True},
])  # fmt: skip
def test_what_is_wrong_is_named_after_right_calls(change: Call) -> None:
    call = call_with("append", keys=50)
    call.update(causal=True, num_splits=1, scale=1, window=(-1, -1))
    for seqlens in (call["cache_seqlens"], 3):
        for _ in range(2):
            faops.attention_with_kvcache(**{**copied(call), "cache_seqlens": seqlens})
    given = copied({**call, **change})
    with pytest.raises(ArgumentError, match=next(iter(change))):
        faops.attention_with_kvcache(**given)
    assert torch.equal(given["k_cache"].nan_to_num(77), call["k_cache"].nan_to_num(77)), "something was written"


def test_memory_is_looked_at_in_every_call() -> None:
    call = call_with("append", keys=50)
    for _ in range(2):
        faops.attention_with_kvcache(**copied(call))
    both = copied(call)
    both["v_cache"] = both["k_cache"]
    with pytest.raises(ArgumentError, match="v_cache: got the memory of k_cache"):
        faops.attention_with_kvcache(**both)


@pytest.mark.parametrize("name", [*TENSORS, "sinks"])
def test_a_gradient_is_never_lost(name: str) -> None:
    call = call_with("append", "sinks", keys=50)
    for _ in range(2):
        faops.attention_with_kvcache(**copied(call))
    call[name].requires_grad_()
    with torch.no_grad():
        for _ in range(2):
            assert not faops.attention_with_kvcache(**call)[0].requires_grad
    for _ in range(2):
        if name.endswith("cache"):
            with pytest.raises(ArgumentError, match=name):
                faops.attention_with_kvcache(**call)
            continue
        out, _ = faops.attention_with_kvcache(**call)
        with pytest.raises(RuntimeError, match="no gradient"):
            out.sum().backward()


def test_tables_that_require_a_gradient_get_none() -> None:
    """They are refused nowhere, and nothing is recorded for them, however often the call is made."""
    call = call_with("append", "rotary", keys=50)
    call["rotary_cos"].requires_grad_()
    for _ in range(3):
        assert not faops.attention_with_kvcache(**call)[0].requires_grad


def test_a_call_that_something_else_may_see_takes_the_long_path(long_calls: list[int]) -> None:
    class Passing(TorchDispatchMode):
        def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return op(*args, **(kwargs or {}))

    call = call_with("append", keys=50)
    for _ in range(2):
        faops.attention_with_kvcache(**copied(call))
    tensors = tuple(call[name] for name in TENSORS)
    assert repeat_kvcache.key_of(tensors, ()) is not None
    with Passing():
        assert repeat_kvcache.key_of(tensors, ()) is None
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert faops.attention_with_kvcache(**copied(call))[0].dtype == torch.float32
    assert len(long_calls) == 2
    keys: list[Any] = []

    def inside(q: Tensor) -> Tensor:
        keys.append(repeat_kvcache.key_of((q, q, q), ()))
        return q

    torch.func.vmap(inside)(call["q"])
    assert keys == [None]


def test_a_newly_registered_kernel_ends_the_short_path(long_calls: list[int]) -> None:
    call = call_with("append", keys=50)
    for _ in range(2):
        faops.attention_with_kvcache(**copied(call))
    registry.register(registry.kernels()[0])
    faops.attention_with_kvcache(**copied(call))
    assert len(long_calls) == 2


def test_a_kernel_that_turns_out_unable_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    call = call_with("append", keys=50)
    expected = faops.attention_with_kvcache(**copied(call))
    kernel = registry.get("torch.sdpa_decode")
    broken = False

    def launch(inputs: Any, config: Any) -> Any:
        if broken:
            raise UnavailableError("the library has gone")
        return type(kernel).launch(kernel, inputs, config)

    monkeypatch.setattr(kernel, "launch", launch)
    dispatch.forget()
    for _ in range(2):
        faops.attention_with_kvcache(**copied(call))
    broken = True
    original = type(kernel).check
    monkeypatch.setattr(
        kernel, "check",
        lambda problem, device: registry.decide(["gone"]) if broken else original(kernel, problem, device),
    )  # fmt: skip
    with pytest.warns(FaopsWarning, match="blockwise_decode does: the library has gone"):
        out, _ = faops.attention_with_kvcache(**copied(call))
    torch.testing.assert_close(out, expected[0])
