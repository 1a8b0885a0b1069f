"""Every check of the emulator bites, and says where."""

from __future__ import annotations

import re

import pytest
import torch

from faops.backends.cuda_raw.emulator import errors
from faops.errors import ArgumentError
from tests.cuda_raw.emulator.tiny import choose, launch, source, words

# (statements, error, what its text says); line numbers are those of the case's own first line.
FAULTS = {
    "global read behind the end": (
        "load_global(params.a + 64 + t);",
        errors.OutOfBoundsError,
        r"block 0, thread 0: load_global at tiny\.cu:\d+: 4 bytes at device address 0x[0-9a-f]+ lie in no buffer; "
        r"the nearest is a, 256 bytes, and the access starts at its byte 256",
    ),
    "global read before the start": ("load_global(params.a - 1 + t);", errors.OutOfBoundsError, "at its byte -4"),
    "global read half behind the end": (
        "if (t == 3) load_global(reinterpret_cast<const Vec2*>(params.a + 63));",
        errors.OutOfBoundsError,
        "thread 3: load_global",
    ),
    "global address misaligned": (
        "load_global(reinterpret_cast<const Vec4*>(params.a + 1));",
        errors.MisalignedError,
        r"byte 4 of a\) is not a multiple of 16",
    ),
    "null pointer": ("load_global(params.b);", errors.OutOfBoundsError, "device address 0x0"),
    "write to what is read only": (
        "store_global(const_cast<u32*>(params.a) + t, 1u);",
        errors.ReadOnlyError,
        "store_global at .*: writes byte 0 of a, which the kernel may only read",
    ),
    "global write behind the end": ("store_global(params.out + 64, 1u);", errors.OutOfBoundsError, "store_global"),
    "shared write behind the end": (
        "store_shared_vec4(base + 4096 - 16 * t, Vec4{});",
        errors.OutOfBoundsError,
        "thread 0: store_shared_vec4 at .*: 16 bytes at shared address 5120, byte 4096 of 4096",
    ),
    "shared write without the base": ("store_shared_u16(0, 1);", errors.OutOfBoundsError, "byte -1024 of 4096"),
    "shared write misaligned": (
        "store_shared_vec4(base + 8, Vec4{});",
        errors.MisalignedError,
        r"not a multiple of 16",
    ),
    "shared read of what nobody wrote": (
        "if (t == 7) load_shared_u32(base + 40);",
        errors.UninitialisedError,
        "thread 7: load_shared_u32 at .*: reads byte 40 of shared memory, which this block never wrote",
    ),
    "shared read partly written": (
        "store_shared_u16(base, 1); load_shared_u32(base);",
        errors.UninitialisedError,
        "reads byte 2 of shared memory",
    ),
    "ldmatrix of what nobody wrote": (
        "u32 r[4]; ldmatrix(r, base + 16 * t);",
        errors.UninitialisedError,
        "ldmatrix at",
    ),
    "ldmatrix row misaligned": (
        "u32 r[4]; ldmatrix(r, base + 8 * t + 8);",
        errors.MisalignedError,
        "thread 0: ldmatrix at",
    ),
    "barrier that half a block skips": (
        "if (t < 48) sync_block();",
        errors.DeadlockError,
        r"block 0: no thread can go on; threads 0-47 wait in sync_block at tiny\.cu:\d+; threads 48-63 have ended",
    ),
    "shuffle that a lane skips": (
        "if (t != 5) shuffle_xor(1u, 1);",
        errors.DeadlockError,
        "threads 0-4, 6-31 wait in shuffle_xor at .*; threads 5, 32-63 have ended",
    ),
    "product in one branch, barrier in the other": (
        "float c[4] = {}; if (t % 2) sync_block(); else mma_m16n8k8_f16(c, 0, 0, 0);",
        errors.DeadlockError,
        "wait in mma_m16n8k8_f16 .*wait in sync_block",
    ),
    "two collectives at a time": (
        "if (t < 16) shuffle_xor(1u, 1); else sync_warp();",
        errors.DivergentError,
        "thread 16: sync_warp at .* while other lanes of warp 0 are in shuffle_xor",
    ),
    "the same collective in two places": (
        "if (t < 16)\nsync_warp();\nelse\nsync_warp();",
        errors.DivergentError,
        "thread 16: sync_warp",
    ),
    "a copy never waited for": (
        "copy_async<16>(base + 16 * t, params.a, 16); copy_async_commit();",
        errors.NeverWaitedError,
        "thread 0: copy_async at .*: its group was never waited for",
    ),
    "a copy never committed": (
        "copy_async<16>(base + 16 * t, params.a, 16); copy_async_wait<0>();",
        errors.NeverWaitedError,
        "the copy was never committed to a group",
    ),
    "a copy longer than its size": ("copy_async<4>(base, params.a, 5);", errors.UnsupportedError, "5 bytes of 4"),
    "a copy from behind the end": ("copy_async<16>(base, params.a + 64, 4);", errors.OutOfBoundsError, "copy_async"),
    "a copy from a misaligned address": ("copy_async<8>(base, params.a + 1, 8);", errors.MisalignedError, "copy_async"),
    "a copy to a misaligned address": ("copy_async<8>(base + 4, params.a, 8);", errors.MisalignedError, "copy_async"),
}
KERNEL = source(choose([body for body, _, _ in FAULTS.values()]), threads=64)


@pytest.mark.parametrize("name", FAULTS)
def test_fault(name: str) -> None:
    _, error, text = FAULTS[name]
    out = words(64, fill=-1)
    with pytest.raises(error, match=text) as caught:
        launch(KERNEL, out, words(64), what=list(FAULTS).index(name))
    assert type(caught.value) is error
    assert (out == -1).all()


def test_the_line_is_that_of_the_call() -> None:
    kernel = source("// first\n// second\nload_shared_u32(base);")
    line = 1 + kernel.text[: kernel.text.index("load_shared_u32(base)")].count("\n")
    with pytest.raises(errors.UninitialisedError, match=rf"tiny\.cu:{line}:"):
        launch(kernel, words(64))


def test_block_is_named_and_shared_memory_is_fresh() -> None:
    body = """
    if (block_index() < 2) store_shared_u32(base + 4 * t, 1);
    store_global(params.out + block_index(), load_shared_u32(base + 4 * t));
    """
    with pytest.raises(errors.UninitialisedError, match="block 2, thread 0: load_shared_u32"):
        launch(source(body), words(64), grid=3)


UNSUPPORTED = {
    "copy_async": "copy_async<16>(base, params.a, 16);",
    "copy_async_commit": "copy_async_commit();",
    "copy_async_wait": "copy_async_wait<0>();",
    "mma_m16n8k16_f16": "float c[4] = {}; u32 a[4] = {}; mma_m16n8k16_f16(c, a, 0, 0);",
    "mma_m16n8k16_bf16": "float c[4] = {}; u32 a[4] = {}; mma_m16n8k16_bf16(c, a, 0, 0);",
    "pack_bf16": "pack_bf16(1, 2);",
}
NEWER = source(choose(list(UNSUPPORTED.values())))


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_turing_lacks_what_came_later(name: str) -> None:
    with pytest.raises(errors.UnsupportedError, match=rf"{name} at tiny\.cu:\d+: this architecture has no such"):
        launch(NEWER, words(64), words(64), what=list(UNSUPPORTED).index(name), arch="sm_75")


def test_a_fault_leaves_the_next_launch_unharmed() -> None:
    kernel = source("if (params.what) load_shared_u32(base); store_global(params.out + t, u32(t));")
    for _ in range(3):
        with pytest.raises(errors.UninitialisedError):
            launch(kernel, words(32), what=1)
    out = words(32)
    launch(kernel, out)
    torch.testing.assert_close(out, torch.arange(32, dtype=torch.int32))


def test_impossible_launches() -> None:
    kernel, out = source("store_global(params.out + t, 1u);"), words(64)
    for expected, options in (
        ("grid: got 0", {"grid": 0}),
        ("shared_bytes: got 65537, expected at most 65536 bytes", {"shared": 65537, "arch": "sm_75"}),
        ("arch: got 'cpu'", {"arch": "cpu", "shared": 0}),
        ("mode: got 'fast', expected one of run, counters, thread, address", {"mode": "fast"}),
    ):
        with pytest.raises(ArgumentError, match=re.escape(expected)):
            launch(kernel, out, **options)
    with pytest.raises(ArgumentError, match=r"source.threads: got 33, expected a multiple of 32 up to 1024"):
        launch(source("", threads=33), out)
    assert (out == 0).all()


def test_parameters_of_another_size() -> None:
    from faops.backends.cuda_raw.emulator import run

    with pytest.raises(errors.LaunchError, match="the kernel's parameters take 32 bytes, got 24"):
        run(source(""), "sm_80", bytes(24), 1, 0, [])
