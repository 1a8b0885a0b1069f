"""What the forward kernels cost, counted from their tiles. Nothing here changes a kernel."""

from __future__ import annotations

from faops.backends.cuda_raw.tiles import ELEMENT, WARP, Family, matrix_registers, padded, shared_bytes
from faops.device import DeviceProfile
from faops.footprint import Footprint, mma_sync_share, score_work
from faops.problem import AttentionProblem
from faops.registry import Config
from faops.tiling import filled, walk_keys

# Registers of a thread beside its matrices, for addresses and row values, for operands that grow with a tile's keys,
# and for queries on their way from shared memory: fitted to what NVRTC 13.5 made of the tuning spaces, which it meets
# with a mean error of 8 registers (docs/cost-model.md).
OTHER_REGISTERS = 60
KEYS_A_REGISTER = 5
QUERY_REGISTERS = 10
MOST_REGISTERS = 255


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
