"""Counts of kernels whose traffic is known."""

from __future__ import annotations

import pytest
import torch

from faops.backends.cuda_raw.emulator import Counters
from tests.cuda_raw.emulator.tiny import launch, source, words


def count(body: str, threads: int = 32, grid: int = 1, shared: int = 8192) -> Counters:
    """Counts of ``body`` with 1024 words to read and to write."""
    report = launch(source(body, threads), words(1024), words(1024), mode="counters", grid=grid, shared=shared)
    assert report.counters
    return report.counters


@pytest.mark.parametrize(
    ("access", "wavefronts", "ideal"),
    [
        ("store_shared_u32(base + 4 * t, 0);", 1, 1),
        ("store_shared_u32(base + 8 * t, 0);", 2, 1),
        ("store_shared_u32(base + 128 * t, 0);", 32, 1),
        ("store_shared_u32(base + 132 * t, 0);", 1, 1),
        ("store_shared_u32(base + 4 * (t / 8), 0);", 1, 1),  # the same word for several lanes
        ("store_shared_u16(base + 2 * t, 0);", 1, 1),
        ("store_shared_vec4(base + 16 * t, Vec4{});", 4, 4),
        ("store_shared_vec4(base + 128 * t, Vec4{});", 32, 4),
        ("store_shared_vec4(base + 128 * t + 16 * (t % 8), Vec4{});", 4, 4),  # swizzled
        ("if (t < 8) store_shared_vec4(base + 16 * t, Vec4{});", 1, 1),
    ],
)
def test_bank_conflicts(access: str, wavefronts: int, ideal: int) -> None:
    (site,) = count(access).shared
    assert (site.requests, site.wavefronts, site.ideal) == (1, wavefronts, ideal)
    assert site.conflicts == wavefronts - ideal


@pytest.mark.parametrize(("swizzle", "conflicts"), [("t % 8", 0), ("0", 28)])
def test_ldmatrix_conflicts(swizzle: str, conflicts: int) -> None:
    body = f"""
    const u32 row = base + 128 * t + 16 * ({swizzle});
    store_shared_vec4(row, Vec4{{}});
    sync_warp();
    u32 fragment[4];
    for (int i = 0; i < 3; ++i) ldmatrix(fragment, row);
    """
    counters = count(body)
    (site,) = (site for site in counters.shared if site.function == "ldmatrix")
    assert (site.requests, site.ideal, site.conflicts) == (3, 12, 3 * conflicts)
    assert counters.collectives == {"ldmatrix": 3, "sync_warp": 1}
    assert counters.conflicts == 4 * conflicts


def test_requests_of_a_loop_that_lanes_leave_early() -> None:
    (site,) = count("for (int i = 0; i <= t; ++i) store_shared_u32(base + 128 * i + 4 * t, 0);").shared
    assert (site.requests, site.wavefronts) == (32, 32)


@pytest.mark.parametrize(
    ("access", "sectors", "sent", "size"),
    [
        ("load_global(params.a + t);", 4, 128, 4),
        ("load_global(params.a + 8 * t);", 32, 128, 4),
        ("load_global(params.a);", 1, 128, 4),
        ("load_global(reinterpret_cast<const Vec4*>(params.a) + t);", 16, 512, 16),
        ("load_global(reinterpret_cast<const u16*>(params.a) + 1 + t);", 3, 64, 2),
    ],
)
def test_sectors_of_loads(access: str, sectors: int, sent: int, size: int) -> None:
    counters = count(access)
    (site,) = counters.device
    # A tensor starts on a multiple of 64 bytes.
    assert (site.kind, site.requests, site.sectors, site.bytes, site.access_bytes) == ("load", 1, sectors, sent, size)
    assert (counters.bytes_loaded, counters.sector_bytes_loaded, counters.bytes_stored) == (sent, 32 * sectors, 0)
    assert counters.access_sizes() == {size: 32}


def test_whole_kernel() -> None:
    body = """
    copy_async<16>(base + 16 * t, params.a + 4 * t, t % 2 ? 16 : 0);
    copy_async_commit();
    copy_async_wait<0>();
    sync_block();
    float c[4] = {};
    const u32 a[4] = {};
    for (int i = 0; i < 5; ++i) mma_m16n8k16_f16(c, a, 0, 0);
    mma_m16n8k16_bf16(c, a, 0, 0);
    mma_m16n8k8_f16(c, 0, 0, 0);
    sync_block();
    store_global(params.out + t, load_shared_u32(base + 4 * t));
    """
    counters = count(body, threads=64, grid=3)
    assert counters.barriers == 6
    assert counters.matrix == {"m16n8k16_f16": 30, "m16n8k16_bf16": 6, "m16n8k8_f16": 6}
    assert counters.matrix_flops == 36 * 4096 + 6 * 2048
    assert (counters.bytes_copied, counters.bytes_loaded) == (3 * 32 * 16, 3 * 32 * 16)
    assert counters.sector_bytes_loaded == 3 * 32 * 32
    assert (counters.bytes_stored, counters.sector_bytes_stored) == (3 * 256, 3 * 256)
    assert counters.access_sizes("copy") == {16: 192} and counters.access_sizes("store") == {4: 192}
    assert {site.function: site.requests for site in counters.shared} == {"copy_async": 6, "load_shared_u32": 6}


def test_numbers_are_the_same_as_without_counting() -> None:
    kernel = source("store_global(params.out + t, shuffle_xor(u32(t), 3));")
    for mode in ("run", "counters"):
        out = words(32)
        assert (launch(kernel, out, mode=mode).counters is None) == (mode == "run")
        torch.testing.assert_close(out, torch.arange(32, dtype=torch.int32) ^ 3)
