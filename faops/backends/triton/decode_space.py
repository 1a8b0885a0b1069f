"""Tile configs of the KV-cache kernel: which are legal on a device, which are in the tuning space, and the default.

A config holds ``block_m`` rows (positions times query heads of a group) and ``block_n`` keys a tile, ``num_warps``,
``num_stages``, from which the blocks of keys and values in flight follow (:func:`stages`), and ``splits`` of the keys,
0 where :func:`faops.backends.triton.decode_tiles.choose_splits` decides. Nothing here shapes a kernel.
"""

from __future__ import annotations

from faops import defaults
from faops.backends.triton.decode_tiles import loads_in_a_row, shared_bytes, tile_registers
from faops.backends.triton.space import LEAST_ROWS, case_of
from faops.backends.triton.specialize import width
from faops.defaults import ShippedDefault
from faops.device import DeviceProfile
from faops.problem import AttentionProblem
from faops.registry import Config
from faops.splits import visible_keys

# Beyond these a thread's 255 registers do not suffice, as compiling the space for 8.0 and 9.0 showed. Products of
# float32, which run outside the tensor cores, hold more than one copy of their operands.
TILE_REGISTERS, FLOAT32_TILE_REGISTERS = 192, 50


def make_config(block_m: int, block_n: int, num_warps: int, num_stages: int, splits: int = 0) -> Config:
    return Config(block_m=block_m, block_n=block_n, num_warps=num_warps, num_stages=num_stages, splits=splits)


def is_legal(config: Config, problem: AttentionProblem, device: DeviceProfile) -> bool:
    """Whether it fits the shared memory, and spills next to nothing."""
    most = FLOAT32_TILE_REGISTERS if problem.dtype == "float32" else TILE_REGISTERS
    fits = shared_bytes(config, problem, device) <= device.limits.shared_per_block
    return fits and tile_registers(config, problem) <= most


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
