"""Packed sequences: every feature against the oracle, empty sequences, padding behind the last one, dense equality."""

from __future__ import annotations

import math
import random
from itertools import pairwise

import pytest
import torch

import faops
from tests.support import DTYPES, FEATURES, check, cumulative, make_case

pytestmark = pytest.mark.usefixtures("poisoned")

VARLEN = [name for name in FEATURES if name != "varlen"]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("feature", ["plain", *VARLEN])
def test_feature_alone(feature: str, dtype: torch.dtype) -> None:
    features = ["varlen"] if feature == "plain" else ["varlen", feature]
    check(make_case(*features, dtype=dtype, seqlen_q=random.randint(1, 70), seqlen_k=random.randint(1, 70)))


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("feature", ["plain", *VARLEN])
def test_feature_alone_over_many_tiles(feature: str) -> None:
    features = ["varlen"] if feature == "plain" else ["varlen", feature]
    sizes = {"seqlen_q": random.randint(40, 100), "seqlen_k": random.randint(40, 100)}
    check(make_case(*features, dtype=random.choice(DTYPES), **sizes), backend="torch.blockwise")


def packed(lengths_q: list[int], lengths_k: list[int], heads: int = 2, dim: int = 8) -> list[torch.Tensor]:
    q, k, v = (torch.randn(sum(lengths), heads, dim) for lengths in (lengths_q, lengths_k, lengths_k))
    return [q, k, v, cumulative(lengths_q), cumulative(lengths_k)]


@pytest.mark.parametrize(
    ("lengths_q", "lengths_k"),
    [
        ([0, 0, 0], [0, 0, 0]),
        ([0, 5], [3, 0]),
        ([4, 0, 7], [0, 6, 2]),
        ([1], [1]),
        ([], []),
        ([3, 3], [0, 0]),
    ],
)
@pytest.mark.parametrize("causal", [False, True])
def test_empty_sequences(lengths_q: list[int], lengths_k: list[int], causal: bool) -> None:
    q, k, v, cu_q, cu_k = packed(lengths_q, lengths_k)
    leaves = [tensor.requires_grad_() for tensor in (q, k, v)]
    longest = max(lengths_q, default=0), max(lengths_k, default=0)
    out, lse = faops.attention_varlen(q, k, v, cu_q, cu_k, *longest, causal=causal, return_lse=True)
    assert out.shape == q.shape
    assert lse.shape == (2, sum(lengths_q))
    found = torch.autograd.grad((out, lse), leaves, (torch.randn_like(out), torch.randn_like(lse)))
    assert all(gradient.isfinite().all() for gradient in found)
    for b, (rows, keys) in enumerate(zip(pairwise(cu_q.tolist()), pairwise(cu_k.tolist()))):
        mine = slice(*rows)
        if lengths_k[b] == 0:
            assert torch.equal(out[mine], torch.zeros_like(out[mine]))
            assert torch.equal(lse[:, mine], torch.full_like(lse[:, mine], -math.inf))
        elif lengths_q[b] > 0:
            alone = faops.attention(q[None, mine], k[None, slice(*keys)], v[None, slice(*keys)], causal=causal)
            torch.testing.assert_close(out[mine], alone[0])


def test_tokens_behind_the_last_sequence_are_zero() -> None:
    q, k, v, cu_q, cu_k = packed([5, 4], [6, 3])
    more = [torch.cat([tensor, torch.randn(3, 2, 8)]).requires_grad_() for tensor in (q, k, v)]
    out, lse = faops.attention_varlen(*more, cu_q, cu_k, 5, 6, return_lse=True)
    expected, expected_lse = faops.attention_varlen(q, k, v, cu_q, cu_k, 5, 6, return_lse=True)
    assert torch.equal(out[:9], expected)
    assert torch.equal(lse[:, :9], expected_lse)
    assert torch.equal(out[9:], torch.zeros(3, 2, 8))
    assert torch.equal(lse[:, 9:], torch.full((2, 3), -math.inf))
    for gradient in torch.autograd.grad((out, lse), more, (torch.randn_like(out), torch.randn_like(lse))):
        assert torch.equal(gradient[9:], torch.zeros(3, 2, 8))


@pytest.mark.parametrize("backend", [None, "torch.blockwise"])
def test_dropout_mask_is_the_dense_one(backend: str | None) -> None:
    """Equal lengths packed or in a batch: the same probabilities are dropped."""
    B, M, N = 3, 17, 23
    q, k, v = torch.randn(B, M, 4, 8), torch.randn(B, N, 2, 8), torch.randn(B, N, 2, 8)
    options = {"dropout_p": 0.4, "causal": True, "return_lse": True, "backend": backend}
    dense, dense_lse = faops.attention(q, k, v, generator=torch.Generator().manual_seed(11), **options)
    flat, flat_lse = faops.attention_varlen(
        *(tensor.flatten(0, 1) for tensor in (q, k, v)), cumulative([M] * B), cumulative([N] * B), M, N,
        generator=torch.Generator().manual_seed(11), **options,
    )  # fmt: skip
    torch.testing.assert_close(flat.view(B, M, 4, 8), dense)
    torch.testing.assert_close(flat_lse.view(4, B, M).transpose(0, 1), dense_lse)


def test_longest_lengths_may_be_upper_bounds() -> None:
    q, k, v, cu_q, cu_k = packed([5, 9], [7, 8])
    exact = faops.attention_varlen(q, k, v, cu_q, cu_k, 9, 8, causal=True)
    assert torch.equal(faops.attention_varlen(q, k, v, cu_q, cu_k, 100, 200, causal=True), exact)


def test_views_of_a_packed_tensor() -> None:
    qkv = torch.randn(20, 3, 4, 16)
    cu = cumulative([7, 0, 13])
    expected = faops.attention_varlen(*(view.contiguous() for view in qkv.unbind(1)), cu, cu, 13, 13, causal=True)
    assert torch.equal(faops.attention_varlen(*qkv.unbind(1), cu, cu, 13, 13, causal=True), expected)


def test_neighbours_do_not_see_each_other() -> None:
    q, k, v, cu_q, cu_k = packed([6, 5, 7], [6, 5, 7])
    before = faops.attention_varlen(q, k, v, cu_q, cu_k, 7, 7)
    k[6:11] = torch.randn(5, 2, 8) * 100
    v[6:11] = float("nan")
    after = faops.attention_varlen(q, k, v, cu_q, cu_k, 7, 7)
    assert torch.equal(after[:6], before[:6])
    assert torch.equal(after[11:], before[11:])
    assert after[6:11].isnan().all()
