"""Tile configs of the KV-cache kernel and the number of splits over the keys.

A config holds ``block_m`` rows (positions times query heads of a group) and ``block_n`` keys a tile, ``num_warps``,
``num_stages``, from which the blocks of keys and values in flight follow (:func:`stages`), and ``splits`` of the keys,
0 where :func:`choose_splits` decides.
"""

from __future__ import annotations

from faops import defaults
from faops.backends.triton.space import LEAST_ROWS, SMALL_SHARED, case_of
from faops.backends.triton.specialize import width
from faops.defaults import ShippedDefault
from faops.device import DeviceProfile
from faops.problem import UNLIMITED, AttentionProblem
from faops.registry import Config

MAX_SPLITS = 128
WARPGROUP_ROWS = 64  # of the products that several warps compute together; consumer cards have none
# Beyond these a thread's 255 registers do not suffice, as compiling the space for 8.0 and 9.0 showed. Products of
# float32, which run outside the tensor cores, hold more than one copy of their operands.
TILE_REGISTERS, FLOAT32_TILE_REGISTERS = 192, 50
# What a program does besides its blocks of keys, and a second kernel, in the time that one block of keys takes:
# estimates of some microseconds each, not measured.
PROGRAM_COST = 1.0
COMBINE_COST = 2.0


def make_config(block_m: int, block_n: int, num_warps: int, num_stages: int, splits: int = 0) -> Config:
    return Config(block_m=block_m, block_n=block_n, num_warps=num_warps, num_stages=num_stages, splits=splits)


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


def is_legal(config: Config, problem: AttentionProblem, device: DeviceProfile) -> bool:
    """Whether it fits the shared memory, and spills next to nothing."""
    most = FLOAT32_TILE_REGISTERS if problem.dtype == "float32" else TILE_REGISTERS
    fits = shared_bytes(config, problem, device) <= device.limits.shared_per_block
    return fits and tile_registers(config, problem) <= most


def loads_in_a_row(problem: AttentionProblem) -> int:
    """Loads that wait for each other in the loop: the block table's come before those of the keys it leads to."""
    return 2 if problem.layout == "paged" else 1


def stages(ahead: int, problem: AttentionProblem) -> int:
    """``num_stages`` that keep ``ahead`` blocks of keys in flight: Triton shares the stages out among such loads."""
    return 1 + ahead * loads_in_a_row(problem)


def decode_default(problem: AttentionProblem, device: DeviceProfile) -> Config:
    """The shipped config, with no more rows than there are."""
    shipped = Config(decode_shipped(problem, device).config)
    block_m = min(most_rows(problem), shipped.integer("block_m"))
    ahead = stages(shipped.integer("blocks_ahead"), problem)
    return make_config(block_m, shipped.integer("block_n"), shipped.integer("num_warps"), ahead)


def decode_shipped(problem: AttentionProblem, device: DeviceProfile) -> ShippedDefault:
    """The shipped default; ``blocks_ahead`` stands there in place of stages, whose number hangs on the layout."""
    return defaults.lookup("triton.decode", problem, device, case_of(problem), most_rows(problem))


def most_rows(problem: AttentionProblem) -> int:
    """Rows of a tile that holds all of a KV head's."""
    return max(LEAST_ROWS, width(problem.seqlen_q * problem.group))


def decode_space(problem: AttentionProblem, device: DeviceProfile) -> list[Config]:
    """The legal configs, the default among them."""
    default = decode_default(problem, device)
    rows = most_rows(problem)
    float32 = problem.dtype == "float32"
    found = [default]
    for block_m in sorted({min(rows, limit) for limit in ((16, 32) if float32 else (64, 128))}):
        for block_n in (16, 32) if float32 else (32, 64, 128):
            for warps, ahead in ((4, 1), (4, 2), (8, 1), (8, 2)):
                found.append(make_config(block_m, block_n, warps, stages(ahead, problem)))
    # What splits are best at hangs on how busy a program keeps its multiprocessor, which the model cannot know.
    blocks = -(-visible_keys(problem) // default.integer("block_n"))
    found += [Config({**default, "splits": splits}) for splits in (1, 2, 4, 8, 16, 32, 64) if splits <= blocks]
    return list(dict.fromkeys(config for config in found if is_legal(config, problem, device)))


def visible_keys(problem: AttentionProblem) -> int:
    """Most keys that the rows of one sequence see between them."""
    left, right = problem.band.left, problem.band.right
    if left == UNLIMITED:
        return problem.seqlen_k
    return min(problem.seqlen_k, problem.seqlen_q + left + max(0, min(right, problem.seqlen_q)))


def choose_splits(problem: AttentionProblem, config: Config, device: DeviceProfile) -> int:
    """How many parts the keys of a sequence are cut into.

    Lengths are known on the device alone, so every cache counts as full. Where one split leaves the device partly idle:
    of all numbers, the one that finishes first by this model. Programs run in waves of as many as the device holds,
    each block of keys takes one unit of time, and a split's float32 results take what their bytes, written and read
    again, are worth in blocks.
    """
    block_m, block_n = config.integer("block_m"), config.integer("block_n")
    blocks = -(-visible_keys(problem) // block_n)
    tiles = row_tiles(problem.seqlen_q * problem.group, block_m)
    programs = tiles * problem.heads_kv * problem.batch
    slots = max(1, device.units) * resident(problem, config, device)
    if programs >= slots:
        return 1
    bytes_of_block = block_n * (problem.head_dim + problem.head_dim_v) * problem.torch_dtype.itemsize
    rows = min(block_m, problem.seqlen_q * problem.group)
    partial = 2 * 4 * rows * problem.head_dim_v / max(1, bytes_of_block)

    def duration(splits: int) -> float:
        waves = -(-programs * splits // slots)
        if splits == 1:
            return waves * (blocks + PROGRAM_COST)
        return waves * (-(-blocks // splits) + PROGRAM_COST + partial) + COMBINE_COST

    return min(range(1, max(1, min(MAX_SPLITS, blocks)) + 1), key=duration)


def row_tiles(rows: int, block_m: int) -> int:
    return max(1, -(-rows // block_m))


def resident(problem: AttentionProblem, config: Config, device: DeviceProfile) -> int:
    """Programs that a multiprocessor holds at a time, as far as shared memory and warps go."""
    limits = device.limits
    by_shared = limits.shared_per_unit // max(1, shared_bytes(config, problem, device))
    by_warps = limits.warps_per_unit // config.integer("num_warps", 4)
    return max(1, min(by_shared, by_warps))
