"""Tiles of the KV-cache kernels: what a config means, and what it costs.

A config holds ``tile_m`` rows (positions times query heads of a group) and ``tile_n`` keys of a tile, ``warps``, the
``key_warps`` among them, ``stages`` (slots for keys and as many for values), ``q_in_registers``, and ``splits`` of the
keys, 0 where :func:`faops.splits.choose_splits` decides. Either all warps are key warps, which have the same rows and
each keys of its own, or one is, which means that each has rows of its own and they share the keys.
"""

from __future__ import annotations

from dataclasses import dataclass

from faops import splits
from faops.architectures import cuda_number
from faops.backends.cuda_raw.tiles import ELEMENT, MATRIX_ROWS, WARP, padded
from faops.device import DeviceProfile
from faops.problem import AttentionProblem
from faops.registry import Config

SHARED_ROWS = 32  # most rows that one warp can have
FLOAT = 4  # bytes
RESULT_COLUMNS = 128  # of a result that pass through shared memory at a time


@dataclass(frozen=True)
class DecodeFamily:
    """What sets one kernel source apart from the other."""

    name: str  # of the source
    arch: int  # lowest compute capability, times ten
    mma_depth: int  # of its matrix instruction
    asynchronous: bool  # keys and values come by cp.async; otherwise through registers
    register_limit: int  # registers a thread may hold in matrices; what is above this spills on some target


SM75 = DecodeFamily("sm75_decode", 75, 8, False, 170)
SM80 = DecodeFamily("sm80_decode", 80, 16, True, 184)


def family_of(device: DeviceProfile) -> DecodeFamily:
    """The family whose kernels an NVIDIA ``device`` runs."""
    return SM75 if cuda_number(device.arch) < SM80.arch else SM80


def make_config(
    tile_m: int, tile_n: int, warps: int, stages: int, q_in_registers: bool, splits: int = 0, key_warps: int = 0
) -> Config:
    """A config by its values; few rows are all warps' and the warps key warps, unless ``key_warps`` says otherwise."""
    return Config(
        tile_m=tile_m, tile_n=tile_n, warps=warps, key_warps=key_warps or (warps if tile_m <= SHARED_ROWS else 1),
        stages=stages, q_in_registers=q_in_registers, splits=splits,
    )  # fmt: skip


def warp_rows(config: Config) -> int:
    """Rows of a warp."""
    return config.integer("tile_m") * config.integer("key_warps") // config.integer("warps")


def shared_bytes(config: Config, head_dim: int, head_dim_v: int) -> int:
    """Shared memory of a block, in bytes, as the sources lay it out."""
    tile_m, tile_n = config.integer("tile_m"), config.integer("tile_n")
    width, width_v = padded(head_dim), padded(head_dim_v)
    ring = config.integer("stages") * tile_n * (width + width_v)
    columns = min(width_v, RESULT_COLUMNS)
    stride = columns + (8 if columns % 32 == 0 else 24)
    results = config.integer("key_warps") * tile_m * (stride + 2)  # in float32, with level and sum of each row
    return max(ELEMENT * (tile_m * width + ring), FLOAT * results)


def matrix_registers(family: DecodeFamily, config: Config, head_dim: int, head_dim_v: int) -> int:
    """Registers a thread needs for what it holds of matrices throughout the loop over keys."""
    warps, keys = config.integer("warps"), config.integer("tile_n") // config.integer("key_warps")
    width, width_v = padded(head_dim), padded(head_dim_v)
    row_blocks = warp_rows(config) // MATRIX_ROWS
    registers = row_blocks * (width_v // 2 + keys // 2)
    if config["q_in_registers"]:
        registers += row_blocks * width // 4
    if not family.asynchronous:
        registers += config.integer("tile_n") * max(width, width_v) * ELEMENT // (4 * warps * WARP)
    return registers


def resident(problem: AttentionProblem, config: Config, device: DeviceProfile) -> int:
    """Blocks that a multiprocessor holds at a time, as far as shared memory and warps go."""
    limits = device.limits
    by_shared = limits.shared_per_unit // shared_bytes(config, problem.head_dim, problem.head_dim_v)
    return max(1, min(by_shared, limits.warps_per_unit // config.integer("warps")))


def choose_splits(problem: AttentionProblem, config: Config, device: DeviceProfile) -> int:
    """How many parts the keys of a sequence are cut into."""
    tile_m, tile_n = config.integer("tile_m"), config.integer("tile_n")
    return splits.choose_splits(problem, tile_m, tile_n, resident(problem, config, device), device)
