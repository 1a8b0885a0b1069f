"""Occupancy against the rules of the occupancy calculator, worked out by hand, and against what gates recorded."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from faops.architectures import ARCHITECTURES
from faops.occupancy import blocks_by_resource, blocks_per_unit

RECORDED = Path(__file__).parent.parent / "benchmarks" / "results" / "static" / "gates.txt"


@pytest.mark.parametrize(
    ("arch", "registers", "shared", "threads", "blocks"),
    [
        ("sm_80", 255, 0, 128, 2),  # 256 x 32 registers a warp: two warps in each of four banks
        ("sm_80", 168, 0, 128, 3),
        ("sm_80", 169, 0, 128, 2),
        ("sm_80", 208, 0, 32, 8),  # a ninth warp would have registers of two banks
        ("sm_80", 128, 0, 256, 2),
        ("sm_80", 129, 0, 256, 1),
        ("sm_80", 32, 0, 128, 16),
        ("sm_80", 16, 0, 32, 32),
        ("sm_80", 64, 81 * 1024, 128, 2),  # and 1 KiB each for the system: 164 KiB
        ("sm_80", 64, 81 * 1024 + 1, 128, 1),
        ("sm_86", 64, 49 * 1024, 128, 2),
        ("sm_86", 64, 49 * 1024 + 1, 128, 1),
        ("sm_86", 32, 0, 128, 12),  # 48 warps
        ("sm_89", 16, 0, 32, 24),
        ("sm_90", 168, 113 * 1024, 384, 1),
        ("sm_90", 32, 227 * 1024, 128, 1),
        ("sm_75", 64, 32 * 1024, 128, 2),
        ("sm_75", 64, 32 * 1024 + 1, 128, 1),
        ("sm_75", 32, 10880, 128, 5),  # in steps of 256 bytes; of 128, six would fit
        ("sm_75", 64, 21760, 128, 3),
        ("sm_75", 64, 0, 128, 8),  # 32 warps
    ],
)
def test_blocks_of_a_multiprocessor(arch: str, registers: int, shared: int, threads: int, blocks: int) -> None:
    assert blocks_per_unit(arch, registers, shared, threads) == blocks


@pytest.mark.parametrize(
    ("registers", "shared", "threads", "short_of"),
    [
        (64, 163 * 1024 + 1, 128, "shared memory"),  # more than a block may have, though the unit has it
        (256, 0, 128, "registers"),  # more than a thread may have
        (255, 0, 512, "registers"),
        (32, 0, 1056, "warps"),  # more than a block may have, though the unit has them
    ],
)
def test_blocks_that_do_not_fit(registers: int, shared: int, threads: int, short_of: str) -> None:
    found = blocks_by_resource("sm_80", registers, shared, threads)
    assert [name for name, blocks in found.items() if blocks == 0] == [short_of]
    assert blocks_per_unit("sm_80", registers, shared, threads) == 0


@pytest.mark.parametrize("arch", [arch for arch in ARCHITECTURES if arch.startswith("sm_")])
def test_more_of_anything_never_fits_more_blocks(arch: str) -> None:
    for threads in (32, 128, 256, 384):
        by_registers = [blocks_per_unit(arch, registers, 0, threads) for registers in range(1, 257)]
        assert by_registers == sorted(by_registers, reverse=True)
    by_shared = [blocks_per_unit(arch, 32, shared, 128) for shared in range(0, 240 * 1024, 997)]
    assert by_shared == sorted(by_shared, reverse=True) and by_shared[-1] == 0
    by_threads = [blocks_per_unit(arch, 32, 0, threads) for threads in range(32, 1088, 32)]
    assert by_threads == sorted(by_threads, reverse=True)


def test_recorded_gates() -> None:
    """The blocks that were printed beside real registers and shared memory, for every line of the file."""
    pattern = re.compile(r"(sm_\d+)a? d\d+ .*? w(\d+) s\d \S\s+(\d+)\s+\d+\s+(\d+)\s+(\d+)\s")
    found = [match for line in RECORDED.read_text().splitlines() if (match := pattern.match(line))]
    assert len(found) > 40
    for match in found:
        arch, warps, registers, shared, blocks = match[1], *map(int, match.groups()[1:])
        assert blocks_per_unit(arch, registers, shared, warps * 32) == blocks, match[0]
