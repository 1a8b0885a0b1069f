"""New keys and values are written into the caches, and nothing else is."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from faops.backends.npu.inference import append
from faops.backends.npu.inference.sequences import sequences_of
from faops.device import detect
from faops.inputs import DecodeInputs
from tests.npu import double
from tests.npu.support import ascend
from tests.npu.test_infer_decode import inputs_of

PAGES, SCATTER = append.SCATTER_PAGES, append.SCATTER


def written(inputs: DecodeInputs) -> tuple[Tensor, Tensor]:
    """The caches after the new keys have been appended."""
    append.append(inputs, inputs.k, sequences_of(inputs), detect(inputs.q.device))
    return inputs.k_cache, inputs.v_cache


def new_of(inputs: DecodeInputs, count: int) -> DecodeInputs:
    inputs.k, inputs.v = (torch.randn(2, count, 2, 64).half() for _ in range(2))
    return inputs


def expected(inputs: DecodeInputs) -> tuple[Tensor, Tensor]:
    """The caches that a call should leave, written key by key."""
    caches = inputs.k_cache.clone(), inputs.v_cache.clone()
    for b, past in enumerate(inputs.cache_seqlens.tolist()):
        row = b if inputs.cache_batch_idx is None else int(inputs.cache_batch_idx[b])
        for step in range(inputs.k.shape[1]):
            place = past + step
            if inputs.block_table is not None:
                size = inputs.k_cache.shape[1]
                at = int(inputs.block_table[b, place // size]), place % size
            else:
                at = row, place
            for cache, new in zip(caches, (inputs.k, inputs.v)):
                cache[at] = new[b, step]
    return caches


def assert_same_bits(found: tuple[Tensor, Tensor], wanted: tuple[Tensor, Tensor]) -> None:
    for one, other in zip(found, wanted):
        assert torch.equal(one.contiguous().view(torch.int16), other.contiguous().view(torch.int16))


@pytest.mark.parametrize("count", [1, 3, 40])
@pytest.mark.parametrize("kind", ["dense", "rows", "paged", "one_slot_pages"])
@pytest.mark.parametrize("contiguous", [True, False])
def test_appending(npu: double.Handle, kind: str, count: int, contiguous: bool) -> None:
    inputs = new_of(inputs_of(), count)
    if kind == "rows":
        inputs.k_cache, inputs.v_cache = (torch.randn(5, 64, 2, 64).half() for _ in range(2))
        inputs.cache_batch_idx = torch.tensor([4, 1], dtype=torch.int32)
    elif kind != "dense":
        size = 16 if kind == "paged" else 1
        pages = 64 // size
        inputs.k_cache, inputs.v_cache = (torch.randn(2 * pages + 3, size, 2, 64).half() for _ in range(2))
        inputs.block_table = torch.randperm(2 * pages + 3)[: 2 * pages].view(2, pages).int()
    if not contiguous:
        inputs.k_cache, inputs.v_cache = (
            cache.transpose(1, 2).contiguous().transpose(1, 2) for cache in (inputs.k_cache, inputs.v_cache)
        )
    inputs.k_cache[0, 0], inputs.v_cache[-1, -1] = float("nan"), float("nan")  # and its bits stay
    wanted = expected(inputs)
    assert_same_bits(written(inputs), wanted)
    in_one = contiguous or kind == "one_slot_pages"  # pages of one key lie the same both ways
    assert (npu.count(PAGES), npu.count(SCATTER)) == ((1, 0) if in_one else (0, 2))


def test_the_cache_mode_is_given(npu: double.Handle) -> None:
    """Left out, it would be a format of the operator's own."""
    written(inputs_of())
    [(_, arguments)] = npu.calls
    assert arguments["cache_mode"] == "Norm"


@pytest.mark.parametrize("version", ["2.1.0.post17", "2.5.1.post1", "2.6.0.post5"])
def test_versions_without_a_cache_mode_scatter_by_index(version: str) -> None:
    with ascend(version) as handle:
        inputs = inputs_of()
        wanted = expected(inputs)
        assert_same_bits(written(inputs), wanted)
        assert (handle.count(PAGES), handle.count(SCATTER)) == (0, 2)


def test_lengths_on_another_device_than_the_table(npu: double.Handle) -> None:
    inputs = new_of(inputs_of(block_table=torch.tensor([[0], [1]], dtype=torch.int32)), 2)
    wanted = expected(inputs)
    assert_same_bits(written(inputs), wanted)


@pytest.mark.parametrize("page", [-1, 99])
def test_a_page_that_the_cache_lacks_is_not_written(
    npu: double.Handle, monkeypatch: pytest.MonkeyPatch, page: int
) -> None:
    """On an NPU nobody has looked at the table. Other sequences get their keys, and all else stays."""
    monkeypatch.setattr(append, "may_read", lambda tensor: False)
    inputs = inputs_of(k_cache=torch.randn(4, 16, 2, 64).half(), v_cache=torch.randn(4, 16, 2, 64).half())
    inputs.block_table = torch.tensor([[page, 0], [2, 3]], dtype=torch.int32)
    k_after, v_after = inputs.k_cache.clone(), inputs.v_cache.clone()
    k_after[2, 9], v_after[2, 9] = inputs.k[1, 0], inputs.v[1, 0]
    assert_same_bits(written(inputs), (k_after, v_after))


def test_nothing_new(npu: double.Handle) -> None:
    before = inputs_of()
    inputs = new_of(before, 0)
    wanted = inputs.k_cache.clone(), inputs.v_cache.clone()
    assert_same_bits(written(inputs), wanted)
    assert not npu.calls
