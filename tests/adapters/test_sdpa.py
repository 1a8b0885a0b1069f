"""scaled_dot_product_attention through faops means what PyTorch's own function means, forward and backward."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right, causal_upper_left

import faops
from faops.adapters import sdpa
from tests.support import assert_accurate, largest, random_mask

MASKS = ("none", "causal", "bool", "dead", "float", "float32", "upper_left", "lower_right")
ROUNDING = 200.0  # in eps of the dtype, for sums over at most 33 keys
SIZES = (1, 2, 5, 17, 33)


@st.composite
def problems(draw: st.DrawFn) -> dict[str, Any]:
    """Shapes and options of one call; the tensors follow from the test's own seed."""
    leading = tuple(draw(st.lists(st.integers(1, 3), max_size=2)))
    heads, group = draw(st.sampled_from(((1, 1), (3, 1), (4, 2), (6, 3), (2, 2))))
    axes = draw(st.sampled_from(("plain", "no heads", "broadcast", "grouped")))
    return {
        "leading": leading if axes == "no heads" else (*leading, heads),
        "heads_kv": heads // group if axes == "grouped" else heads,
        "axes": axes,
        "lengths": (draw(st.sampled_from(SIZES)), draw(st.sampled_from(SIZES))),
        "dims": (draw(st.sampled_from((1, 8, 20))), draw(st.sampled_from((1, 8, 12)))),
        "dtype": draw(st.sampled_from((torch.float32, torch.float64))),
        "mask": draw(st.sampled_from(MASKS)),
        "scale": draw(st.sampled_from((None, 0.3, 1))),
        "strided": draw(st.booleans()),
        "seed": draw(st.integers(0, 2**31)),
    }


def tensors(problem: dict[str, Any]) -> list[Tensor]:
    (rows, keys), (dim, value_dim), leading = problem["lengths"], problem["dims"], problem["leading"]
    found = []
    for name, shape in (("q", (rows, dim)), ("k", (keys, dim)), ("v", (keys, value_dim))):
        before = list(leading)
        if problem["axes"] == "grouped" and name != "q":
            before[-1] = problem["heads_kv"]
        if problem["axes"] == "broadcast":
            before = [random.choice((1, size)) for size in before]
        values = torch.randn(*before, *shape).to(problem["dtype"])
        if problem["strided"]:
            values = values.transpose(-1, -2).contiguous().transpose(-1, -2)
        found.append(values)
    return found


def mask_options(problem: dict[str, Any], query: Tensor, key: Tensor) -> dict[str, Any]:
    kind, (rows, keys) = problem["mask"], problem["lengths"]
    if kind == "none":
        return {}
    if kind == "causal":
        return {"is_causal": True}
    if kind in ("upper_left", "lower_right"):
        make = causal_upper_left if kind == "upper_left" else causal_lower_right
        return {"attn_mask": make(rows, keys)}
    grouped = problem["axes"] == "grouped"
    leading = query.shape[:-2] if grouped else torch.broadcast_shapes(query.shape[:-2], key.shape[:-2])
    full = (*leading, rows, keys)
    shape = [random.choice((1, size)) for size in full[random.randint(0, len(full) - 2) :]]
    if kind in ("bool", "dead"):
        mask = random_mask(tuple(shape)) if kind == "dead" else torch.rand(shape) < 0.7
        return {"attn_mask": mask if kind == "dead" else mask | (torch.arange(shape[-1]) == 0)}
    return {"attn_mask": torch.randn(shape).to(torch.float32 if kind == "float32" else problem["dtype"])}


def run(function: Any, inputs: list[Tensor], options: dict[str, Any], dout: Tensor | None) -> tuple[Tensor, ...]:
    """out and, for a given dout, the gradients of q, k, v and of a floating mask."""
    leaves = [tensor.detach().requires_grad_(dout is not None) for tensor in inputs]
    mask = options.get("attn_mask")
    if type(mask) is Tensor and mask.is_floating_point():
        options = {**options, "attn_mask": mask.detach().requires_grad_(dout is not None)}
        leaves.append(options["attn_mask"])
    out = function(*leaves[:3], **options)
    return (out, *(() if dout is None else torch.autograd.grad(out, leaves, dout.to(out.dtype))))


def in_float64(inputs: list[Tensor], options: dict[str, Any]) -> tuple[list[Tensor], dict[str, Any]]:
    mask = options.get("attn_mask")
    if type(mask) is Tensor and mask.is_floating_point():
        options = {**options, "attn_mask": mask.double()}
    return [tensor.double() for tensor in inputs], options


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(problem=problems())
def test_results_and_gradients_are_those_of_pytorch(problem: dict[str, Any]) -> None:
    torch.manual_seed(problem["seed"])
    random.seed(problem["seed"])
    inputs = tensors(problem)
    if problem["mask"] == "lower_right" and problem["lengths"][0] > problem["lengths"][1]:
        problem["mask"] = "causal"
    options = {**mask_options(problem, *inputs[:2]), "scale": problem["scale"]}
    options["enable_gqa"] = problem["axes"] == "grouped"
    exact_inputs, exact_options = in_float64(inputs, options)
    # PyTorch's gradients of a row without a key are NaN in some of its kernels.
    dout = None
    out = F.scaled_dot_product_attention(*exact_inputs, **exact_options)
    if problem["mask"] != "dead":
        dout = torch.randn_like(out)
    exact = run(F.scaled_dot_product_attention, exact_inputs, exact_options, dout)
    with sdpa.enabled() as calls:
        ours = run(F.scaled_dot_product_attention, inputs, options, dout)
    assert calls.routed == 1 and not calls.kept, calls
    for name, mine, truth in zip(("out", "dq", "dk", "dv", "dmask"), ours, exact):
        assert name == "dmask" or mine.dtype == problem["dtype"]
        close(name, mine, truth, problem)


def close(name: str, mine: Tensor, exact: Tensor, context: object) -> None:
    """Within rounding: a wrong mask, head or scale is off by far more."""
    assert mine.shape == exact.shape, f"{name}: {tuple(mine.shape)}, expected {tuple(exact.shape)}: {context}"
    allowed = ROUNDING * torch.finfo(mine.dtype).eps * max(1.0, largest(exact))
    error = (mine.double() - exact).abs().max().item()
    assert error <= allowed, f"{name}: error {error:.3g}, allowed {allowed:.3g}: {context}"  # also fails for NaN


MASKS_OF_AXES = (
    ((3,), (3, 5, 9)),
    ((3,), (1, 9)),
    ((3, 4), (3, 1, 5, 9)),
    ((3, 4), (4, 5, 9)),
    ((2, 3, 4), (2, 3, 4, 1, 9)),
    ((2, 3, 4), (2, 1, 4, 5, 9)),
    ((2, 3, 4), (3, 4, 5, 9)),
    ((2, 3, 4), (1, 1, 1, 5, 9)),
    ((2, 3, 4), (5, 9)),
)


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize(("leading", "shape"), MASKS_OF_AXES)
def test_masks_with_any_number_of_axes(leading: tuple[int, ...], shape: tuple[int, ...], grouped: bool) -> None:
    q = torch.randn(*leading, 5, 8, dtype=torch.float64)
    k = torch.randn(*leading[:-1], 1 if grouped else leading[-1], 9, 8, dtype=torch.float64)
    mask = torch.randn(shape, dtype=torch.float64)
    exact = F.scaled_dot_product_attention(q, k, k, mask, enable_gqa=grouped)
    with sdpa.enabled() as calls:
        ours = F.scaled_dot_product_attention(q, k, k, mask, enable_gqa=grouped)
    assert calls.routed == 1 and not calls.kept, calls
    close("out", ours, exact, shape)


@pytest.mark.parametrize(("rows", "keys"), [(5, 9), (9, 5), (7, 7)])
@pytest.mark.parametrize("kind", ["is_causal", "upper_left", "lower_right"])
def test_both_alignments_of_causal(kind: str, rows: int, keys: int) -> None:
    if kind == "lower_right" and rows > keys:
        pytest.skip("PyTorch warns that this gives NaN")
    q, k = torch.randn(2, 3, rows, 8), torch.randn(2, 3, keys, 8)
    make = {"upper_left": causal_upper_left, "lower_right": causal_lower_right}.get(kind)
    options = {"is_causal": True} if make is None else {"attn_mask": make(rows, keys)}
    exact = F.scaled_dot_product_attention(q.double(), k.double(), k.double(), **options)
    with sdpa.enabled() as calls:
        ours = F.scaled_dot_product_attention(q, k, k, **options)
    assert calls.routed == 1
    close("out", ours, exact, kind)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("mask_dtype", [None, torch.float32])
def test_16_bit_tensors_and_their_masks(dtype: torch.dtype, mask_dtype: torch.dtype | None) -> None:
    q, k, v = (torch.randn(2, 3, length, 24).to(dtype) for length in (33, 65, 65))
    mask = torch.randn(3, 33, 65).to(mask_dtype or dtype)
    plain = F.scaled_dot_product_attention(q, k, v, mask)
    exact = F.scaled_dot_product_attention(q.double(), k.double(), v.double(), mask.double())
    with sdpa.enabled() as calls:
        ours = F.scaled_dot_product_attention(q, k, v, mask)
    assert calls.routed == 1 and ours.dtype == dtype
    assert_accurate("out", ours, exact, plain, f"{dtype} {mask.dtype}")


def test_rows_without_a_key_give_zero_and_have_gradients() -> None:
    q, k, v = (torch.randn(1, 2, 5, 8, requires_grad=True) for _ in "qkv")
    mask = torch.ones(5, 5, dtype=torch.bool)
    mask[2] = False
    assert not F.scaled_dot_product_attention(q, k, v, mask)[:, :, 2].any()  # PyTorch agrees
    with sdpa.enabled() as calls:
        out = F.scaled_dot_product_attention(q, k, v, mask)
        out.sum().backward()
    assert calls.routed == 1 and not out[:, :, 2].any()
    assert all(bool(tensor.grad.isfinite().all()) for tensor in (q, k, v) if tensor.grad is not None)
    assert q.grad is not None and not q.grad[:, :, 2].any() and q.grad[:, :, 0].any()


def test_a_result_lies_in_memory_as_the_query_does() -> None:
    heads_first = torch.randn(2, 3, 5, 8)
    rows_first = torch.randn(2, 5, 3, 8).transpose(1, 2)
    with sdpa.enabled():
        for query in (heads_first, rows_first, heads_first[0], torch.randn(2, 2, 3, 5, 8)):
            assert F.scaled_dot_product_attention(query, query, query).stride() == query.stride()


def test_dropout_always_applies_and_keeps_the_mean() -> None:
    q, k = torch.randn(2, 4, 64, 8), torch.randn(2, 4, 64, 8)
    with sdpa.enabled() as calls:
        out = F.scaled_dot_product_attention(q, k, torch.ones_like(k), dropout_p=0.3)
        again = F.scaled_dot_product_attention(q, k, torch.ones_like(k), dropout_p=0.3)
    assert calls.routed == 2
    assert not torch.equal(out, again)
    assert out.mean().item() == pytest.approx(1.0, abs=0.05) and out.std() > 0.01


def test_autocast_casts_as_for_pytorch() -> None:
    q, k, v = (torch.randn(2, 3, 17, 8) for _ in "qkv")
    mask = torch.randn(17, 17)
    with torch.autocast("cpu", torch.bfloat16):
        plain = F.scaled_dot_product_attention(q, k.bfloat16(), v, mask)
        with sdpa.enabled() as calls:
            ours = F.scaled_dot_product_attention(q, k.bfloat16(), v, mask)
    assert calls.routed == 1 and ours.dtype == plain.dtype == torch.bfloat16
    assert torch.allclose(ours.float(), plain.float(), atol=0.05)


def test_deterministic_algorithms_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(faops, "attention", lambda *tensors, **options: asked.append(options["deterministic"]))
    q = torch.randn(1, 2, 5, 8)
    with sdpa.enabled():
        F.scaled_dot_product_attention(q, q, q)
        torch.use_deterministic_algorithms(True)
        try:
            F.scaled_dot_product_attention(q, q, q)
        finally:
            torch.use_deterministic_algorithms(False)
    assert asked == [False, True]
