"""Packed sequences: where they end, which rows go to the operator, and in which order it keeps its results."""

from __future__ import annotations

import math
import random
from itertools import accumulate
from typing import Any

import pytest
import torch

from faops import lengths
from faops.backends.npu.fusion import packing
from faops.backends.npu.fusion.arrangement import Packed, lanes
from faops.errors import UnavailableError
from faops.inputs import AttentionInputs
from faops.problem import Band

CPU = torch.device("cpu")
CAUSAL = Band(-1, 0)


def starts(sizes: list[int]) -> tuple[int, ...]:
    return (0, *accumulate(sizes))


def plan(rows: list[int], keys: list[int], band: Band = CAUSAL) -> packing.Packing:
    return packing.plan(starts(rows), starts(keys), band)


def test_ends_are_cumulative_without_the_leading_0() -> None:
    found = plan([2, 3, 1], [4, 3, 5])
    assert found.ends_q == (2, 5, 6) and found.ends_k == (4, 7, 12)
    assert found.spans == ((0, 2), (2, 5), (5, 6)) and found.keys == (0, 12)
    assert found.solid == (0, 6) and found.unread == ()


def test_rows_that_see_no_key_are_left_out() -> None:
    """The operator refuses a causal sequence with more rows than keys."""
    found = plan([5, 4, 2], [3, 4, 0])
    assert found.spans == ((2, 5), (5, 9))
    assert found.ends_q == (3, 7) and found.ends_k == (3, 7) and found.keys == (0, 7)
    assert found.solid == (2, 9)
    assert plan([5, 4], [3, 4], Band()).ends_q == (5, 9)
    assert plan([4, 5], [4, 3]).solid is None
    assert packing.row_index(plan([4, 5], [4, 3]), CPU).tolist() == [0, 1, 2, 3, 6, 7, 8]


def test_a_band_to_the_right_saves_rows() -> None:
    assert plan([5, 4], [3, 4], Band(-1, 1)).spans == ((1, 5), (5, 9))


def test_empty_sequences() -> None:
    """At either end they go with their keys. In between they stay if they have keys, which nobody reads."""
    found = plan([0, 2, 0, 0, 3, 0], [7, 2, 4, 0, 3, 9])
    assert found.spans == ((0, 2), (2, 2), (2, 5))
    assert found.ends_q == (2, 2, 5) and found.ends_k == (2, 6, 9)
    assert found.keys == (7, 16) and found.unread == ((9, 13),)
    assert found.solid == (0, 5)


@pytest.mark.parametrize("rows", [[], [0, 0], [3, 2]])
def test_nothing_to_do(rows: list[int]) -> None:
    found = plan(rows, [0] * len(rows))
    assert found.rows == 0 and found.solid == (0, 0)


def test_results_are_stored_by_sequence_in_blocks_of_heads() -> None:
    """The shape says (T, H, 8), the memory holds blocks (H, length, 8)."""
    for _ in range(20):
        sizes, heads = [random.randint(0, 4) for _ in range(3)] + [1], random.randint(1, 3)
        found = plan(sizes, sizes)
        total = sum(sizes)
        values = torch.randn(heads, total)
        blocks = [values[:, first : first + size].reshape(-1) for first, size in zip(starts(sizes), sizes)]
        stored = torch.cat(blocks)
        order = packing.softmax_order(found, heads, CPU)
        assert torch.equal(stored[order], values)
        assert order.flatten().sort().values.tolist() == list(range(heads * total))


def packed_call(rows: list[int], keys: list[int], heads: int = 3) -> AttentionInputs:
    absent: dict[str, Any] = dict.fromkeys(AttentionInputs.__dataclass_fields__)
    given = {
        "q": torch.randn(sum(rows), heads, 4), "k": torch.randn(sum(keys), heads, 4),
        "v": torch.randn(sum(keys), heads, 4), "cu_seqlens_q": torch.tensor(starts(rows), dtype=torch.int32),
        "cu_seqlens_k": torch.tensor(starts(keys), dtype=torch.int32), "window_left": -1, "window_right": 0,
        "max_seqlen_q": max(rows), "max_seqlen_k": max(keys),
    }  # fmt: skip
    return AttentionInputs(**{**absent, **given})


def test_lse_goes_to_the_operator_and_back() -> None:
    """Rows that it does not get come back as -inf, whatever they were."""
    inputs = packed_call([5, 0, 4, 6], [3, 2, 4, 9])
    call = Packed(inputs)
    lse = torch.randn(3, 15)
    returned = call.to_lse(*call.to_softmax(lse))
    assert returned[:, :2].eq(-torch.inf).all()
    torch.testing.assert_close(returned[:, 2:], lse[:, 2:])


def test_a_dead_row_gets_probabilities_of_0_however_mildly_its_scores_are_hidden() -> None:
    """Some kernels hide by -10000, others by the smallest float."""
    most, total = lanes(torch.tensor([[-torch.inf, 2.0]]))
    assert most.shape == total.shape == (1, 2, 8)
    assert all(math.exp(score - float(most[0, 0].min())) == 0 for score in (-1e30, -1e4, 60.0))
    assert most[0, 1].eq(2.0).all() and total.eq(1.0).all()


def test_what_the_operator_did_not_get_is_0() -> None:
    inputs = packed_call([5, 0, 4, 0], [3, 2, 4, 9])
    call = Packed(inputs)
    rows, keys = call.rows(inputs.q), call.keys(inputs.k)
    assert rows.shape[0] == 7 and keys.shape[0] == 9
    dq, dk = call.from_rows(rows + 1, 4), call.from_keys(torch.full_like(keys, torch.nan), inputs.k)
    assert dq[:2].eq(0).all() and torch.equal(dq[2:], inputs.q[2:] + 1)
    assert dk[3:5].eq(0).all() and dk[9:].eq(0).all() and dk[:3].isnan().all() and dk[5:9].isnan().all()


def test_whole_tensors_are_not_copied() -> None:
    inputs = packed_call([3, 4], [3, 6])
    call = Packed(inputs)
    assert call.rows(inputs.q).data_ptr() == inputs.q.data_ptr()
    assert call.keys(inputs.k).data_ptr() == inputs.k.data_ptr()
    result = torch.randn(7, 3, 4)
    assert call.from_rows(result, 4) is result


def test_layers_share_one_plan() -> None:
    inputs = packed_call([5, 4], [3, 4])
    packing.plan.cache_clear()
    first, second = packing.of(inputs), packing.of(inputs)
    assert first is second
    assert packing.row_index(first, CPU) is packing.row_index(second, CPU)


def test_lengths_are_read_by_the_shared_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that all layers of a step wait for the device once."""
    read: list[Any] = []
    host = lengths.host
    monkeypatch.setattr(lengths, "host", lambda tensor: read.append(tensor) or host(tensor))
    inputs = packed_call([5, 4], [3, 4])
    packing.of(inputs)
    assert read[0] is inputs.cu_seqlens_q and read[1] is inputs.cu_seqlens_k


def test_more_rows_than_the_operator_takes_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("faops.backends.npu.fusion.arrangement.LENGTH_LIMIT", 9)
    with pytest.raises(UnavailableError, match="up to 9 packed rows or keys in one call, not 10"):
        Packed(packed_call([3, 4], [4, 6]))
