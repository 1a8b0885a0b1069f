"""Holding KV-cache calls of the npu backend to the oracle; tests/kvcache.py makes the calls."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor

import faops
from faops import reference
from faops.backends.npu import operators
from tests.kvcache import Call, bits
from tests.support import assert_accurate


def mostly_full(values: Iterable[Any], sampled: Collection[Any]) -> list[Any]:
    """Parameters of a test, those that are not ``sampled`` for `make test-full` alone."""
    return [value if value in sampled else pytest.param(value, marks=pytest.mark.full) for value in values]


# The oldest; the one without a second version of the fused operator, paged scattering and merging; the newest.
VERSIONS = mostly_full(operators.versions(), ("2.1.0.post17", "2.5.1.post1", "2.14.0"))

# Of rotated keys that may differ in their last bit: npu_rotary_mul need not sum two products as faops.rotary does.
LAST_BITS = 0.01


def check(call: Call, backend: str, note: str = "", with_lse: bool = True) -> None:
    """Hold ``call`` to the accuracy rule, values to their bits, and keys too where they are not rotated."""
    options = {name: value for name, value in call.options.items() if name != "num_splits"}
    before = [None if tensor is None else tensor.clone() for tensor in call.tensors]
    exact, exact_lse, k_after, v_after = reference.attention_with_kvcache(*before, **options)
    plain, plain_lse, _, _ = reference.attention_with_kvcache(*before, dtype=call.dtype, **options)
    result = faops.attention_with_kvcache(*call.tensors, **call.options, return_lse=with_lse, backend=backend)
    out, lse = result if with_lse else (result, None)
    text = f"{call.text} {note}"
    assert out.dtype == call.dtype
    assert_accurate("out", out, exact, plain, text)
    if lse is not None:
        assert_accurate("lse", lse, exact_lse, plain_lse, text)
    assert torch.equal(bits(call.tensors[2]), bits(v_after)), f"v_cache differs: {text}"
    _check_keys(call.tensors[1], before[1], k_after, "rotary_cos" in call.options, text)


def _check_keys(found: Tensor, before: Tensor, wanted: Tensor, rotated: bool, text: str) -> None:
    off = (bits(found).int() - bits(wanted).int()).abs()
    if rotated:
        untouched = bits(before) == bits(wanted)
        written = int((~untouched).sum())
        assert off[untouched].eq(0).all(), f"k_cache differs where nothing is written: {text}"
        assert int(off.max()) <= 1 and int(off.sum()) <= 2 + LAST_BITS * written, f"k_cache differs: {text}"
    else:
        assert off.eq(0).all(), f"k_cache differs: {text}"
