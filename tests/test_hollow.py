"""Hollow inputs are to a compiler what real ones are."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from faops.autotune.measurement.synthetic import inputs_for
from faops.errors import ArgumentError
from faops.hollow import hollow_inputs
from faops.problem import AttentionProblem, Band

PLAIN: dict[str, Any] = {
    "batch": 2, "seqlen_q": 24, "seqlen_k": 32, "heads_q": 4, "heads_kv": 2, "head_dim": 40, "head_dim_v": 24,
}  # fmt: skip
PROBLEMS = [
    AttentionProblem(**PLAIN, need_lse=True),
    AttentionProblem(**PLAIN, dtype="bfloat16", band=Band(7, 0), softcap=True, alibi=True, sinks=True),
    AttentionProblem(**PLAIN, bias=".h.n", mask="b.mn", dropout=True),
    AttentionProblem(**{**PLAIN, "batch": 5}, layout="varlen", band=Band(-1, 0), need_lse=True),
    AttentionProblem(**PLAIN, op="backward", need_lse=True, lse_grad=True, bias="bhmn", bias_grad=True, sinks=True),
    AttentionProblem(**PLAIN, op="backward", need_lse=True, layout="varlen", deterministic=True, dtype="float32"),
    AttentionProblem(**PLAIN, op="decode", append=True, rotary="half", leftpad=True, batch_index=True),
    AttentionProblem(**PLAIN, op="decode", layout="paged", page_size=16, rotary="interleaved", append=True),
    AttentionProblem(**PLAIN, op="decode", bias="bhmn", mask="...n", sinks=True, alibi=True, softcap=True),
]


def described(value: Any) -> Any:
    """All that a compiler may look at: shapes, strides, dtypes and alignment of tensors, and the numbers."""
    if isinstance(value, Tensor):
        return value.shape, value.stride(), value.dtype, value.data_ptr() % 16
    if dataclasses.is_dataclass(value):
        return {field.name: described(getattr(value, field.name)) for field in dataclasses.fields(value)}
    return value


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_described_alike(problem: AttentionProblem) -> None:
    hollow = hollow_inputs(problem)
    assert hollow.problem() == problem
    assert described(hollow) == described(inputs_for(problem, "cpu"))


def test_no_storage() -> None:
    huge = AttentionProblem(batch=64, seqlen_q=2**20, seqlen_k=2**20, heads_q=64, heads_kv=64, bias="bhmn")
    hollow = hollow_inputs(huge)
    assert hollow.problem() == huge
    tensors = [getattr(hollow, field.name) for field in dataclasses.fields(hollow)]
    assert {tensor.device for tensor in tensors if isinstance(tensor, Tensor)} == {torch.device("meta")}


def test_layout_that_no_forward_has() -> None:
    with pytest.raises(ArgumentError, match="layout paged exists for decode only"):
        hollow_inputs(AttentionProblem(layout="paged", page_size=16))
