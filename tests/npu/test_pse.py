"""What is added to the scores: shapes, dtypes, the sign and place of ALiBi."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from typing import Any

import pytest
import torch

from faops.backends.npu import pse
from faops.inputs import AttentionInputs
from faops.problem import AttentionProblem

BATCH, HEADS = 2, 3
SLOPES = torch.tensor([0.5, 0.25, 0.125])


def call(dtype: torch.dtype = torch.float32, seqlen_q: int = 4, seqlen_k: int = 6, **given: Any) -> AttentionInputs:
    absent: dict[str, Any] = dict.fromkeys(AttentionInputs.__dataclass_fields__)
    q, k = torch.randn(BATCH, seqlen_q, HEADS, 8).to(dtype), torch.randn(BATCH, seqlen_k, HEADS, 8).to(dtype)
    return AttentionInputs(**{**absent, "q": q, "k": k, "v": k, **given})


def test_nothing_added_is_nothing_said() -> None:
    """pse_type other than its default is refused without a pse."""
    assert pse.keywords(call(), 0) == {}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_bias_comes_after_scaling_in_a_shape_that_operators_take(dtype: torch.dtype) -> None:
    for _ in range(25):
        shape = [random.choice((1, size)) for size in (BATCH, HEADS, 4, 6)]
        bias = torch.randn(shape)
        first = random.choice((0, 1, 3))
        words = pse.keywords(call(dtype, bias=bias), first)
        made = words["pse"]
        assert words["pse_type"] == 0
        assert made.dtype == dtype and made.is_contiguous()
        assert tuple(made.shape) in {(BATCH, HEADS, 1, 6), (1, HEADS, 4 - first, 6), (BATCH, HEADS, 4 - first, 6)}
        expected = bias.to(dtype).expand(BATCH, HEADS, 4, 6)[:, :, first:]
        assert torch.equal(made.expand_as(expected), expected)


def test_minus_infinity_becomes_a_number_whose_exponential_is_0() -> None:
    bias = torch.tensor([0.0, -math.inf, 1.0, -math.inf, 0.0, 2.0]).reshape(1, 1, 1, 6)
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        made = pse.keywords(call(dtype, bias=bias), 0)["pse"].float()
        assert bool(made.isfinite().all())
        assert float((made[..., 1] + 60).exp().max()) == 0.0


def test_alibi_of_equal_lengths_is_left_to_the_operator() -> None:
    for slopes in (SLOPES, SLOPES.expand(BATCH, HEADS)):
        words = pse.keywords(call(torch.float16, seqlen_q=6, alibi_slopes=slopes), 0)
        assert words["pse_type"] == 2
        assert words["pse"].dtype == torch.float32 and torch.equal(words["pse"], slopes)


def test_other_alibi_is_written_out() -> None:
    """-slope · |i + N - M - j|, and a bias on top."""
    for first in (0, 2):
        made = pse.keywords(call(alibi_slopes=SLOPES), first)["pse"]
        for h, i, j in ((0, first, 0), (1, 3, 5), (2, 3, 1)):
            assert float(made[0, h, i - first, j]) == -float(SLOPES[h]) * abs(i + 6 - 4 - j)
    bias = torch.randn(BATCH, 1, 1, 6)
    with_bias = pse.keywords(call(alibi_slopes=SLOPES, bias=bias), 0)
    assert with_bias["pse_type"] == 0
    torch.testing.assert_close(with_bias["pse"], pse.distances(SLOPES, 4, 6) + bias)


def test_bytes_count_what_is_made() -> None:
    problem = AttentionProblem(dtype="float32", batch=BATCH, heads_q=HEADS, heads_kv=HEADS, seqlen_q=4, seqlen_k=6)
    full = dict(zip("bhmn", (BATCH, HEADS, 4, 6)))
    for pattern in ("bhmn", "b..n", "..mn", ".h.n", "...n"):
        bias = torch.ones([full[letter] if letter != "." else 1 for letter in pattern])
        made = pse.keywords(call(bias=bias), 0)["pse"]
        assert pse.pse_bytes(replace(problem, bias=pattern)) == made.nbytes
    assert pse.pse_bytes(replace(problem, alibi=True)) >= pse.keywords(call(alibi_slopes=SLOPES), 0)["pse"].nbytes
    assert pse.pse_bytes(replace(problem, alibi=True, seqlen_q=6)) == 0
    assert pse.pse_bytes(problem) == 0
