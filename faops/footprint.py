"""What a config makes a device do, in numbers that are known before anything runs.

Kernels fill these in; the cost model (:mod:`faops.autotune.model`) turns them into occupancy and time.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Resources:
    """What a compiled kernel takes: registers and spilled bytes of a thread, shared memory of a block in bytes."""

    registers: int
    spill_bytes: int
    shared_bytes: int


@dataclass(frozen=True)
class Footprint:
    """The work of one call by one config, and what a block of threads holds while doing it.

    ``matrix_flops`` and ``traffic`` (bytes asked of the second-level cache, or of memory where there is none) are
    sums over all blocks, with everything that tiles waste. ``longest`` is the work of the longest block as a multiple
    of the mean. ``launches`` counts kernels started one after the other. On a CPU blocks are tasks of one thread, and
    ``registers`` and ``shared_bytes`` are 0.
    """

    blocks: int
    threads: int
    registers: int
    shared_bytes: int
    matrix_flops: float
    traffic: float
    longest: float = 1.0
    launches: int = 1
    spill_bytes: int = 0
