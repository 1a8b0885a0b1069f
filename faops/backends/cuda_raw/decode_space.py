"""Tile configs of the KV-cache kernels: the default, which are legal on a device, and which are tuned.

Nothing here shapes a kernel, so that winners outlive a change of this file.
"""

from __future__ import annotations

from faops import defaults
from faops.backends.cuda_raw.decode_tiles import (
    DecodeFamily,
    make_config,
    matrix_registers,
    shared_bytes,
    warp_rows,
)
from faops.backends.cuda_raw.tiles import MATRIX_ROWS
from faops.defaults import ShippedDefault
from faops.device import DeviceProfile
from faops.problem import AttentionProblem
from faops.registry import Config
from faops.splits import visible_keys

# Rows and warps of a tile. Up to 32 rows belong to every warp.
TILES = ((16, 2), (16, 4), (16, 8), (32, 2), (32, 4), (64, 4), (128, 4), (128, 8))
SPLITS = (1, 2, 4, 8, 16, 32, 64)


def shipped(kernel: str, problem: AttentionProblem, device: DeviceProfile) -> ShippedDefault:
    """The shipped default of ``kernel`` on an NVIDIA device."""
    return defaults.lookup(kernel, problem, device, query_rows=max(1, problem.seqlen_q * problem.group))


def default(kernel: str, problem: AttentionProblem, device: DeviceProfile) -> Config:
    """The config of it; the splits follow from the problem."""
    return Config({**shipped(kernel, problem, device).config, "splits": 0})


def is_legal(family: DecodeFamily, config: Config, head_dim: int, head_dim_v: int, device: DeviceProfile) -> bool:
    """Whether the config fits ``device``, its registers as far as a count of matrix elements can tell."""
    limit = min(device.shared_bytes or device.limits.shared_per_block, device.limits.shared_per_block)
    return (
        config.integer("key_warps") in (1, config.integer("warps"))
        and warp_rows(config) % MATRIX_ROWS == 0
        and config.integer("tile_n") % (MATRIX_ROWS * config.integer("key_warps")) == 0
        and shared_bytes(config, head_dim, head_dim_v) <= limit
        and matrix_registers(family, config, head_dim, head_dim_v) <= family.register_limit
    )


def space(family: DecodeFamily, problem: AttentionProblem, device: DeviceProfile, default: Config) -> list[Config]:
    """The legal configs in a fixed order, the ``default`` first."""
    rows = problem.seqlen_q * problem.group
    found = [default]
    for tile_m, warps in TILES:
        if tile_m > MATRIX_ROWS and tile_m >= 2 * rows:
            continue  # half of it and more would be empty
        for tile_n in (32, 64, 128):
            for stages in (1, 2, 3) if family.asynchronous else (1,):
                for q_in_registers in (True, False):
                    found.append(make_config(tile_m, tile_n, warps, stages, q_in_registers))
    # What splits are best at hangs on how busy a block keeps its multiprocessor, which the model cannot know.
    blocks = -(-visible_keys(problem) // default.integer("tile_n"))
    found += [Config({**default, "splits": splits}) for splits in SPLITS if splits <= blocks]
    legal = (c for c in found if is_legal(family, c, problem.head_dim, problem.head_dim_v, device))
    return list(dict.fromkeys(legal))
