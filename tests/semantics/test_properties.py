"""Laws that attention obeys, over shapes and options that hypothesis chooses. None of them uses the oracle's code."""

from __future__ import annotations

import math
import os
import random

import pytest
import torch
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from torch import Tensor

import faops
from tests.support import FEATURES as ALL_FEATURES
from tests.support import check, compatible, cumulative, make_case

pytestmark = pytest.mark.usefixtures("poisoned")

# Examples follow FAOPS_TEST_SEED like every other random input; fixtures change nothing between examples.
lawful = settings(
    max_examples=25, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
fresh = seed(int(os.environ["FAOPS_TEST_SEED"]))

lengths = st.integers(1, 70)
seeds = st.integers(0, 2**31)
groups = st.sampled_from([(1, 1), (2, 2), (4, 2), (3, 1)])
bands = st.sampled_from([{}, {"causal": True}, {"window": (5, 3)}, {"window": (0, -1)}, {"window": (-1, 7)}])
backends = st.sampled_from([None, "torch.blockwise"])


def tensors(M: int, N: int, heads: tuple[int, int], number: int, D: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(number)
    q, k, v = (torch.randn(2, n, h, D).double() for n, h in ((M, heads[0]), (N, heads[1]), (N, heads[1])))
    return q, k, v


def close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)


@fresh
@lawful
@given(
    st.sets(st.sampled_from(sorted(ALL_FEATURES)), max_size=6),
    st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
    lengths, lengths, st.sampled_from([1, 3, 8, 40, 64, 72]), backends, seeds,
)  # fmt: skip
def test_any_call_meets_the_oracle(features, dtype, M, N, D, backend, number) -> None:  # type: ignore[no-untyped-def]
    names = tuple(sorted(features))
    while not compatible(names):
        names = names[1:]
    torch.manual_seed(number)
    random.seed(number)
    check(make_case(*names, dtype=dtype, seqlen_q=M, seqlen_k=N, head_dim=D), backend=backend)


@fresh
@lawful
@given(lengths, lengths, groups, bands, seeds, st.data())
def test_rows_do_not_depend_on_each_other(M, N, heads, band, number, data) -> None:  # type: ignore[no-untyped-def]
    """The last rows alone give what they gave among the others, because alignment is bottom-right."""
    q, k, v = tensors(M, N, heads, number)
    first = data.draw(st.integers(0, M - 1))
    whole, whole_lse = faops.attention(q, k, v, return_lse=True, **band)
    part, part_lse = faops.attention(q[:, first:], k, v, return_lse=True, **band)
    close(part, whole[:, first:])
    close(part_lse, whole_lse[..., first:])


@fresh
@lawful
@given(lengths, lengths, groups, seeds, st.data())
def test_parts_of_the_keys_combine_by_lse(M, N, heads, number, data) -> None:  # type: ignore[no-untyped-def]
    """Attention over two halves of the keys, weighted by exp(lse), is attention over all."""
    q, k, v = tensors(M, N, heads, number)
    middle = data.draw(st.integers(0, N))
    (out_a, lse_a), (out_b, lse_b) = (
        faops.attention(q, k[:, part], v[:, part], return_lse=True)
        for part in (slice(None, middle), slice(middle, None))
    )
    whole, lse = faops.attention(q, k, v, return_lse=True)
    close(torch.logaddexp(lse_a, lse_b), lse)
    weight_a, weight_b = ((part - lse).exp().transpose(1, 2)[..., None] for part in (lse_a, lse_b))
    close(out_a * weight_a + out_b * weight_b, whole)


@fresh
@lawful
@given(lengths, lengths, groups, seeds)
def test_order_of_keys_does_not_matter_without_positions(M, N, heads, number) -> None:  # type: ignore[no-untyped-def]
    q, k, v = tensors(M, N, heads, number)
    order = torch.randperm(N)
    mask = torch.rand(2, 1, M, N) < 0.7
    found = faops.attention(q, k[:, order], v[:, order], mask=mask[..., order], softcap=2.0)
    close(found, faops.attention(q, k, v, mask=mask, softcap=2.0))


@fresh
@lawful
@given(lengths, lengths, groups, bands, seeds)
def test_out_is_an_average_of_values(M, N, heads, band, number) -> None:  # type: ignore[no-untyped-def]
    """Constant values come back unchanged in every row that sees a key, and out is linear in the values."""
    q, k, v = tensors(M, N, heads, number)
    out, lse = faops.attention(q, k, torch.full_like(v, 3.0), return_lse=True, **band)
    alive = lse.isfinite().transpose(1, 2)
    close(out[alive], torch.full_like(out[alive], 3.0))
    assert torch.equal(out[~alive], torch.zeros_like(out[~alive]))
    other = torch.randn_like(v)
    close(
        faops.attention(q, k, 2.0 * v - other, **band),
        2.0 * faops.attention(q, k, v, **band) - faops.attention(q, k, other, **band),
    )


@fresh
@lawful
@given(lengths, lengths, groups, bands, seeds)
def test_a_band_is_its_mask(M, N, heads, band, number) -> None:  # type: ignore[no-untyped-def]
    """causal and window equal the boolean mask that their definition draws."""
    q, k, v = tensors(M, N, heads, number)
    diagonal, keys = torch.arange(M)[:, None] + N - M, torch.arange(N)
    mask = torch.ones(M, N, dtype=torch.bool)
    left, right = band.get("window", (-1, -1))
    if left >= 0:
        mask &= keys >= diagonal - left
    if right >= 0:
        mask &= keys <= diagonal + right
    if band.get("causal"):
        mask &= keys <= diagonal
    for found, wanted in zip(
        faops.attention(q, k, v, return_lse=True, **band), faops.attention(q, k, v, return_lse=True, mask=mask)
    ):
        close(found, wanted)


@fresh
@lawful
@given(lengths, lengths, groups, bands, seeds)
def test_alibi_is_its_bias(M, N, heads, band, number) -> None:  # type: ignore[no-untyped-def]
    q, k, v = tensors(M, N, heads, number)
    slopes = torch.rand(2, heads[0])
    distance = (torch.arange(M)[:, None] + N - M - torch.arange(N)).abs()
    bias = -slopes.double()[:, :, None, None] * distance
    close(faops.attention(q, k, v, alibi_slopes=slopes, **band), faops.attention(q, k, v, bias=bias, **band))


@fresh
@lawful
@given(lengths, lengths, groups, bands, seeds)
def test_a_sink_is_a_key_without_value(M, N, heads, band, number) -> None:  # type: ignore[no-untyped-def]
    """Among living rows: out shrinks by exp(lse - lse with the sink), and the denominators differ by exp(sink)."""
    q, k, v = tensors(M, N, heads, number)
    sinks = torch.randn(heads[0]).double()
    bare, bare_lse = faops.attention(q, k, v, return_lse=True, **band)
    out, lse = faops.attention(q, k, v, return_lse=True, sinks=sinks, **band)
    alive = bare_lse.isfinite()
    assert torch.equal(alive, lse.isfinite())
    close(lse[alive], torch.logaddexp(bare_lse, sinks[None, :, None])[alive])
    shrink = torch.where(alive, (bare_lse - lse).exp(), 0.0).transpose(1, 2)[..., None]
    close(out, bare * shrink)


@fresh
@lawful
@given(lengths, lengths, bands, seeds)
def test_groups_are_repeated_keys(M, N, band, number) -> None:  # type: ignore[no-untyped-def]
    q, k, v = tensors(M, N, (6, 2), number)
    wide = (tensor.repeat_interleave(3, dim=2) for tensor in (k, v))
    close(faops.attention(q, k, v, **band), faops.attention(q, *wide, **band))


@fresh
@lawful
@given(lengths, lengths, groups, bands, seeds)
def test_gradient_of_the_values_is_the_adjoint(M, N, heads, band, number) -> None:  # type: ignore[no-untyped-def]
    """<dout, A v> = <Aᵀ dout, v>, with Aᵀ dout = dv."""
    q, k, v = tensors(M, N, heads, number)
    v.requires_grad_()
    out = faops.attention(q, k, v, **band)
    dout = torch.randn_like(out)
    (dv,) = torch.autograd.grad(out, [v], dout)
    close((dout * out).sum(), (dv * v).sum())


@fresh
@lawful
@given(lengths, lengths, groups, bands, seeds)
def test_gradients_of_softmax_sum_to_nothing(M, N, heads, band, number) -> None:  # type: ignore[no-untyped-def]
    """Adding a constant to a whole row of scores changes nothing: the gradient of such a bias is 0."""
    q, k, v = tensors(M, N, heads, number)
    bias = torch.randn(2, heads[0], M, 1).double().requires_grad_()
    (dbias,) = torch.autograd.grad(faops.attention(q, k, v, bias=bias, **band).square().sum(), [bias])
    assert float(dbias.abs().max()) < 1e-11


@fresh
@lawful
@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), min_size=1, max_size=6), groups, bands, seeds)
def test_packed_sequences_are_sequences_alone(sizes, heads, band, number) -> None:  # type: ignore[no-untyped-def]
    torch.manual_seed(number)
    rows, keys = [size[0] for size in sizes], [size[1] for size in sizes]
    q, k, v = (torch.randn(sum(n), h, 8).double() for n, h in ((rows, heads[0]), (keys, heads[1]), (keys, heads[1])))
    out, lse = faops.attention_varlen(
        q, k, v, cumulative(rows), cumulative(keys), max(rows), max(keys), return_lse=True, **band
    )
    for qs, ks, vs, outs, lses in zip(
        q.split(rows), k.split(keys), v.split(keys), out.split(rows), lse.split(rows, dim=1)
    ):
        alone, alone_lse = faops.attention(qs[None], ks[None], vs[None], return_lse=True, **band)
        close(outs, alone[0])
        close(lses, alone_lse[0])


@fresh
@lawful
@given(st.integers(1, 7), st.integers(1, 9), st.integers(0, 30), st.booleans(), seeds)
def test_pages_of_any_size_are_one_cache(page, M, past, append, number) -> None:  # type: ignore[no-untyped-def]
    torch.manual_seed(number)
    new = M if append else 0
    capacity = past + new + page
    pages = -(-capacity // page)
    table = torch.randperm(2 * pages).view(2, pages).int()
    dense = [torch.randn(2, pages * page, 2, 8).double() for _ in range(2)]
    paged = [torch.empty(2 * pages, page, 2, 8).double() for _ in range(2)]
    for cache, whole in zip(paged, dense):
        cache[table.long().flatten()] = whole.view(2 * pages, page, 2, 8)
    q = torch.randn(2, M, 4, 8).double()
    k, v = (torch.randn(2, new, 2, 8).double() if append else None for _ in range(2))
    options = {"cache_seqlens": past, "causal": True, "return_lse": True}
    found = faops.attention_with_kvcache(q, *paged, k, v, block_table=table, **options)
    wanted = faops.attention_with_kvcache(q, *dense, k, v, **options)
    for one, other in zip((*found, *(cache[table.long()].flatten(1, 2) for cache in paged)), (*wanted, *dense)):
        close(one, other)


@fresh
@lawful
@given(st.floats(-300, 300), lengths, seeds)
def test_huge_scores_neither_overflow_nor_vanish(shift, N, number) -> None:  # type: ignore[no-untyped-def]
    """A bias of hundreds shifts lse by itself and leaves out alone, in float32 too."""
    q, k, v = (tensor.float() for tensor in tensors(4, N, (2, 2), number))
    bias = torch.full((1, 1, 1, 1), shift)
    out, lse = faops.attention(q, k, v, bias=bias, return_lse=True)
    plain, plain_lse = faops.attention(q, k, v, return_lse=True)
    torch.testing.assert_close(out, plain, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(lse, plain_lse + shift, rtol=1e-5, atol=1e-4)
    assert math.isfinite(float(lse.sum()))
