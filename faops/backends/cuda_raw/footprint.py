"""What the kernels cost, counted from their tiles. Nothing here changes a kernel."""

from __future__ import annotations

import functools

from faops.backends.cuda_raw import decode_parts, decode_tiles
from faops.backends.cuda_raw.decode_tiles import FLOAT, DecodeFamily
from faops.backends.cuda_raw.tiles import ELEMENT, WARP, Family, matrix_registers, padded, shared_bytes
from faops.device import DeviceProfile
from faops.footprint import Footprint, mma_sync_share, score_work
from faops.problem import AttentionProblem
from faops.registry import Config
from faops.splits import row_tiles, visible_keys
from faops.tiling import Tiles, filled, tiles_of_band, walk_keys

# Registers of a thread beside its matrices, for addresses and row values, for operands that grow with a tile's keys,
# and for queries on their way from shared memory: fitted to what NVRTC 13.5 made of the tuning spaces, which it meets
# with a mean error of 8 registers (docs/cost-model.md).
OTHER_REGISTERS = 60
KEYS_A_REGISTER = 5
QUERY_REGISTERS = 10
MOST_REGISTERS = 255
COMBINE_REGISTERS = 40


def registers(family: Family, config: Config, head_dim: int, head_dim_v: int) -> int:
    """Registers of a thread, an estimate for before it is compiled."""
    others = OTHER_REGISTERS + config.integer("tile_n") // KEYS_A_REGISTER
    if not config["q_in_registers"]:
        others += QUERY_REGISTERS
    return min(MOST_REGISTERS, matrix_registers(family, config, head_dim, head_dim_v) + others)


def footprint(family: Family, problem: AttentionProblem, device: DeviceProfile, config: Config) -> Footprint:
    """What a forward call costs on an NVIDIA ``device``."""
    tile_m, tile_n, warps = (config.integer(name) for name in ("tile_m", "tile_n", "warps"))
    width, width_v = padded(problem.head_dim), padded(problem.head_dim_v)
    tiles = walk_keys(problem, tile_m, tile_n)
    scores = tiles.total * tile_m * tile_n
    work = score_work(problem)
    elements = problem.head_dim + problem.head_dim_v
    keys_and_values = ELEMENT * tile_n * (width + width_v)  # as they lie in shared memory
    queries = 0 if config["q_in_registers"] else ELEMENT * tile_m * width
    # Keys are under way while values are used, and the other way round; more of both with more stages.
    ahead = (2 * config.integer("stages") - 1) / 2 if family.asynchronous else 0.5
    return Footprint(
        blocks=max(1, round(tiles.blocks)),
        threads=warps * WARP,
        registers=registers(family, config, problem.head_dim, problem.head_dim_v),
        shared_bytes=shared_bytes(family, config, problem.head_dim, problem.head_dim_v),
        matrix_flops=2 * scores * (width + width_v),
        traffic=ELEMENT * elements * (tiles.total * tile_n + tiles.blocks * tile_m) + scores * work.bytes,
        longest=tiles.unevenness,
        vector_flops=scores * work.operations + 2 * tiles.total * tile_m * width_v,  # rescaling at each tile
        exponentials=scores * work.exponentials + tiles.total * tile_m,
        memory=problem.bytes_moved() * filled(problem),
        steps=tiles.steps,
        shared_traffic=tiles.total * (warps * keys_and_values + queries),
        in_flight=ahead * keys_and_values,
        matrix_share=mma_sync_share(device.arch),
    )


# ---------------------------------------------------------------------------------------------- decode


def decode(family: DecodeFamily, problem: AttentionProblem, device: DeviceProfile, config: Config) -> Footprint:
    """What attention over a cache costs, then what puts its splits together; what appends is a launch more."""
    tile_m, tile_n, warps = (config.integer(name) for name in ("tile_m", "tile_n", "warps"))
    width, width_v = padded(problem.head_dim), padded(problem.head_dim_v)
    splits = config.integer("splits") or _splits(problem, config, device)
    tiles = _decode_tiles(problem, tile_m, tile_n, splits)
    scores, work = tiles.total * tile_m * tile_n, score_work(problem)
    elements = problem.head_dim + problem.head_dim_v
    keys_and_values = ELEMENT * tile_n * (width + width_v)
    queries = 0 if config["q_in_registers"] else ELEMENT * tile_m * width
    keys = problem.batch * problem.heads_kv * visible_keys(problem)
    ahead = (2 * config.integer("stages") - 1) / 2 if family.asynchronous else 0.5
    others = OTHER_REGISTERS + (0 if config["q_in_registers"] else QUERY_REGISTERS)
    return Footprint(
        blocks=max(1, round(tiles.blocks)),
        threads=warps * WARP,
        registers=min(
            MOST_REGISTERS,
            decode_tiles.matrix_registers(family, config, problem.head_dim, problem.head_dim_v) + others,
        ),
        shared_bytes=decode_tiles.shared_bytes(config, problem.head_dim, problem.head_dim_v),
        matrix_flops=2 * scores * (width + width_v),
        traffic=ELEMENT * elements * (tiles.total * tile_n + tiles.blocks * tile_m) + scores * work.bytes,
        longest=tiles.unevenness,
        launches=2 if problem.append else 1,
        vector_flops=scores * work.operations + 2 * tiles.total * tile_m * width_v,
        exponentials=scores * work.exponentials + tiles.total * tile_m,
        memory=ELEMENT * keys * elements,
        steps=tiles.steps,
        shared_traffic=tiles.total * (warps / config.integer("key_warps") * keys_and_values + queries),
        in_flight=ahead * keys_and_values,
        matrix_share=mma_sync_share(device.arch),
        then=_combine(problem, splits) if splits > 1 else None,
    )


def _decode_tiles(problem: AttentionProblem, tile_m: int, tile_n: int, splits: int) -> Tiles:
    """Tiles of all KV heads: a block has positions times heads of the group as rows, and one split of their keys."""
    positions = max(1, tile_m // max(1, problem.group))
    pieces = row_tiles(problem.group, tile_m)  # that the heads of one position need
    of_head = tiles_of_band(problem.band, problem.seqlen_q, problem.seqlen_k, positions, tile_n)
    heads = problem.batch * problem.heads_kv * pieces
    return Tiles(heads * of_head.blocks * splits, heads * of_head.total, -(-of_head.longest // splits))


@functools.lru_cache(maxsize=1024)
def _splits(problem: AttentionProblem, config: Config, device: DeviceProfile) -> int:
    return decode_tiles.choose_splits(problem, config, device)


def _combine(problem: AttentionProblem, splits: int) -> Footprint:
    """Weighs the splits' float32 results, a row to a block."""
    rows = max(1, problem.batch * problem.seqlen_q * problem.heads_q)
    moved = rows * (FLOAT * splits * (problem.head_dim_v + 1) + ELEMENT * problem.head_dim_v)
    return Footprint(
        blocks=rows,
        threads=decode_parts.THREADS,
        registers=COMBINE_REGISTERS,
        shared_bytes=decode_parts.THREADS * decode_parts.PART_BYTES,
        matrix_flops=0.0,
        traffic=2.0 * moved,  # written by attention, read here
        vector_flops=4.0 * rows * splits * problem.head_dim_v,
        in_flight=moved / rows,
    )
