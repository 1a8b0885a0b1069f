"""flash-attn's dense and packed calls: results, gradients, softmax_lse and S_dmask by its conventions."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from faops.adapters import flash_attn
from faops.adapters.flash_attn.flash_attn_interface import _get_block_size_n
from tests.adapters.flash_attn.common import (
    close,
    expected,
    expected_varlen,
    offsets,
    randn,
    random_options,
    random_slopes,
)

pytestmark = pytest.mark.usefixtures("poisoned")


def check(results: tuple[Tensor, Tensor], wanted: tuple[Tensor, Tensor], inputs: list[Tensor]) -> None:
    """Out and lse are as wanted, and so are the gradients of both."""
    for ours, theirs in zip(results, wanted):
        close(ours, theirs)
    out, lse = results
    dout, dlse = torch.randn_like(out), torch.randn_like(lse).masked_fill(lse == torch.inf, 0.0)
    gradients = torch.autograd.grad([out, lse], inputs, [dout, dlse])
    for ours, theirs in zip(gradients, torch.autograd.grad(list(wanted), inputs, [dout, dlse])):
        close(ours, theirs)


@pytest.mark.parametrize("seqlens", [(5, 9), (9, 5), (1, 7), (7, 7)])
@pytest.mark.parametrize("heads", [(4, 4), (6, 2)])
def test_dense(seqlens: tuple[int, int], heads: tuple[int, int]) -> None:
    (M, N), (H, Hk) = seqlens, heads
    for _ in range(6):
        q, k, v = randn(2, M, H, 24, grad=True), randn(2, N, Hk, 24, grad=True), randn(2, N, Hk, 24, grad=True)
        options = random_options(H, 2)
        out, lse, dmask = flash_attn.flash_attn_func(q, k, v, return_attn_probs=True, **options)
        check((out, lse), expected(q, k, v, **options), [q, k, v])
        assert dmask.shape == (0,) and dmask.dtype == q.dtype
        assert torch.equal(flash_attn.flash_attn_func(q, k, v, **options), out)


def test_packed_forms_are_the_same_call_with_packed_gradients() -> None:
    for _ in range(6):
        options = random_options(4, 2)
        qkv = randn(2, 7, 3, 4, 16, grad=True)
        out, lse, _ = flash_attn.flash_attn_qkvpacked_func(qkv, return_attn_probs=True, **options)
        check((out, lse), expected(*qkv.unbind(2), **options), [qkv])
        q, kv = randn(2, 5, 4, 16, grad=True), randn(2, 7, 2, 2, 16, grad=True)
        out, lse, _ = flash_attn.flash_attn_kvpacked_func(q, kv, return_attn_probs=True, **options)
        check((out, lse), expected(q, *kv.unbind(2), **options), [q, kv])


lengths = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 8)), min_size=1, max_size=4)


@given(lengths=lengths, form=st.sampled_from(["plain", "kvpacked", "qkvpacked"]), chooser=st.randoms())
@settings(max_examples=40, deadline=None)
def test_varlen(lengths: list[tuple[int, int]], form: str, chooser: random.Random) -> None:
    lengths_q, lengths_k = [list(side) for side in zip(*lengths)]
    if form == "qkvpacked":
        lengths_k = lengths_q
    total_q, total_k, batch = sum(lengths_q), sum(lengths_k), len(lengths)
    options = random_options(4, batch, chooser)
    packing = (offsets(lengths_q), offsets(lengths_k), max(lengths_q), max(lengths_k))
    heads_kv = chooser.choice([1, 2, 4])
    if form == "plain":
        inputs = [randn(total_q, 4, 16, grad=True), *(randn(total_k, heads_kv, 16, grad=True) for _ in "kv")]
        result = flash_attn.flash_attn_varlen_func(*inputs, *packing, return_attn_probs=True, **options)
        q, k, v = inputs
    elif form == "kvpacked":
        inputs = [randn(total_q, 4, 16, grad=True), randn(total_k, 2, heads_kv, 16, grad=True)]
        result = flash_attn.flash_attn_varlen_kvpacked_func(*inputs, *packing, return_attn_probs=True, **options)
        q, k, v = inputs[0], *inputs[1].unbind(1)
    else:
        inputs = [randn(total_q, 3, 4, 16, grad=True)]
        packing = (packing[0], torch.tensor(packing[2]))  # a 0-d tensor will do for a length
        result = flash_attn.flash_attn_varlen_qkvpacked_func(*inputs, *packing, return_attn_probs=True, **options)
        q, k, v = inputs[0].unbind(1)
    out, lse, dmask = result
    check((out, lse), expected_varlen(q, k, v, lengths_q, lengths_k, **options), inputs)
    assert dmask.shape == (0,)


def test_rows_behind_the_last_sequence_are_zero_and_dead() -> None:
    q, k, v = randn(9, 2, 16), randn(9, 2, 16), randn(9, 2, 16)
    packing = (offsets([2, 3]), offsets([4, 3]), 3, 4)
    out, lse, _ = flash_attn.flash_attn_varlen_func(q, k, v, *packing, causal=True, return_attn_probs=True)
    assert not out[5:].any() and (lse[:, 5:] == torch.inf).all()
    close(out[:5], expected_varlen(q[:5], k[:7], v[:7], [2, 3], [4, 3], causal=True)[0])


# --- dropout ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("causal", [False, True])
def test_s_dmask_is_the_pattern_that_was_used(causal: bool) -> None:
    M, N, p = 130, 70, 0.3
    q, k, v = randn(2, M, 4, 16, grad=True), randn(2, N, 2, 16, grad=True), randn(2, N, 2, 16, grad=True)
    options = {"dropout_p": p, "causal": causal, "softcap": 3.0, "window_size": (40, -1)}
    out, lse, dmask = flash_attn.flash_attn_func(q, k, v, return_attn_probs=True, **options)
    assert dmask.shape == (2, 4, 256, 128) and dmask.dtype == q.dtype and not dmask.requires_grad
    wanted, wanted_lse = expected(q, k, v, keep=dmask[:, :, :M, :N] >= 0, **options)
    check((out, lse), (wanted, wanted_lse), [q, k, v])
    assert not dmask[:, :, M:].any() and not dmask[..., N:].any()
    dropped = (dmask < 0).sum() / (dmask != 0).sum()
    assert abs(float(dropped) - p) < 0.03


def test_s_dmask_holds_the_probabilities_as_flash_attn_tests_read_them() -> None:
    q, k, v = (randn(2, rows, heads, 16, dtype=torch.float32) for rows, heads in ((20, 4), (33, 2), (33, 2)))
    slopes = random_slopes(2, 4)
    _, lse, dmask = flash_attn.flash_attn_func(q, k, v, 0.2, alibi_slopes=slopes, return_attn_probs=True)
    assert _get_block_size_n(q.device, 16, True, False) >= 33  # columns that share the scale of their largest score
    scores = torch.einsum("bihd,bjhd->bhij", q.double(), k.double().repeat_interleave(2, dim=2)) / 4
    place = torch.arange(20)[:, None] + 13 - torch.arange(33)
    scores = scores - slopes[:, :, None, None] * place.abs()
    probabilities = dmask[:, :, :20, :33].abs() * torch.exp(scores.amax(-1) - lse)[..., None]
    close(probabilities.float(), torch.softmax(scores, -1))


def test_varlen_s_dmask_starts_each_sequence_at_the_top_left() -> None:
    lengths_q, lengths_k, p = [6, 0, 9], [11, 3, 5], 0.4
    inputs = [randn(15, 2, 16, grad=True), randn(19, 2, 16, grad=True), randn(19, 2, 16, grad=True)]
    packing = (offsets(lengths_q), offsets(lengths_k), 9, 11)
    slopes = random_slopes(3, 2)
    out, _, dmask = flash_attn.flash_attn_varlen_func(
        *inputs, *packing, p, causal=True, alibi_slopes=slopes, return_attn_probs=True
    )
    assert dmask.shape == (3, 2, 128, 128)
    outs = []
    for b, (q, k, v) in enumerate(zip(inputs[0].split(lengths_q), *(x.split(lengths_k) for x in inputs[1:]))):
        keep = dmask[b, None, :, : lengths_q[b], : lengths_k[b]] >= 0
        options = {"dropout_p": p, "causal": True, "alibi_slopes": slopes[b : b + 1]}
        outs.append(expected(q[None], k[None], v[None], keep=keep, **options)[0][0])
    close(out, torch.cat(outs))
    assert (dmask < 0).any(-1).any(-1).any(-1).tolist() == [True, False, True]


def test_dropout_follows_the_default_generator() -> None:
    q, k, v = randn(1, 30, 2, 16), randn(1, 30, 2, 16), randn(1, 30, 2, 16)
    for probs in (False, True):
        outs = []
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            result = flash_attn.flash_attn_func(q, k, v, 0.5, return_attn_probs=probs)
            outs.append(result[0] if probs else result)
        assert torch.equal(outs[0], outs[1]) and not torch.equal(outs[0], outs[2])


# --- how arguments may come -------------------------------------------------------------------------------------------


def test_a_strided_last_axis_is_copied() -> None:
    q, k, v = (randn(2, 6, 16, 4, grad=True) for _ in "qkv")
    out = flash_attn.flash_attn_func(*(x.transpose(2, 3) for x in (q, k, v)), causal=True)
    close(out, expected(*(x.transpose(2, 3) for x in (q, k, v)), causal=True)[0])
    packed = (offsets([2, 4]), offsets([2, 4]), 4, 4)
    out = flash_attn.flash_attn_varlen_func(*(x[0].transpose(1, 2) for x in (q, k, v)), *packed)
    close(out, expected_varlen(*(x[0].transpose(1, 2) for x in (q, k, v)), [2, 4], [2, 4])[0])


@pytest.mark.parametrize("window", [(3, 1), [3, 1], torch.tensor([3, 1]), (torch.tensor(3), 1)])
def test_a_window_may_be_any_pair(window: Any) -> None:
    q, k, v = randn(1, 6, 2, 16), randn(1, 9, 2, 16), randn(1, 9, 2, 16)
    close(flash_attn.flash_attn_func(q, k, v, window_size=window), expected(q, k, v, window_size=(3, 1))[0])


def test_negative_sides_of_a_window_are_unlimited() -> None:
    q, k, v = randn(1, 6, 2, 16), randn(1, 9, 2, 16), randn(1, 9, 2, 16)
    for window, same in (((-7, 2), (-1, 2)), ((None, None), (-1, -1)), ((2, -3), (2, -1))):
        wanted = expected(q, k, v, window_size=same)[0]
        close(flash_attn.flash_attn_func(q, k, v, window_size=window), wanted)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_keeps_its_dtype_and_float32_lse(dtype: torch.dtype) -> None:
    q, k, v = (randn(1, 17, 2, 24, dtype=dtype, grad=True) for _ in "qkv")
    out, lse, dmask = flash_attn.flash_attn_func(q, k, v, 0.1, causal=True, return_attn_probs=True)
    assert out.dtype == dmask.dtype == dtype and lse.dtype == torch.float32
    wanted = expected(*(x.detach().double() for x in (q, k, v)), causal=True)[1]
    torch.testing.assert_close(lse.double(), wanted, rtol=1e-4, atol=1e-4)
    out.sum().backward()
    assert q.grad is not None and q.grad.dtype == dtype


@pytest.mark.compile
def test_compiles_without_a_graph_break() -> None:
    q, k, v = (randn(1, 8, 2, 16, dtype=torch.float32) for _ in "qkv")

    def model(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = flash_attn.flash_attn_func(q, k, v, causal=True)
        packed = flash_attn.flash_attn_qkvpacked_func(torch.stack([q, k, v], 2), window_size=(2, 0))
        return out + packed  # type: ignore[no-any-return]

    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(q, k, v), model(q, k, v))
