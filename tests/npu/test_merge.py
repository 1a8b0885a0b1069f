"""Merging attention over parts of the keys, against attention over all of them."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from faops import reference
from faops.backends.npu.inference import merge
from faops.device import detect
from tests.npu import double
from tests.npu.support import ascend


def parts_of(q: Tensor, k: Tensor, v: Tensor, cuts: list[int]) -> tuple[list[Tensor], list[Tensor]]:
    """(outs, lses) over the keys between the cuts, in q's dtype and float32."""
    results = [reference.attention(q, k[:, low:high], v[:, low:high]) for low, high in pairwise(cuts)]
    return [out.to(q.dtype) for out, _ in results], [lse.float() for _, lse in results]


@pytest.mark.parametrize("with_operator", [True, False])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("cuts", [[0, 70], [0, 1, 70], [0, 0, 33, 64, 70], list(range(0, 71, 2))])
def test_parts(npu: double.Handle, cuts: list[int], dtype: torch.dtype, with_operator: bool) -> None:
    """An empty part has lse -inf; 35 parts are more than the operator takes at a time."""
    q = torch.randn(2, 5, 4, 64).to(dtype)
    k, v = (torch.randn(2, 70, 4, 64).to(dtype) for _ in range(2))
    exact, exact_lse = reference.attention(q, k, v)
    out, lse = merge.merge(*parts_of(q, k, v, cuts), with_operator)
    eps = torch.finfo(dtype).eps
    assert out.dtype == dtype and lse.dtype == torch.float32
    torch.testing.assert_close(out.double(), exact, atol=2 * eps, rtol=2 * eps)
    torch.testing.assert_close(lse.double(), exact_lse, atol=1e-5, rtol=1e-5)
    assert (npu.count("npu_attention_update") > 0) == (with_operator and len(cuts) > 2)


@pytest.mark.parametrize("with_operator", [True, False])
def test_rows_without_a_key_in_any_part(npu: double.Handle, with_operator: bool) -> None:
    outs = [torch.zeros(1, 2, 3, 16).half(), torch.zeros(1, 2, 3, 16).half()]
    lses = [torch.full((1, 3, 2), -torch.inf), torch.full((1, 3, 2), -torch.inf)]
    lses[0][0, 0, 0], outs[0][0, 0, 0] = 2.0, 3.0
    out, lse = merge.merge(outs, lses, with_operator)
    assert torch.equal(out, outs[0])
    assert torch.equal(lse, lses[0])


def test_the_operator_gets_float32_rows_and_no_infinities(npu: double.Handle) -> None:
    q, k = torch.randn(2, 5, 4, 64).half(), torch.randn(2, 70, 4, 64).half()
    merge.merge(*parts_of(q, k, k, [0, 0, 70]), True)
    [(_, arguments)] = npu.calls
    assert arguments["update_type"] == 1
    assert all(out.shape == (40, 64) and out.dtype == torch.float32 for out in arguments["local_out"])
    assert all(lse.shape == (40,) and lse.isfinite().all() for lse in arguments["lse"])


@pytest.mark.parametrize(
    ("version", "soc", "dim", "expected"),
    [
        ("2.13.0", "910B", 64, True), ("2.5.1.post1", "910B", 64, False), ("2.13.0", "310P", 64, False),
        ("2.13.0", "910B", 20, False), ("2.13.0", "910B", 520, False),
    ],
)  # fmt: skip
def test_where_the_operator_is_used(version: str, soc: str, dim: int, expected: bool) -> None:
    with ascend(version, soc=soc):
        assert merge.takes(dim, detect("cpu")) == expected


@pytest.mark.parametrize("packed", [False, True])
def test_sinks(packed: bool) -> None:
    q, k, v = (torch.randn(1, 9, 4, 32) for _ in range(3))
    sinks = torch.randn(4)
    exact, exact_lse = reference.attention(q, k, v, causal=True, sinks=sinks)
    out, lse = (tensor.float() for tensor in reference.attention(q, k, v, causal=True))
    out[:, 0], lse[..., 0] = 0.0, -torch.inf  # as if it saw no key
    exact[:, 0], exact_lse[..., 0] = 0.0, -torch.inf
    if packed:
        out, lse, exact, exact_lse = out[0], lse[0], exact[0], exact_lse[0]
    joined, joined_lse = merge.join_sinks(out, lse, sinks)
    torch.testing.assert_close(joined.double(), exact, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(joined_lse.double(), exact_lse, atol=1e-5, rtol=1e-5)
