"""Packed sequences in the raw CUDA forward kernels: features, empty sequences, padding behind the last one."""

from __future__ import annotations

import math
import random
from itertools import pairwise

import pytest
import torch
from torch import Tensor

import faops
from tests.cuda_raw.support import BACKEND, KERNELS, check_on, emulated, rotate
from tests.support import FORWARD, cumulative, make_case

pytestmark = pytest.mark.usefixtures("poisoned", "emulator_here")

each_card = pytest.mark.parametrize("card", KERNELS)


@pytest.mark.full
@rotate(["plain", *(name for name in FORWARD if name != "varlen")], "feature")
def test_feature_alone(card: str, dtype: torch.dtype, feature: str) -> None:
    features = ["varlen"] if feature == "plain" else ["varlen", feature]
    check_on(card, make_case(*features, dtype=dtype, seqlen_q=random.randint(1, 140), seqlen_k=random.randint(1, 140)))


@rotate([("varlen",), ("varlen", "gqa", "causal"), ("varlen", "alibi_batch", "bias", "mask", "dropout")], "features")
def test_features(card: str, dtype: torch.dtype, features: tuple[str, ...]) -> None:
    check_on(card, make_case(*features, dtype=dtype, seqlen_q=140, seqlen_k=random.randint(66, 200)))


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
    ([64, 65, 1, 0, 130], [65, 64, 0, 3, 70]),
]


@each_card
@pytest.mark.parametrize("causal", [False, True])
def test_sequences_are_what_they_are_alone(card: str, causal: bool) -> None:
    """Empty ones among them, and a longest length that is larger than any."""
    with emulated(card):
        for lengths_q, lengths_k in LENGTHS:
            for more in (0, 70):
                q, k, v, cu_q, cu_k = packed(lengths_q, lengths_k)
                longest = max(lengths_q, default=0) + more, max(lengths_k, default=0) + more
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


@each_card
def test_rows_behind_the_last_sequence_are_zero(card: str) -> None:
    q, k, v, cu_q, cu_k = packed([5, 70], [6, 3])
    more = [torch.cat([tensor, torch.full((90, 2, 16), math.nan).half()]) for tensor in (q, k, v)]
    with emulated(card):
        for lse_too in (False, True):
            options = {"return_lse": lse_too, "backend": BACKEND}
            found = faops.attention_varlen(*more, cu_q, cu_k, 70, 6, **options)
            expected = faops.attention_varlen(q, k, v, cu_q, cu_k, 70, 6, **options)
            out, wanted = (found[0], expected[0]) if lse_too else (found, expected)
            assert torch.equal(out[:75], wanted)
            assert torch.equal(out[75:], torch.zeros(90, 2, 16).half())
            if lse_too:
                assert torch.equal(found[1][:, :75], expected[1])
                assert torch.equal(found[1][:, 75:], torch.full((2, 90), -math.inf))


@each_card
def test_values_of_one_sequence_do_not_reach_another(card: str) -> None:
    """Infinite keys and values next door leave a sequence's result as it was."""
    lengths_q, lengths_k = [70, 20, 70], [70, 20, 66]
    q, k, v, cu_q, cu_k = packed(lengths_q, lengths_k)
    with emulated(card):
        expected = faops.attention_varlen(q, k, v, cu_q, cu_k, 70, 70, backend=BACKEND)
        k[70:90], v[70:90] = math.inf, math.inf
        found = faops.attention_varlen(q, k, v, cu_q, cu_k, 70, 70, backend=BACKEND)
    assert torch.equal(found[:70], expected[:70])
    assert torch.equal(found[90:], expected[90:])
    assert not found[70:90].isfinite().all()


@each_card
def test_dropout_mask_is_the_dense_one(card: str) -> None:
    B, M, N = 3, 17, 70
    q, k, v = torch.randn(B, M, 4, 16).half(), torch.randn(B, N, 2, 16).half(), torch.randn(B, N, 2, 16).half()
    generators = [torch.Generator().manual_seed(2) for _ in range(2)]
    options = {"dropout_p": 0.4, "causal": True, "backend": BACKEND}
    with emulated(card):
        dense = faops.attention(q, k, v, generator=generators[0], **options)
        cu_q, cu_k = cumulative([M] * B), cumulative([N] * B)
        flat = (tensor.flatten(0, 1) for tensor in (q, k, v))
        found = faops.attention_varlen(*flat, cu_q, cu_k, M, N, generator=generators[1], **options)
    assert torch.equal(found, dense.flatten(0, 1))


@pytest.mark.full
@rotate([1, 40, 96, 256], "head_dim")
def test_head_dims(card: str, dtype: torch.dtype, head_dim: int) -> None:
    shape = {"head_dim": head_dim, "head_dim_v": 24, "seqlen_q": 140, "seqlen_k": 90}
    check_on(card, make_case("varlen", "causal", dtype=dtype, **shape))
