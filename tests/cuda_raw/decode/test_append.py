"""The append kernel by itself: what the caches hold afterwards, bit for bit, and where it never writes or reads."""

from __future__ import annotations

import random

import pytest
import torch

from tests.cuda_raw.decode.parts import (
    caches_of,
    cancelling,
    check_append,
    launch_append,
    misbehaving,
    rotating,
)  # fmt: skip
from tests.cuda_raw.decode.support import inputs_of
from tests.cuda_raw.support import BFLOAT, HALF, rotate
from tests.kvcache import bits, make_call

pytestmark = pytest.mark.usefixtures("emulator_here")


@rotate(["plain", "paged", "batch_idx", "bhsd", "one_cache", "strided"], "feature")
def test_rotated_keys(card: str, dtype: torch.dtype, feature: str) -> None:
    features = ["append_more", random.choice(["rotary", "rotary_half"]), *([feature] if feature != "plain" else [])]
    check_append(make_call(*features, dtype=dtype, batch=3, dim=24, dim_v=24), card)


@pytest.mark.parametrize("page", [1, 64, *(pytest.param(page, marks=pytest.mark.full) for page in (3, 16, 256))])
def test_page_sizes(page: int) -> None:
    check_append(make_call("append", dtype=HALF, page=page, M=9, keys=2 * page + 20, batch=3))


DIMS = [(2, 33), (40, 96), (256, 8)]
MORE_DIMS = [(1, 1), (64, 36), (128, 128), (100, 256)]


@pytest.mark.parametrize("dims", [*DIMS, *(pytest.param(dims, marks=pytest.mark.full) for dims in MORE_DIMS)], ids=str)
def test_head_dims(dims: tuple[int, int]) -> None:
    """Rows end inside a chunk; rows of a block, threads without a row."""
    check_append(
        make_call("append_more", dtype=HALF, dim=dims[0], dim_v=dims[1], heads_kv=random.choice((1, 3)), batch=2)
    )


# Pairs that are whole chunks, end inside one, and straddle; of all dims and of a part of them.
PAIRS = [3, 12, 32, *(pytest.param(pairs, marks=pytest.mark.full) for pairs in (1, 4, 8, 16, 20))]


@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize("pairs", PAIRS)
def test_rotary_dims(pairs: int, interleaved: bool) -> None:
    for table in (HALF, BFLOAT, torch.float32) if pairs in (8, 16) else (torch.float32,):
        call = make_call("append", dtype=random.choice((HALF, BFLOAT)), M=5, dim=64, dim_v=8, keys=30)
        check_append(rotating(call, pairs, table, interleaved))


def test_tables_that_start_anywhere() -> None:
    """A table inside a longer one starts where whole vectors cannot be read."""
    for start in (1, 2, 3):
        call = rotating(make_call("append", dtype=HALF, M=5, dim=32, dim_v=8, keys=30), 4, HALF, True)
        for name in ("rotary_cos", "rotary_sin"):
            call.options[name] = call.options[name].flatten()[start : start + 50 * 4].view(50, 4)
        check_append(call)


@pytest.mark.usefixtures("optimised")
def test_products_are_rounded_apart() -> None:
    call = cancelling()
    check_append(call)
    seqlens = call.options["cache_seqlens"]
    written = caches_of(call)[0][0, int(seqlens[0]) : int(seqlens[0]) + 5]
    assert not written[..., :16].any() and written[..., 16:].any()


def test_special_values_pass_through() -> None:
    """NaN of every kind, infinities and subnormal numbers that are not rotated keep all their bits."""
    call = make_call("append", dtype=HALF, M=32, dim=64, dim_v=64, keys=40)
    k, v = call.tensors[3], call.tensors[4]
    assert k is not None and v is not None
    for tensor in (k, v):
        bits(tensor).random_(-(2**15), 2**15)
    check_append(call)
    k[..., :8] = torch.randn(k[..., :8].shape).half()
    check_append(rotating(call, 4, torch.float32, True))


# ---------------------------------------------------------------------------------------------- nobody looked at these


@pytest.mark.parametrize("page", [-1, -(2**31), 10**6, 2**31 - 1])
def test_pages_that_do_not_exist_are_not_written(page: int) -> None:
    """The emulator faults at any access outside the caches; a page number in range goes on as ever."""
    call, inputs = misbehaving()
    assert inputs.block_table is not None and inputs.cache_seqlens is not None
    inputs.cache_seqlens[:] = torch.tensor([3, 0, 5], dtype=torch.int32)
    inputs.block_table[0, :] = page
    inputs.block_table[1, 0] = inputs.k_cache.shape[0]
    before = [bits(cache).clone() for cache in caches_of(call)]
    launch_append(inputs)
    written = [bits(cache) != old for cache, old in zip(caches_of(call), before)]
    table = inputs.block_table[2]
    for found in written:
        pages = {int(page) for page in found.flatten(1).any(1).nonzero()}
        assert pages == {int(table[1]), int(table[2])}


@pytest.mark.parametrize("length", [-1, -(2**31), 2**31 - 1, 2**31 - 3, 10**6])
def test_lengths_that_do_not_fit_are_dropped(length: int) -> None:
    call, inputs = misbehaving()
    assert inputs.cache_seqlens is not None
    inputs.cache_seqlens[:] = length
    before = [bits(cache).clone() for cache in caches_of(call)]
    launch_append(inputs)
    for cache, old in zip(caches_of(call), before):
        assert torch.equal(bits(cache), old)


def test_keys_that_the_cache_has_no_room_for_are_dropped() -> None:
    """Those that fit are written."""
    _, inputs = misbehaving()
    assert inputs.cache_seqlens is not None and inputs.block_table is not None and inputs.k is not None
    inputs.cache_seqlens[:] = inputs.capacity - 2
    launch_append(inputs)
    last = inputs.block_table[:, -1].long()
    assert torch.equal(bits(inputs.k_cache[last][:, -2:]), bits(inputs.k[:, :2]))


@pytest.mark.parametrize("entry", [-1, 3, 2**31 - 1])
def test_batch_entries_that_do_not_exist_are_not_written(entry: int) -> None:
    own = torch.tensor([1, entry, 0], dtype=torch.int32)
    call, inputs = misbehaving(cache_batch_idx=own, cache_seqlens=torch.tensor([2, 2, 2], dtype=torch.int32))
    before = [bits(cache).clone() for cache in caches_of(call)]
    launch_append(inputs)
    for cache, old in zip(caches_of(call), before):
        assert {int(page) for page in (bits(cache) != old).flatten(1).any(1).nonzero()} == {0, 1}


@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize("positions", [1, 7])
def test_positions_behind_the_table(positions: int, interleaved: bool) -> None:
    """They turn by the last angles and nothing behind the table is read."""
    call = rotating(make_call("append", dtype=HALF, M=5, dim=32, dim_v=8, keys=30), 16, HALF, interleaved, positions)
    launch_append(inputs_of(call))


# ---------------------------------------------------------------------------------------------- races and bytes


@pytest.mark.parametrize("mode", [pytest.param("thread", marks=pytest.mark.full), "address"])
def test_sanitizers(mode: str) -> None:
    call = make_call("append_more", "rotary_half", dtype=HALF, page=3, batch=3, heads_kv=3, dim=40, dim_v=24)
    check_append(call, mode=mode)


@pytest.mark.parametrize(("dims", "width"), [((128, 128), 16), ((64, 64), 16), ((36, 20), 8), ((34, 33), 2)], ids=str)
def test_bytes_moved(dims: tuple[int, int], width: int) -> None:
    """Every new element is read once and written once, in accesses as wide as the rows allow."""
    call = make_call("append", dtype=HALF, M=8, keys=30, heads_kv=4, dim=dims[0], dim_v=dims[1], batch=2)
    counters = check_append(call, mode="counters").counters
    assert counters is not None and not counters.shared
    moved = 2 * 8 * 4 * sum(dims) * 2
    of_chunks = [site for site in counters.device if site.file == "chunk.cuh"]
    for kind in ("load", "store"):
        sites = [site for site in of_chunks if site.kind == kind]
        assert sum(site.bytes for site in sites) == moved
        assert min(site.access_bytes for site in sites) == width
    if width == 16:
        assert sum(site.sectors for site in of_chunks) * 32 == 2 * moved
