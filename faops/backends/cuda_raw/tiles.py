"""Tiles of the forward kernels: what a config means, and what it costs.

A config holds ``tile_m`` and ``tile_n`` (query rows and keys of a tile), ``warps``, ``stages`` (slots for keys and as
many for values) and ``q_in_registers``.
"""

from __future__ import annotations

from dataclasses import dataclass

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
