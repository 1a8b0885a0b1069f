"""Races and undefined behaviour are found, and right kernels are left alone."""

from __future__ import annotations

import pytest
import torch

from faops.backends.cuda_raw.emulator import errors
from tests.cuda_raw.emulator.tiny import choose, launch, source, words

# Right with a barrier in the place of BARRIER, a race without it; and the wrappers that race.
EXCHANGE = {
    "write then read": (
        "store_shared_u32(base + 4 * t, t); BARRIER; store_global(params.out + t, load_shared_u32(mirror));",
        {"store_shared_u32", "load_shared_u32"},
    ),
    "read then write": (
        "u32 got = load_shared_u32(mirror); BARRIER; store_shared_u32(base + 4 * t, got);",
        {"store_shared_u32", "load_shared_u32"},
    ),
    "write then ldmatrix": (
        "store_shared_vec4(base + 16 * t, Vec4{}); BARRIER; u32 r[4]; ldmatrix(r, base + 16 * (63 - t));",
        {"store_shared_vec4", "ldmatrix"},
    ),
    "read then copy": (
        # The second warp goes first and the wait is behind a barrier: what races is the issue, and it comes last.
        "u32 got = t < 32 ? 0 : load_shared_u32(mirror); BARRIER; if (t < 32) copy_async<4>(base + 4 * t, params.a, 4);"
        "copy_async_commit(); sync_block(); copy_async_wait<0>(); store_global(params.out + t, got);",
        {"copy_async", "load_shared_u32"},
    ),
    "copy waited for, then read by another": (
        "copy_async<4>(base + 4 * t, params.a + t, 4); copy_async_commit(); copy_async_wait<0>(); BARRIER;"
        "if (t >= 32) store_global(params.out + t, load_shared_u32(mirror));",
        {"copy_async", "load_shared_u32"},
    ),
    "device memory between threads": (
        "store_global(params.out + t, u32(t)); BARRIER; store_global(params.out + (63 - t), 1u);",
        {"store_global"},
    ),
}
START = """
const u32 mirror = base + 4 * (63 - t);
store_shared_vec4(base + 16 * t, Vec4{});
sync_block();
"""
WHOLE = {name: body for name, (body, _) in EXCHANGE.items()}
RIGHT = source(START + choose([body.replace("BARRIER", "sync_block()") for body in WHOLE.values()]), threads=64)
WRONG = source(START + choose([body.replace("BARRIER", "") for body in WHOLE.values()]), threads=64)


@pytest.mark.parametrize("name", EXCHANGE)
def test_a_missing_barrier_is_a_race(name: str) -> None:
    number = list(EXCHANGE).index(name)
    launch(RIGHT, words(64), words(64), what=number, mode="thread")
    with pytest.raises(errors.RaceError) as caught:
        launch(WRONG, words(64), words(64), what=number, mode="thread")
    assert "block 0, thread" in str(caught.value) and "tiny.cu:" in str(caught.value)
    for function in EXCHANGE[name][1]:
        assert function in str(caught.value)


def test_results_come_back_from_the_process() -> None:
    out = words(64)
    launch(RIGHT, out, words(64), mode="thread")
    assert torch.equal(out, torch.arange(64, dtype=torch.int32).flip(0))


WARP = "const u32 neighbour = base + 4 * (t ^ 1);" + choose(
    [
        f"store_shared_u32(base + 4 * t, t); {between} store_global(params.out + t, load_shared_u32(neighbour));"
        for between in ("sync_warp();", "shuffle_xor(1u, 1);", "", "sync_block();")
    ]
    + ["store_shared_u32(base + 4 * t, t); sync_warp(); load_shared_u32(base + 4 * (t ^ 32));"]
)


@pytest.mark.parametrize(("case", "races"), [(0, False), (1, True), (2, True), (3, False), (4, True)])
def test_what_orders_a_warp(case: int, races: bool) -> None:
    """sync_warp orders the memory of its lanes, and not that of other warps; a shuffle orders nothing."""
    kernel = source(WARP, threads=64)
    if not races:
        launch(kernel, words(64), what=case, mode="thread")
        return
    with pytest.raises(errors.FaultError) as caught:
        launch(kernel, words(64), what=case, mode="thread")
    assert isinstance(caught.value, errors.RaceError | errors.UninitialisedError)


def test_blocks_are_not_ordered() -> None:
    """A block's shared memory and its threads' stacks are its own; device memory is everybody's."""
    own = source(
        "store_shared_vec4(base + 16 * t, Vec4{block_count(), 0, 0, 0}); sync_warp(); u32 r[4];"
        "ldmatrix(r, base + 16 * t); store_global(params.out + 32 * block_index() + t, load_shared_u32(base + 16 * t));"
    )
    shared = source("store_global(params.out + t, block_index());")
    launch(own, out := words(128), grid=4, mode="thread")
    assert (out == 4).all()
    with pytest.raises(errors.RaceError, match=r"block 1, thread \d+: write.* and block 0, thread \d+: write"):
        launch(shared, words(128), grid=4, mode="thread")


def test_a_fault_is_reported_by_either_process() -> None:
    for mode in ("thread", "address"):
        with pytest.raises(errors.UninitialisedError, match=r"block 0, thread 0: load_shared_u32 at tiny\.cu:\d+"):
            launch(source("load_shared_u32(base);"), words(32), mode=mode)


UNDEFINED = {
    "nothing": ("store_global(params.out + t, u32(t) << 31);", ""),
    "overflow": ("store_global(params.out + t, u32(2147483647 - 5 + t * params.what));", "signed integer overflow"),
    "shift": ("store_global(params.out + t, 1u << (t + 8 * params.what));", "shift exponent"),
    "index": (
        "u32 x[4] = {1, 2, 3, 4}; store_global(params.out + t, x[t % 4 + params.what]);",
        "index 4 out of bounds",
    ),
    "pointer": (
        "u32 x[4] = {1, 2, 3, 4}; u32* volatile p = x; store_global(params.out + t, p[t + 4]);",
        "stack-buffer-overflow",
    ),
}
CARELESS = source(choose([body for body, _ in UNDEFINED.values()]))


@pytest.mark.parametrize("name", UNDEFINED)
def test_undefined_behaviour(name: str) -> None:
    out, number = words(32), list(UNDEFINED).index(name)
    text = UNDEFINED[name][1]
    if not text:
        launch(CARELESS, out, what=number, mode="address")
        assert out[0] == 0 and out[1] == -(2**31)
        return
    with pytest.raises(errors.UndefinedError, match=rf"{text}.*tiny\.cu:\d+"):
        launch(CARELESS, out, what=number, mode="address")
    assert (out == 0).all()
