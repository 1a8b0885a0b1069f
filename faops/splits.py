"""Into how many parts a KV-cache kernel cuts the keys of a sequence, so that few rows keep a whole GPU busy."""

from __future__ import annotations

from faops.device import DeviceProfile
from faops.problem import UNLIMITED, AttentionProblem

MAX_SPLITS = 128
# What a block of threads does besides its blocks of keys, and a second kernel, in the time that one block of keys
# takes: estimates of some microseconds each, not measured.
BLOCK_COST = 1.0
COMBINE_COST = 2.0


def choose_splits(problem: AttentionProblem, block_m: int, block_n: int, resident: int, device: DeviceProfile) -> int:
    """How many parts the keys of a sequence are cut into.

    ``block_m`` rows and ``block_n`` keys make a tile, and a multiprocessor holds ``resident`` blocks of threads.
    Lengths are known on the device alone, so every cache counts as full. Where one split leaves the device partly idle:
    of all numbers, the one that finishes first by this model. Blocks of threads run in waves of as many as the device
    holds, each block of keys takes one unit of time, and a split's float32 results take what their bytes, written and
    read again, are worth in blocks.
    """
    blocks = -(-visible_keys(problem) // block_n)
    tiles = row_tiles(problem.seqlen_q * problem.group, block_m)
    programs = tiles * problem.heads_kv * problem.batch
    slots = max(1, device.units) * resident
    if programs >= slots:
        return 1
    bytes_of_block = block_n * (problem.head_dim + problem.head_dim_v) * problem.torch_dtype.itemsize
    rows = min(block_m, problem.seqlen_q * problem.group)
    partial = 2 * 4 * rows * problem.head_dim_v / max(1, bytes_of_block)

    def duration(splits: int) -> float:
        waves = -(-programs * splits // slots)
        if splits == 1:
            return waves * (blocks + BLOCK_COST)
        return waves * (-(-blocks // splits) + BLOCK_COST + partial) + COMBINE_COST

    return min(range(1, max(1, min(MAX_SPLITS, blocks)) + 1), key=duration)


def visible_keys(problem: AttentionProblem) -> int:
    """Most keys that the rows of one sequence see between them."""
    left, right = problem.band.left, problem.band.right
    if left == UNLIMITED:
        return problem.seqlen_k
    return min(problem.seqlen_k, problem.seqlen_q + left + max(0, min(right, problem.seqlen_q)))


def row_tiles(rows: int, block_m: int) -> int:
    """Tiles of ``block_m`` rows that ``rows`` need; at least one."""
    return max(1, -(-rows // block_m))
