"""Packed sequences in the Triton forward kernel: empty sequences, padding behind the last one, neighbours."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

import faops
from tests.support import cumulative
from tests.triton.support import BACKEND, TALL_TILES, recorded

pytestmark = pytest.mark.usefixtures("poisoned")


def packed(lengths_q: list[int], lengths_k: list[int]) -> list[Tensor]:
    q, k, v = (torch.randn(sum(lengths), 2, 16).half() for lengths in (lengths_q, lengths_k, lengths_k))
    return [q, k, v, cumulative(lengths_q), cumulative(lengths_k)]


LENGTHS = [
    ([0, 0, 0], [0, 0, 0]),
    ([0, 5], [3, 0]),
    ([4, 0, 7], [0, 6, 2]),
    ([1], [1]),
    ([], []),
    ([3, 3], [0, 0]),
    ([16, 17, 1, 0, 40], [17, 16, 0, 3, 35]),
]


@pytest.mark.parametrize("causal", [False, True])
def test_sequences_are_what_they_are_alone(causal: bool) -> None:
    """Empty ones among them, and a longest length that is larger than any."""
    with recorded():
        for lengths_q, lengths_k in LENGTHS:
            q, k, v, cu_q, cu_k = packed(lengths_q, lengths_k)
            longest = max(lengths_q, default=0) + 20, max(lengths_k, default=0) + 20
            options = {"causal": causal, "return_lse": True, "backend": BACKEND}
            out, lse = faops.attention_varlen(q, k, v, cu_q, cu_k, *longest, **options)
            assert out.shape == q.shape
            assert lse.shape == (2, sum(lengths_q))
            for rows, keys in zip(pairwise(cu_q.tolist()), pairwise(cu_k.tolist())):
                mine, seen = slice(*rows), slice(*keys)
                if rows[0] == rows[1]:
                    continue
                alone, alone_lse = faops.attention(q[None, mine], k[None, seen], v[None, seen], **options)
                assert torch.equal(out[mine], alone[0])
                assert torch.equal(lse[:, mine], alone_lse[0])


def test_rows_behind_the_last_sequence_are_zero() -> None:
    q, k, v, cu_q, cu_k = packed([5, 33], [6, 3])
    more = [torch.cat([tensor, torch.full((40, 2, 16), math.nan).half()]) for tensor in (q, k, v)]
    with recorded(TALL_TILES):
        for lse_too in (False, True):
            options = {"return_lse": lse_too, "backend": BACKEND}
            found = faops.attention_varlen(*more, cu_q, cu_k, 33, 6, **options)
            expected = faops.attention_varlen(q, k, v, cu_q, cu_k, 33, 6, **options)
            out, wanted = (found[0], expected[0]) if lse_too else (found, expected)
            assert torch.equal(out[:38], wanted)
            assert torch.equal(out[38:], torch.zeros(40, 2, 16).half())
            if lse_too:
                assert torch.equal(found[1][:, :38], expected[1])
                assert torch.equal(found[1][:, 38:], torch.full((2, 40), -math.inf))


def test_values_of_one_sequence_do_not_reach_another() -> None:
    """Infinite keys and values next door leave a sequence's result as it was."""
    q, k, v, cu_q, cu_k = packed([30, 10, 30], [30, 10, 26])
    with recorded():
        expected = faops.attention_varlen(q, k, v, cu_q, cu_k, 30, 30, backend=BACKEND)
        k[30:40], v[30:40] = math.inf, math.inf
        with pytest.warns(RuntimeWarning, match="invalid value"):
            found = faops.attention_varlen(q, k, v, cu_q, cu_k, 30, 30, backend=BACKEND)
    assert torch.equal(found[:30], expected[:30])
    assert torch.equal(found[40:], expected[40:])
    assert not found[30:40].isfinite().all()


def test_dropout_mask_is_the_dense_one() -> None:
    B, M, N = 2, 17, 40
    q, k, v = (torch.randn(B, length, heads, 16).half() for length, heads in ((M, 2), (N, 1), (N, 1)))
    generators = [torch.Generator().manual_seed(2) for _ in range(2)]
    options = {"dropout_p": 0.4, "causal": True, "backend": BACKEND}
    with recorded():
        dense = faops.attention(q, k, v, generator=generators[0], **options)
        cu_q, cu_k = cumulative([M] * B), cumulative([N] * B)
        flat = (tensor.flatten(0, 1) for tensor in (q, k, v))
        found = faops.attention_varlen(*flat, cu_q, cu_k, M, N, generator=generators[1], **options)
    assert torch.equal(found, dense.flatten(0, 1))
