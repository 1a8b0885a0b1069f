"""What a config of the KV-cache kernel costs, and into how many splits it cuts the keys."""

from __future__ import annotations

from faops import splits
from faops.backends.triton.specialize import width
from faops.device import DeviceProfile
from faops.problem import AttentionProblem
from faops.registry import Config

SMALL_SHARED = 100 * 1024  # bytes; 8.6, 8.9 and 12.0 have 99 KiB a block, the others 163 and more
WARPGROUP_ROWS = 64  # of the products that several warps compute together; consumer cards have none


def shared_bytes(config: Config, problem: AttentionProblem, device: DeviceProfile) -> int:
    """What a program takes at most: the blocks of keys and values in flight and, once, queries and probabilities."""
    element = problem.torch_dtype.itemsize
    wide, wide_v = width(problem.head_dim), width(problem.head_dim_v)
    block_m, block_n = config.integer("block_m"), config.integer("block_n")
    in_flight = max(1, (config.integer("num_stages") - 1) // loads_in_a_row(problem))
    large_products = device.family in ("hopper", "blackwell") and device.shared_bytes > SMALL_SHARED
    if large_products and block_m >= WARPGROUP_ROWS:
        in_flight += 1  # such a product reads its block from shared memory while the next one arrives
    page_numbers = 4 * block_n * in_flight if problem.layout == "paged" else 0
    row_maxima = 4 * block_m
    tiles = element * (in_flight * block_n * (wide + wide_v) + block_m * (wide + block_n))
    result = 4 * block_m * wide_v  # on its way out, when all the rest is done
    return max(tiles + page_numbers + row_maxima, result)


def tile_registers(config: Config, problem: AttentionProblem) -> float:
    """Registers that a thread holds for tiles: results, scores, probabilities, and operands of a product."""
    words = problem.torch_dtype.itemsize / 4
    wide, wide_v = width(problem.head_dim), width(problem.head_dim_v)
    block_m, block_n = config.integer("block_m"), config.integer("block_n")
    held = block_m * wide_v + block_m * block_n * (1 + words) + (block_m + block_n) * wide * words
    return held / (32 * config.integer("num_warps"))


def loads_in_a_row(problem: AttentionProblem) -> int:
    """Loads that wait for each other in the loop: the block table's come before those of the keys it leads to."""
    return 2 if problem.layout == "paged" else 1


def choose_splits(problem: AttentionProblem, config: Config, device: DeviceProfile) -> int:
    """How many parts the keys of a sequence are cut into: :func:`faops.splits.choose_splits` for these tiles."""
    block_m, block_n = config.integer("block_m"), config.integer("block_n")
    return splits.choose_splits(problem, block_m, block_n, resident(problem, config, device), device)


def resident(problem: AttentionProblem, config: Config, device: DeviceProfile) -> int:
    """Programs that a multiprocessor holds at a time, as far as shared memory and warps go."""
    limits = device.limits
    by_shared = limits.shared_per_unit // max(1, shared_bytes(config, problem, device))
    by_warps = limits.warps_per_unit // config.integer("num_warps", 4)
    return max(1, min(by_shared, by_warps))
