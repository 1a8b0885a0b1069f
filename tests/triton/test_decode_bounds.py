"""On a GPU nobody reads lengths, rows, pages and positions before the kernels do: whatever they hold, the kernels stay
inside of the tensors. Here they are interpreted on caches that lie between guards of NaN.
"""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

import faops
from faops.backends.triton.decode import TritonDecode
from faops.inputs import DecodeInputs
from tests.triton.kvcache import TILES

pytestmark = pytest.mark.usefixtures("poisoned")

PAGE, PAGES, GUARD = 4, 6, 8  # GUARD pages lie before and behind those of a cache
LARGE = 2**31 - 1


def guarded(page: int = PAGE) -> tuple[Tensor, Tensor]:
    """A cache (PAGES, page, 1, 16) and the memory that it lies in."""
    memory = torch.full((PAGES + 2 * GUARD, page, 1, 16), float("nan"))
    cache = memory[GUARD:-GUARD]
    cache.copy_(torch.randn(cache.shape))
    return cache, memory


def ints(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def make_inputs(caches: tuple[Tensor, Tensor], batch: int, new: int, rows: int = 1, **more: object) -> DecodeInputs:
    options: dict[str, object] = dict.fromkeys((
        "cache_seqlens", "cache_batch_idx", "cache_leftpad", "block_table", "rotary_cos", "rotary_sin", "alibi_slopes",
        "bias", "mask", "sinks",
    ))  # fmt: skip
    options |= {"window_left": -1, "window_right": 0, "scale": 0.25, "softcap": 0.0, "rotary_interleaved": True}
    options |= {"num_splits": random.choice((1, 3)), "need_lse": True, "backend": "", **more}
    k, v = (torch.randn(batch, new, 1, 16) if new else None for _ in range(2))
    return DecodeInputs(torch.randn(batch, rows, 2, 16), *caches, k, v, **options)  # type: ignore[arg-type]


def run(inputs: DecodeInputs, memories: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """(out, lse); the guards are as they were."""
    found = TritonDecode().launch(inputs, random.choice(TILES))
    for memory in memories:
        assert memory[:GUARD].isnan().all()
        assert memory[-GUARD:].isnan().all()
        assert memory[GUARD:-GUARD].isfinite().all()
    return found


@pytest.mark.parametrize("wrong", [-1, PAGES, -GUARD, PAGES + GUARD - 1, LARGE, -LARGE - 1])
def test_pages_that_the_cache_does_not_have(wrong: int) -> None:
    """Nothing of them is read or written: the other sequences get their own results, and no NaN comes from a guard."""
    caches, memories = zip(guarded(), guarded())
    table = torch.tensor([[0, 1, wrong], [2, wrong, 3], [wrong, wrong, wrong], [4, 5, wrong]], dtype=torch.int32)
    lengths = ints(9, 10, 3, 6)
    inputs = make_inputs(caches, 4, 2, block_table=table, cache_seqlens=lengths)
    before = [cache.clone() for cache in caches]
    out, _ = run(inputs, memories)
    assert out.isfinite().all()
    assert inputs.k is not None and inputs.v is not None
    for cache, kept, new in zip(caches, before, (inputs.k, inputs.v)):
        kept[3, 2:4] = new[1]  # the second sequence's
        kept[5, 2:4] = new[3]
        assert torch.equal(cache, kept)
    whole = (cache[4:].reshape(1, 8, 1, 16) for cache in caches)
    torch.testing.assert_close(out[3:], faops.attention(inputs.q[3:], *whole, causal=True, scale=0.25))


@pytest.mark.parametrize("page", [4, 32])
@pytest.mark.parametrize("wrong", [-1, PAGES])
def test_missing_pages_amid_many_keys(wrong: int, page: int) -> None:
    """Also in blocks of keys that are all visible, which are read without a mask; pages of 32 hold whole blocks."""
    caches, memories = zip(guarded(page), guarded(page))
    entries = 128 // page
    table = torch.randint(0, PAGES, (2, entries)).int()
    table[0, entries // 4 : entries // 2] = wrong
    inputs = make_inputs(caches, 2, 0, block_table=table, cache_seqlens=ints(125, 126))
    out, _ = run(inputs, memories)
    assert out.isfinite().all()
    whole = (cache[table[1].long()].view(1, -1, 1, 16)[:, :126] for cache in caches)
    torch.testing.assert_close(out[1:], faops.attention(inputs.q[1:], *whole, scale=0.25))


@pytest.mark.parametrize("wrong", [-1, PAGES, LARGE, -LARGE - 1])
def test_rows_that_the_cache_does_not_have(wrong: int) -> None:
    caches, memories = zip(guarded(), guarded())
    inputs = make_inputs(caches, 2, 1, cache_batch_idx=ints(wrong, 3), cache_seqlens=ints(2, 3))
    before = [cache.clone() for cache in caches]
    out, _ = run(inputs, memories)
    assert inputs.k is not None and inputs.v is not None
    for cache, kept, new in zip(caches, before, (inputs.k, inputs.v)):
        kept[3, 3] = new[1, 0]
        assert torch.equal(cache, kept)
    torch.testing.assert_close(
        out[1:], faops.attention(inputs.q[1:], caches[0][3:4], caches[1][3:4], causal=True, scale=0.25)
    )


@pytest.mark.parametrize("name", ["cache_seqlens", "cache_leftpad"])
@pytest.mark.parametrize("wrong", [-1, -3, 5, 13, LARGE, -LARGE - 1])
def test_lengths_of_any_size(wrong: int, name: str) -> None:
    """Also where adding the new keys or the rows to them overflows."""
    paged, window = random.choice((True, False)), random.choice((-1, 2))
    caches, memories = zip(guarded(), guarded())
    values = {"cache_seqlens": ints(3, 2), "cache_leftpad": ints(0, 1), name: ints(wrong, 2)}
    table = torch.tensor([[0, 2, 4], [1, 3, 5]], dtype=torch.int32) if paged else None
    before = [cache.clone() for cache in caches]
    inputs = make_inputs(caches, 2, 3 if paged else 1, 3, block_table=table, window_left=window, **values)
    out, _ = run(inputs, memories)
    assert out.isfinite().all()
    if paged:
        for cache, kept in zip(caches, before):
            assert torch.equal(cache[5], kept[5]), "what lies beyond both sequences"


@pytest.mark.parametrize("length", [-1, 4, 5, 10])
def test_positions_that_the_tables_do_not_have(length: int) -> None:
    """They end at position 5, behind which lies NaN; the sequence that stays inside of them is rotated as always."""
    interleaved = random.choice((True, False))
    caches, memories = zip(guarded(), guarded())
    angles = torch.full((20, 4), float("nan"))
    angles[8:13] = torch.rand(5, 4)
    cos, sin = angles.cos()[8:13], angles.sin()[8:13]
    table = torch.tensor([[0, 2, 4], [1, 3, 5]], dtype=torch.int32)
    options = {"rotary_cos": cos, "rotary_sin": sin, "rotary_interleaved": interleaved, "block_table": table}
    inputs = make_inputs(caches, 2, 2, cache_seqlens=ints(length, 3), **options)
    apart = tuple(cache.clone() for cache in caches)
    out, _ = run(inputs, memories)
    assert out.isfinite().all()
    assert inputs.k is not None and inputs.v is not None
    alone = {**options, "block_table": table[1:]}
    expected = faops.attention_with_kvcache(
        inputs.q[1:], *apart, inputs.k[1:], inputs.v[1:], cache_seqlens=3, causal=True, scale=0.25, **alone
    )  # type: ignore[arg-type]
    torch.testing.assert_close(out[1:], expected)
    assert torch.equal(apart[0][1], caches[0][1])


def test_a_cache_without_pages() -> None:
    memories = (torch.full((2 * GUARD, PAGE, 1, 16), float("nan")),) * 2
    caches = tuple(memory[GUARD:GUARD] for memory in memories)
    inputs = make_inputs(caches, 1, 1, block_table=ints(0, 1)[None], cache_seqlens=ints(2))  # type: ignore[arg-type]
    out, lse = TritonDecode().launch(inputs, TILES[0])
    assert out.eq(0).all()
    assert lse.eq(-torch.inf).all()
    assert memories[0].isnan().all()
