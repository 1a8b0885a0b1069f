"""How many blocks of threads a multiprocessor of an NVIDIA device holds at a time.

Sources: CUDA C++ Programming Guide, Compute Capabilities, for the limits (:mod:`faops.architectures`), and the
occupancy calculator of Nsight Compute for how registers and shared memory are handed out.
"""

from __future__ import annotations

from faops.architectures import KIB, cuda_number, limits

WARP = 32
MAX_THREADS = 1024  # of a block
# Registers go to warps in steps of 256 from one of four banks of a multiprocessor.
REGISTER_STEP = 256
REGISTER_BANKS = 4
# Shared memory goes to blocks in steps, and from 8.0 on one KiB more a block for the system.
SHARED_STEP = {75: 256}  # bytes; 128 elsewhere
SYSTEM_SHARED = {75: 0}  # bytes; 1 KiB elsewhere


def blocks_per_unit(arch: str, registers: int, shared_bytes: int, threads: int) -> int:
    """Blocks that fit a multiprocessor of ``arch`` at the same time: 0 where one alone does not.

    ``registers`` of a thread, ``shared_bytes`` and ``threads`` of a block.
    """
    return min(blocks_by_resource(arch, registers, shared_bytes, threads).values())


def blocks_by_resource(arch: str, registers: int, shared_bytes: int, threads: int) -> dict[str, int]:
    """Blocks that fit by each of "registers", "shared memory", "warps" and "blocks" alone."""
    limit, number = limits(arch), cuda_number(arch)
    warps = max(1, -(-threads // WARP))
    a_warp = _up(max(1, registers) * WARP, REGISTER_STEP)
    warps_by_registers = limit.registers_per_unit // REGISTER_BANKS // a_warp * REGISTER_BANKS
    a_block = _up(shared_bytes + SYSTEM_SHARED.get(number, KIB), SHARED_STEP.get(number, 128))
    by_shared = limit.shared_per_unit // a_block if a_block else limit.blocks_per_unit
    return {
        "registers": warps_by_registers // warps if registers <= limit.registers_per_thread else 0,
        "shared memory": by_shared,  # what a block may have at most is what is then left of a multiprocessor's
        "warps": limit.warps_per_unit // warps if threads <= MAX_THREADS else 0,
        "blocks": limit.blocks_per_unit,
    }


def _up(size: int, step: int) -> int:
    return -(-size // step) * step
