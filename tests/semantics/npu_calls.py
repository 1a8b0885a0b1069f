"""Calls with tensors on an NPU, for test_npu_device.py, which runs this in a process of its own: python -m with names.

Every call runs through the torch backend on the simulated device and is compared with the same one on the CPU. Prints
a JSON object: the failure of each call by its name.
"""

from __future__ import annotations

import json
import random
import sys
import traceback
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.utils import _pytree as pytree

import faops
from faops.errors import ArgumentError
from faops.inputs import DecodeInputs
from faops.validate_cache import check_cache_inputs
from tests import kvcache
from tests.semantics import simulated_npu
from tests.support import Inputs, cumulative, gradients, make_case, make_inputs, run_faops

INDICES = ("cache_seqlens", "cache_batch_idx", "cache_leftpad", "block_table")
ERRORS = {torch.float32: 1e-4, torch.float16: 4e-3, torch.bfloat16: 4e-2}
CALLS: dict[str, Callable[[], None]] = {}


def call(function: Callable[[], None]) -> Callable[[], None]:
    CALLS[function.__name__] = function
    return function


def on_npu(tensor: Tensor) -> Tensor:
    return tensor.detach().to("npu").requires_grad_(tensor.requires_grad)


def to_npu(tree: Any) -> Any:
    return pytree.tree_map(lambda leaf: on_npu(leaf) if isinstance(leaf, Tensor) else leaf, tree)


def assert_same(what: str, actual: Tensor, expected: Tensor) -> None:
    """Equal but for rounding: tiles are of other sizes on a device."""
    assert actual.device.type == "npu", f"{what} is on {actual.device}"
    error = ERRORS[expected.dtype]
    found, wanted = actual.detach().cpu(), expected.detach()
    assert torch.allclose(found, wanted, rtol=error, atol=error, equal_nan=True), (
        f"{what}: {(found - wanted).abs().max()}"
    )


def reads_of(function: Callable[[], Any]) -> int:
    before = simulated_npu.reads
    function()
    return simulated_npu.reads - before


# --- dense and packed -------------------------------------------------------------------------------------------------


def compare(case: Any, inputs: Inputs, moved: Inputs) -> None:
    """Forward and backward of a call on the device against the CPU."""
    expected, actual = (run(case, its) for run, its in ((run_faops, inputs), (run_on_npu, moved)))
    dout = torch.randn(expected[0].shape).to(case.dtype)
    for name, found, wanted in zip(("out", "lse"), actual, expected):
        assert_same(name, found, wanted)
    wanted = gradients(inputs, *expected, dout, None)
    for name, gradient in gradients(moved, *actual, on_npu(dout), None).items():
        assert_same(f"d{name}", gradient, wanted[name])


def run_on_npu(case: Any, inputs: Inputs) -> tuple[Tensor, Tensor]:
    options = {**inputs.options, "return_lse": True, "backend": "torch", "layout": case.layout}
    if inputs.cu_seqlens_q is None:
        return faops.attention(inputs.q, inputs.k, inputs.v, **options)
    offsets = (inputs.cu_seqlens_q, inputs.cu_seqlens_k)
    return faops.attention_varlen(inputs.q, inputs.k, inputs.v, *offsets, case.seqlen_q, case.seqlen_k, **options)


def moved_to_npu(inputs: Inputs, offsets: bool = True) -> Inputs:
    fields = {name: to_npu(getattr(inputs, name)) for name in ("q", "k", "v", "options")}
    if offsets:
        fields |= {name: to_npu(getattr(inputs, name)) for name in ("cu_seqlens_q", "cu_seqlens_k")}
    return replace(inputs, **fields)


@call
def dense() -> None:
    for features in (("gqa", "causal"), ("mqa", "window", "softcap", "alibi", "bias", "mask", "sinks", "bhsd")):
        for dtype in (torch.float32, torch.bfloat16):
            case = make_case(*features, dtype=dtype)
            inputs = make_inputs(case)
            compare(case, inputs, moved_to_npu(inputs))


@call
def packed() -> None:
    for on_device in (True, False):
        case = make_case("gqa", "varlen", "causal", "alibi_batch", "bias", "sinks")
        inputs = make_inputs(case)
        moved = moved_to_npu(inputs, offsets=on_device)
        compare(case, inputs, moved)
        assert (reads_of(lambda: run_on_npu(case, moved)) > 0) == on_device  # noqa: B023


@call
def dropout() -> None:
    q, k, v = (on_npu(torch.randn(2, 33, 2, 16)) for _ in range(3))
    plain = faops.attention(q, k, v, backend="torch")
    assert reads_of(lambda: faops.attention(q, k, v, dropout_p=0.3, backend="torch")) == 0, "drawing a seed waited"
    outs = []
    for _ in range(2):
        torch.manual_seed(5)
        outs.append(faops.attention(q, k, v, dropout_p=0.3, backend="torch").cpu())
    assert torch.equal(*outs)
    assert not torch.equal(outs[0], plain.cpu())
    with pytest.raises(ArgumentError, match="one on q's device, npu:0"):
        faops.attention(q, k, v, dropout_p=0.3, generator=torch.Generator())


@call
def autocast() -> None:
    tensors = [torch.randn(2, 9, 2, 16) for _ in range(3)]
    with torch.autocast("npu", dtype=torch.float16):
        out = faops.attention(*map(on_npu, tensors), backend="torch")
    assert_same("out", out, faops.attention(*(tensor.half() for tensor in tensors), backend="torch"))


@call
def repeated() -> None:
    """The short path of a second call does what the first one did."""
    tensors = [torch.randn(2, 9, 2, 16) for _ in range(3)]
    expected = faops.attention(*tensors, causal=True, backend="torch")
    for _ in range(3):
        assert_same("out", faops.attention(*map(on_npu, tensors), causal=True, backend="torch"), expected)


@call
def operators() -> None:
    """Shapes alone, as under torch.compile: an operator takes tensors of both devices."""
    with FakeTensorMode():
        q, cache = torch.empty(2, 3, 4, 16, device="npu:0"), torch.empty(2, 9, 2, 16, device="npu:0")
        offsets, lengths = torch.empty(3, dtype=torch.int32), torch.empty(2, dtype=torch.int32)
        out = faops.attention_varlen(q[0], cache[0], cache[0], offsets, offsets, 3, 9)
        assert (out.device, out.shape) == (q.device, q[0].shape)
        for seqlens in (lengths, 5):
            out, lse = faops.attention_with_kvcache(q, cache, cache.clone(), cache_seqlens=seqlens, return_lse=True)
            assert (out.device, out.shape, lse.shape) == (q.device, q.shape, (2, 4, 3))


# --- KV cache ---------------------------------------------------------------------------------------------------------


def compare_cached(*features: str, on_device: tuple[str, ...], **sizes: Any) -> None:
    """A KV-cache call on the device, with those index tensors there and the others on the CPU, against the CPU."""
    made = kvcache.make_call(*features, dtype=torch.float32, **sizes)
    options = {
        name: value if name in INDICES and name not in on_device else to_npu(value)
        for name, value in made.options.items()
    }
    moved = to_npu(made.tensors)
    expected = faops.attention_with_kvcache(*made.tensors, **made.options, return_lse=True)
    results: list[Any] = []
    waited = reads_of(
        lambda: results.append(faops.attention_with_kvcache(*moved, **options, backend="torch", return_lse=True))
    )
    for name, found, wanted in zip(("out", "lse"), results[0], expected):
        assert_same(f"{name} of {made.text}", found, wanted)
    for name, found, wanted in zip(("k_cache", "v_cache"), moved[1:3], made.tensors[1:3]):
        assert_same(f"{name} of {made.text}", found, wanted)
    read = set(options) & set(on_device)
    if read != {"block_table"}:  # which a device looks up by itself
        assert (waited > 0) == bool(read), f"{waited} reads with {on_device} on the device"


@call
def cached() -> None:
    for on_device in ((), INDICES, *((name,) for name in INDICES)):
        for place in ("paged", "batch_idx"):
            for features in (("append", "rotary", "leftpad", "causal"), ("append_more", "rotary_half", "leftpad")):
                compare_cached(place, *features, on_device=on_device, M=random.choice((1, 3)), batch=3)
        compare_cached("append", "causal", "sinks", on_device=on_device, batch=1)
        compare_cached("paged", "append", "rotary", on_device=on_device, batch=1)


@call
def cached_number() -> None:
    """A length given as a number stays one: nothing is read from the device."""
    q, k_cache, v_cache, k, v = (torch.randn(2, length, 2, 16) for length in (1, 9, 9, 1, 1))
    moved = [on_npu(tensor) for tensor in (q, k_cache, v_cache, k, v)]
    expected = faops.attention_with_kvcache(q, k_cache, v_cache, k, v, cache_seqlens=4, backend="torch")
    outs: list[Tensor] = []

    def step() -> None:
        outs.append(faops.attention_with_kvcache(*moved, cache_seqlens=4, backend="torch"))

    for _ in range(3):  # the second call and the third take the short path
        assert reads_of(step) == 0
    for out in outs:
        assert_same("out", out, expected)


# --- refusals ---------------------------------------------------------------------------------------------------------


def ints(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


@call
def values_on_the_host_are_checked() -> None:
    """They cost nothing there, whichever others are on the device; those are not read."""
    q, cache = on_npu(torch.randn(2, 1, 2, 16)), on_npu(torch.randn(4, 8, 2, 16))
    table, other = ints(0, 1, 2, 3).view(2, 2), on_npu(torch.randn(4, 8, 2, 16))
    wrong: list[tuple[str, dict[str, Any]]] = [
        ("cache_seqlens", {"cache_seqlens": ints(3, 9)}),
        ("cache_seqlens", {"cache_seqlens": ints(3, 17), "block_table": table.to("npu")}),
        ("cache_leftpad", {"cache_seqlens": ints(3, 8), "cache_leftpad": ints(4, 0)}),
        ("cache_batch_idx", {"cache_seqlens": ints(3, 8).to("npu"), "cache_batch_idx": ints(0, 4)}),
        ("block_table", {"cache_seqlens": ints(3, 16), "block_table": table + 1}),
        ("rotary_cos", {"cache_seqlens": 8, "rotary_cos": on_npu(torch.ones(8, 8)),
                        "rotary_sin": on_npu(torch.ones(8, 8))}),
    ]  # fmt: skip
    for name, options in wrong:

        def attempt(options: dict[str, Any] = options, name: str = name) -> None:
            with pytest.raises(ArgumentError, match=f"^{name}: "):
                faops.attention_with_kvcache(q, cache, other, **options)

        assert reads_of(attempt) == 0, name
    new = on_npu(torch.randn(2, 1, 2, 16))
    shared = ints(2, 2).view(2, 1)
    with pytest.raises(ArgumentError, match="page 2 twice, both for slot 3"):
        faops.attention_with_kvcache(q, cache, other, new, new, cache_seqlens=ints(3, 3), block_table=shared)
    packed_q = on_npu(torch.randn(7, 2, 16))
    for name, offsets in (("cu_seqlens_q", (ints(0, 8), ints(0, 7))), ("cu_seqlens_k", (ints(0, 7), ints(0, 8)))):
        with pytest.raises(ArgumentError, match=f"^{name}: "):
            faops.attention_varlen(packed_q, packed_q, packed_q, *offsets, 8, 8)


@call
def unread_values_are_taken_to_be_right() -> None:
    """What lies on the device is not compared with anything: that would wait for it."""
    q, cache = on_npu(torch.randn(2, 1, 2, 16)), on_npu(torch.randn(4, 8, 2, 16))
    # cache_seqlens, cache_batch_idx, cache_leftpad and block_table, right and wrong
    right = (ints(3, 4), None, ints(1, 2), ints(0, 1).view(2, 1))
    wrong = (ints(3, 99), ints(0, 99), ints(99, 2), ints(0, 99).view(2, 1))
    for index, values in enumerate(wrong):
        given = [None if index == 1 else one for one in right]
        given[index] = values.to("npu")
        inputs = DecodeInputs(
            q, cache, cache, None, None, *given, *[None] * 6, -1, -1, 0.25, 0.0, True, 0, False, "",
        )  # fmt: skip
        assert reads_of(lambda: check_cache_inputs(inputs)) == 0, INDICES[index]  # noqa: B023


@call
def other_devices_are_refused() -> None:
    q, cache = torch.randn(2, 1, 2, 16), torch.randn(2, 8, 2, 16)
    with pytest.raises(ArgumentError, match=r"cache_seqlens: got a tensor on npu:0, expected the device of q, cpu"):
        faops.attention_with_kvcache(q, cache, cache.clone(), cache_seqlens=ints(3, 4).to("npu"))
    moved = on_npu(q), on_npu(cache), on_npu(cache)
    expected = "cache_seqlens: got a tensor on meta, expected the device of q, npu:0, or the CPU"
    with pytest.raises(ArgumentError, match=expected):
        faops.attention_with_kvcache(*moved, cache_seqlens=ints(3, 4).to("meta"))
    with pytest.raises(ArgumentError, match="k_cache: got a tensor on cpu, expected the device of q, npu:0"):
        faops.attention_with_kvcache(moved[0], cache, moved[2], cache_seqlens=ints(3, 4))
    with pytest.raises(ArgumentError, match="alibi_slopes: got a tensor on cpu"):
        faops.attention(*moved, alibi_slopes=torch.ones(2))
    offsets, rows = cumulative([1, 1]), q.flatten(0, 1)
    with pytest.raises(ArgumentError, match="cu_seqlens_q: got a tensor on npu:0"):
        faops.attention_varlen(rows, rows, rows, on_npu(offsets), offsets, 1, 1)


def main(seed: int) -> None:
    simulated_npu.install()
    failures = {}
    for name, function in CALLS.items():
        torch.manual_seed(seed)
        random.seed(seed)
        try:
            function()
        except BaseException:
            failures[name] = traceback.format_exc()
    print(json.dumps({name: failures.get(name, "") for name in CALLS}))


if __name__ == "__main__":
    main(int(sys.argv[1]))
