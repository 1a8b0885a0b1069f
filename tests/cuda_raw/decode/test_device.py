"""What happens on the device alone: lengths and page numbers are read there, by launches made without them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from faops import reference, registry
from faops.backends.cuda_raw import emulator, host
from faops.backends.cuda_raw.decode import launches
from faops.backends.cuda_raw.decode_tiles import make_config
from faops.backends.cuda_raw.specialize import Specialised
from faops.device import known
from faops.inputs import DecodeInputs
from tests.cuda_raw.decode.support import KERNELS, inputs_of
from tests.cuda_raw.support import HALF
from tests.kvcache import Call, bits, make_call
from tests.support import assert_accurate

pytestmark = pytest.mark.usefixtures("poisoned", "emulator_here")

each_card = pytest.mark.parametrize("card", KERNELS)
one_card = pytest.mark.parametrize("card", [pytest.param("t4", marks=pytest.mark.full), "a100"])  # in the short run


def paired(name: str, of_t4: int, of_a100: int) -> pytest.MarkDecorator:
    """Either card with one of two values in the short run, with both in the long one."""
    return pytest.mark.parametrize(f"card, {name}", [
        ("t4", of_t4), ("a100", of_a100), pytest.param("t4", of_a100, marks=pytest.mark.full),
        pytest.param("a100", of_t4, marks=pytest.mark.full),
    ])  # fmt: skip


CONFIG = make_config(16, 64, 4, 1, True)


class Unread(torch.Tensor):
    """A tensor whose values the host may not look at: on a GPU that would wait for the device."""

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        refused = ("item", "tolist", "__int__", "__bool__", "__float__", "__index__", "numpy", "cpu", "nonzero")
        name = getattr(function, "__name__", "")
        assert name not in refused, f"the host reads a tensor: {name}"
        return super().__torch_function__(function, types, args, kwargs or {})


def run(inputs: DecodeInputs, card: str) -> tuple[Tensor, Tensor | None]:
    """Launch the call past all validation, as on a GPU."""
    kernel = registry.get(KERNELS[card])
    assert kernel is not None
    return kernel.launch(inputs, CONFIG)


def unread(inputs: DecodeInputs) -> DecodeInputs:
    """The call with tensors that nobody may read."""
    found = {name: getattr(inputs, name) for name in inputs.__dataclass_fields__}
    return DecodeInputs(
        **{name: value.as_subclass(Unread) if isinstance(value, Tensor) else value for name, value in found.items()}
    )  # fmt: skip


@each_card
def test_the_host_reads_no_tensor(card: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the first call nor a repeated one, with every tensor that there can be."""
    monkeypatch.setenv("FAOPS_EMULATE", card)
    made: list[str] = []
    monkeypatch.setattr(host, "enqueue", lambda kernel, tensors: made.append(kernel.source.entry))
    features = ("append", "rotary", "leftpad", "paged", "alibi", "bias", "mask", "sinks", "causal")
    call = make_call(*features, dtype=HALF, M=2, keys=90, dim=32, dim_v=32)
    call.options["num_splits"] = 3
    inputs = unread(inputs_of(call))
    for _ in range(2):
        out, lse = run(inputs, card)
        assert out.shape == inputs.q.shape and lse is not None
    assert made == ["decode_append", "attention_decode", "decode_combine"] * 2
    assert inputs.cache_seqlens is not None
    with pytest.raises(AssertionError, match="reads a tensor"):
        inputs.cache_seqlens.tolist()


@paired("page", 0, 16)
def test_one_launch_serves_all_lengths(card: str, page: int) -> None:
    """As in a CUDA graph: the launches are made once, then lengths, padding and pages change under them."""
    call = make_call("append", "causal", "leftpad", dtype=HALF, page=page, M=2, keys=150, batch=3, dim=32, dim_v=32)
    call.options["num_splits"] = 3
    inputs = inputs_of(call)
    steps = launches(inputs, CONFIG, known(card))
    out, lse, made = steps
    for lengths, pads in (([0, 1, 148], [0, 0, 0]), ([140, 63, 64], [100, 63, 7]), ([17, 0, 90], [0, 0, 90])):
        fill(call, lengths, pads)
        expected = run_reference(call)
        out.fill_(torch.nan)
        for kernel, tensors in made:
            emulator.launch(kernel, tensors, known(card).arch)
        check_results(call, out, lse, expected)


def fill(call: Call, lengths: Sequence[int], pads: Sequence[int]) -> None:
    """New random caches, lengths and pages, in the tensors that are there."""
    for cache in call.tensors[1:3]:
        assert cache is not None
        cache.copy_(torch.randn(cache.shape))
    call.options["cache_seqlens"].copy_(torch.tensor(lengths, dtype=torch.int32))
    call.options["cache_leftpad"].copy_(torch.tensor(pads, dtype=torch.int32))
    if "block_table" in call.options:
        table = call.options["block_table"]
        table.copy_(torch.randperm(table.numel()).view(table.shape))


def run_reference(call: Call) -> tuple[Any, Any]:
    options = {name: value for name, value in call.options.items() if name != "num_splits"}
    return (
        reference.attention_with_kvcache(*call.tensors, **options),  # type: ignore[arg-type]
        reference.attention_with_kvcache(*call.tensors, dtype=call.dtype, **options),  # type: ignore[arg-type]
    )


def check_results(call: Call, out: Tensor, lse: Tensor | None, expected: tuple[Any, Any]) -> None:
    exact, plain = expected
    assert lse is not None
    assert_accurate("out", out, exact[0], plain[0], call.text)
    assert_accurate("lse", lse, exact[1], plain[1], call.text)
    for cache, after in zip(call.tensors[1:3], exact[2:]):
        assert cache is not None and torch.equal(bits(cache), bits(after)), call.text


# ---------------------------------------------------------------------------------------------- nobody looked at these


@paired("page_size", 16, 3)
def test_page_numbers_out_of_range(card: str, page_size: int) -> None:
    """The emulator faults at any access outside the caches. Sequences with a right table get their right results."""
    call = make_call("append", dtype=HALF, page=page_size, M=1, keys=70, batch=3, dim=32, dim_v=32)
    fill_only(call, [69, 40, 20])
    call.options["num_splits"] = 2
    expected = run_reference(call)
    inputs = inputs_of(call)
    assert inputs.block_table is not None
    wrong = [-1, -(2**31), 2**31 - 1, inputs.k_cache.shape[0]]
    for index in range(inputs.block_table.shape[1]):
        inputs.block_table[0, index] = wrong[index % len(wrong)]
    out, lse = run(inputs, card)
    good = slice(1, 3)
    assert lse is not None and not out[0].isinf().any()
    assert_accurate("out", out[good], expected[0][0][good], expected[1][0][good], call.text)
    assert_accurate("lse", lse[good], expected[0][1][good], expected[1][1][good], call.text)


def fill_only(call: Call, lengths: Sequence[int]) -> None:
    for cache in call.tensors[1:3]:
        assert cache is not None
        cache.copy_(torch.randn(cache.shape))
    call.options["cache_seqlens"] = torch.tensor(lengths, dtype=torch.int32)


@one_card
def test_lengths_out_of_range(card: str) -> None:
    """Too long ones count as the capacity, negative ones as none: nothing outside the caches is read or written."""
    call = make_call("append", dtype=HALF, M=2, keys=70, batch=4, dim=32, dim_v=32)
    fill_only(call, [2**31 - 1, -1, 10**6, -(2**31)])
    inputs = inputs_of(call)
    before = [bits(cache).clone() for cache in call.tensors[1:3] if cache is not None]
    for splits in (1, 2):
        out, lse = run(replace(inputs, num_splits=splits), card)
        assert lse is not None and out.isfinite().all()
    for cache, old in zip(call.tensors[1:3], before):
        assert cache is not None and torch.equal(bits(cache), old)


@one_card
def test_batch_entries_and_padding_out_of_range(card: str) -> None:
    call = make_call("batch_idx", "leftpad", dtype=HALF, M=2, keys=70, batch=3, dim=32, dim_v=32)
    fill_only(call, [60, 50, 40])
    inputs = inputs_of(call)
    assert inputs.cache_batch_idx is not None and inputs.cache_leftpad is not None
    inputs.cache_batch_idx[:] = torch.tensor([-1, 5, 2**31 - 1], dtype=torch.int32)
    inputs.cache_leftpad[:] = torch.tensor([-5, 2**31 - 1, -(2**31)], dtype=torch.int32)
    out, lse = run(inputs, card)
    assert lse is not None and out.isfinite().all() and (lse[1] == -torch.inf).all()


@one_card
def test_positions_behind_the_rotary_tables(card: str) -> None:
    call = make_call("append", "rotary", "causal", dtype=HALF, M=3, keys=70, batch=2, dim=32, dim_v=32)
    fill_only(call, [60, 2])
    inputs = inputs_of(call)
    assert inputs.rotary_cos is not None and inputs.rotary_sin is not None
    inputs.rotary_cos, inputs.rotary_sin = inputs.rotary_cos[:9].clone(), inputs.rotary_sin[:9].clone()
    out, _ = run(inputs, card)
    assert out.isfinite().all()


def test_steps_are_made_by_shape_alone() -> None:
    """The same launches for other lengths: nothing of a call's values is in a kernel or its parameters."""
    call = make_call("append", "leftpad", dtype=HALF, page=16, M=2, keys=150, batch=3, dim=32, dim_v=32)

    def made() -> list[tuple[Specialised, ...]]:
        return [(kernel,) for kernel, _ in launches(inputs_of(call), CONFIG, known("a100"))[-1]]

    first = made()
    fill(call, [3, 5, 100], [0, 2, 1])
    assert made() == first
