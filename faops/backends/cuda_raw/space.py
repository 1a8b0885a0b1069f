"""Tile configs of the forward kernels: what they cost, which are legal on a device, and which are in the tuning space.

A config holds ``tile_m`` and ``tile_n`` (query rows and keys of a tile), ``warps``, ``stages`` (slots for keys and as
many for values) and ``q_in_registers``.
"""

from __future__ import annotations

from dataclasses import dataclass

from faops.device import DeviceProfile
from faops.registry import Config

WARP = 32
ELEMENT = 2  # bytes
MATRIX_ROWS = 16  # rows of one matrix instruction, the least a warp can have


@dataclass(frozen=True)
class Family:
    """What sets one kernel source apart from the other."""

    name: str  # of the source
    arch: int  # lowest compute capability, times ten
    mma_depth: int  # of its matrix instruction
    asynchronous: bool  # keys and values come by cp.async; otherwise through registers
    # Registers a thread may hold in matrices. The rest of its 255 go to addresses and operands; what is above this
    # spills on some target, which the gates look for.
    register_limit: int
    # The largest tiles may go so far above the limit: they spill a few registers, and may be the fastest all the same.
    register_margin: int


SM75 = Family("sm75_forward", 75, 8, False, 170, 0)
SM80 = Family("sm80_forward", 80, 16, True, 184, 8)


def make_config(tile_m: int, tile_n: int, warps: int, stages: int, q_in_registers: bool) -> Config:
    """A config by its values."""
    return Config(tile_m=tile_m, tile_n=tile_n, warps=warps, stages=stages, q_in_registers=q_in_registers)


def halved(config: Config) -> Config:
    """The config with half as many keys a tile, 16 at least: its scores take half the registers."""
    return Config({**config, "tile_n": max(MATRIX_ROWS, config.integer("tile_n") // 2)})


def padded(head_dim: int) -> int:
    """The head dim a kernel computes with: the next multiple of 16."""
    return max(16, -(-head_dim // 16) * 16)


def shared_bytes(family: Family, config: Config, head_dim: int, head_dim_v: int) -> int:
    """Shared memory of a block, in bytes, as the sources lay it out."""
    tile_m, tile_n = config.integer("tile_m"), config.integer("tile_n")
    width, width_v = padded(head_dim), padded(head_dim_v)
    queries, keys, values = (ELEMENT * size for size in (tile_m * width, tile_n * width, tile_n * width_v))
    ring = config.integer("stages") * (keys + values)
    if not config["q_in_registers"]:
        needed = queries + ring
    elif family.asynchronous:
        needed = max(ring, keys + queries)
    else:
        needed = max(ring, queries)
    return max(needed, ELEMENT * tile_m * width_v)  # the result passes through the same bytes


def matrix_registers(family: Family, config: Config, head_dim: int, head_dim_v: int) -> int:
    """Registers a thread needs for what it holds of matrices throughout the loop over keys."""
    tile_n, warps = config.integer("tile_n"), config.integer("warps")
    width, width_v = padded(head_dim), padded(head_dim_v)
    row_blocks = config.integer("tile_m") // (MATRIX_ROWS * warps)
    registers = row_blocks * (width_v // 2 + tile_n // 2)
    if config["q_in_registers"]:
        registers += row_blocks * width // 4
    if not family.asynchronous:
        # Twice: each chunk on its way has an address as well.
        registers += 2 * tile_n * max(width, width_v) * ELEMENT // (4 * warps * WARP)
    return registers


def is_legal(family: Family, config: Config, head_dim: int, head_dim_v: int, device: DeviceProfile) -> bool:
    """Whether the config fits ``device``, its registers as far as a count of matrix elements can tell."""
    large = config.integer("tile_m") == 128 and config.integer("warps") == 4 and config.integer("tile_n") <= 64
    allowed = family.register_limit + (family.register_margin if large else 0)
    limit = min(device.shared_bytes or device.limits.shared_per_block, device.limits.shared_per_block)
    return (
        config.integer("tile_m") % (MATRIX_ROWS * config.integer("warps")) == 0
        and shared_bytes(family, config, head_dim, head_dim_v) <= limit
        and matrix_registers(family, config, head_dim, head_dim_v) <= allowed
    )


def space(family: Family, head_dim: int, head_dim_v: int, device: DeviceProfile) -> list[Config]:
    """The legal configs, in a fixed order."""
    wide = max(head_dim, head_dim_v) > 128  # fewer keys a tile fit, and still fill it
    candidates = (
        make_config(tile_m, tile_n, warps, stages, q_in_registers)
        for tile_m, warps in ((64, 4), (128, 4), (128, 8), (64, 2))
        for tile_n in ((16, 32, 64) if wide else (32, 64, 128))
        if warps > 2 or tile_n == 32
        for stages in ((1, 2) if family.asynchronous else (1,))
        for q_in_registers in (True, False)
    )
    return [config for config in candidates if is_legal(family, config, head_dim, head_dim_v, device)]
