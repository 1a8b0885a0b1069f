"""What a config makes a device do, in numbers that are known before anything runs.

Kernels fill these in; the cost model (:mod:`faops.autotune.model`) turns them into occupancy and time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from faops.problem import AttentionProblem


@dataclass(frozen=True)
class Resources:
    """What a compiled kernel takes: registers and spilled bytes of a thread, shared memory of a block in bytes, and its
    threads, 0 where they are those that were asked for.
    """

    registers: int
    spill_bytes: int
    shared_bytes: int
    threads: int = 0


@dataclass(frozen=True)
class Footprint:
    """The work of one launch, what a block of threads holds while doing it, and the launches that follow.

    ``matrix_flops``, ``vector_flops``, ``exponentials``, ``traffic`` and ``memory`` are sums over all blocks, with
    everything that tiles waste. There are three kinds:

    - Blocks of threads on a GPU, as below.
    - Operations of a library, whose inside nobody knows: ``threads`` is 0, and so are registers and shared memory.
    - On a CPU ``blocks`` are tasks that run side by side on ``threads`` threads, each task on one. ``shared_bytes`` is
      what a thread comes back to again and again, which its cache had better hold, and ``registers`` is 0.
    """

    blocks: int
    threads: int
    registers: int  # of a thread
    shared_bytes: int  # of a block
    matrix_flops: float  # on matrix units, or on a CPU products of matrices
    traffic: float  # bytes asked of the second-level cache; library and CPU: of all operations, one by one
    longest: float = 1.0  # work of the longest block as a multiple of the mean
    launches: int = 1  # kernels or operations started one after the other
    spill_bytes: int = 0  # of a thread
    vector_flops: float = 0.0  # float32 operations outside the matrix units
    exponentials: float = 0.0
    memory: float = 0.0  # least bytes to and from memory: everything once
    steps: float = 1.0  # rounds of a mean block, one after the other: tiles that it walks over
    shared_traffic: float = 0.0  # bytes that all warps read of shared memory
    in_flight: float = 0.0  # bytes that a block has asked for ahead of their use; 0: it waits for each tile
    matrix_share: float = 1.0  # part of the rate of products that the kernel's instructions or shapes reach at best
    then: Footprint | None = None

    def parts(self) -> Iterator[Footprint]:
        """This launch and those that follow."""
        part: Footprint | None = self
        while part is not None:
            yield part
            part = part.then


# ---------------------------------------------------------------------------------------------- scores


class ScoreWork(NamedTuple):
    """What a fused kernel does with one score besides products, an estimate from reading the kernels' machine code:
    float32 operations (an instruction counts as two, like a multiply-add), exponentials, and bytes read for it.
    """

    operations: float
    exponentials: float
    bytes: float


# Instructions: scale and subtract the largest, compare, sum up, narrow to 16 bits.
PLAIN_INSTRUCTIONS = 4.0
# More of each feature: (instructions, exponentials). Softcap is a tanh, made of an exponential and a reciprocal.
FEATURE_WORK = {
    "softcap": (6.0, 2.0), "alibi": (3.0, 0.0), "bias": (3.0, 0.0), "mask": (2.0, 0.0), "dropout": (20.0, 0.0),
}  # fmt: skip


def score_work(problem: AttentionProblem) -> ScoreWork:
    """The work of one score of ``problem``, forward."""
    used = [work for name, work in FEATURE_WORK.items() if getattr(problem, name)]
    instructions = PLAIN_INSTRUCTIONS + sum(count for count, _ in used)
    exponentials = 1.0 + sum(count for _, count in used)
    read = (problem.torch_dtype.itemsize if problem.bias else 0) + (1 if problem.mask else 0)
    return ScoreWork(2 * instructions, exponentials, read)


# ---------------------------------------------------------------------------------------------- matrix units

# Part of the published rate that mma.sync, the instruction of Ampere, reaches on newer architectures, which have
# others: on Hopper 0.63 (Luo et al. 2024, "Benchmarking and Dissecting the Nvidia Hopper GPU Architecture via
# Microbenchmarking"); on the large Blackwells as many operations a clock as on Ampere, an estimate.
MMA_SYNC_SHARE = {"sm_90": 0.63, "sm_100": 0.25, "sm_103": 0.25}


def mma_sync_share(arch: str) -> float:
    """Part of the matrix units' rate that mma.sync reaches on ``arch``."""
    return MMA_SYNC_SHARE.get(arch, 1.0)
