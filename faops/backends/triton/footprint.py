"""What the Triton kernels cost, counted from their tiles. Nothing here changes a kernel.

Registers and shared memory are estimates, fitted to what Triton 3.9 made of the tuning spaces for 8.0 and 9.0;
compiling tells the truth.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from faops.architectures import cuda_number
from faops.backends.triton import decode_tiles, specialize
from faops.backends.triton.specialize import width
from faops.device import DeviceProfile
from faops.footprint import Footprint, mma_sync_share, score_work
from faops.problem import AttentionProblem, Op
from faops.registry import Config
from faops.splits import row_tiles, visible_keys
from faops.tiling import Tiles, filled, sequences, tiles_of_band, walk_keys, walk_rows

WARP = 32
MOST_REGISTERS, REGISTERS_OF_A_UNIT = 255, 65536
BACKWARD_INSTRUCTIONS = 4.0  # more of a score than forward: less delta, times the probability, narrowed once more
TF32_SHARE = 0.5  # of the 16-bit rate: NVIDIA's data sheets
GROUP_ROWS, GROUP_WARPS = 64, 4  # from which on Hopper and the large Blackwells multiply with their own instructions
SPECIALIZED_WARPS = 4  # that load and multiply besides those of the softmax
# As in backward.py and decode.py, which import what calls this.
PREPARE_ROWS, PREPARE_THREADS, PREPARE_REGISTERS = 64, 128, 48
COMBINE_THREADS, COMBINE_REGISTERS = 32, 64


def footprint(problem: AttentionProblem, device: DeviceProfile, config: Config) -> Footprint:
    """What a call costs on an NVIDIA ``device``."""
    return _COUNTED[problem.op](problem, device, config)


# ---------------------------------------------------------------------------------------------- a walk over tiles


class _Walk(NamedTuple):
    """A kernel whose blocks hold ``own`` rows or keys and walk over ``stepped`` of the other at a time.

    ``products``: the widths of all products of a tile together. ``loaded`` and ``held``: those of what is loaded for
    each step, and of what a block keeps in shared memory. ``instructions``: of a score, more than forward.
    """

    own: int
    stepped: int
    products: int
    loaded: int
    held: int
    registers: float
    instructions: float = 0.0


def _footprint(
    problem: AttentionProblem, device: DeviceProfile, config: Config, tiles: Tiles, walk: _Walk, memory: float,
    then: Footprint | None = None,
) -> Footprint:  # fmt: skip
    warps, ahead = config.integer("num_warps"), config.integer("num_stages") - 1
    element = problem.torch_dtype.itemsize
    grouped = _grouped(problem, device, walk.own, warps)
    scores, work = tiles.total * walk.own * walk.stepped, score_work(problem)
    flops = 2 * scores * walk.products
    others = scores * (work.operations + 2 * walk.instructions)
    step = element * walk.stepped * walk.loaded  # bytes
    # Warps that multiply on their own have fetched their operands when the next block takes their place.
    slots = ahead + grouped if ahead else 1
    share = 1.0 if grouped else mma_sync_share(device.arch)
    exact = problem.dtype == "float32" and specialize.precision(problem.torch_dtype) == "ieee"
    return Footprint(
        blocks=max(1, round(tiles.blocks)),
        threads=warps * WARP,
        registers=min(MOST_REGISTERS, round(walk.registers)),
        shared_bytes=element * walk.own * walk.held + slots * step,
        matrix_flops=0.0 if exact else flops,
        traffic=tiles.total * step + tiles.blocks * element * walk.own * walk.loaded + scores * work.bytes,
        longest=tiles.unevenness,
        vector_flops=others + flops if exact else others,
        exponentials=scores * work.exponentials,
        memory=memory,
        steps=tiles.steps,
        shared_traffic=tiles.total * step * (warps / GROUP_WARPS if grouped else warps),
        in_flight=ahead * step,
        matrix_share=share * (TF32_SHARE if problem.dtype == "float32" else 1.0),
        then=then,
    )


def _grouped(problem: AttentionProblem, device: DeviceProfile, own: int, warps: int) -> bool:
    """Whether four warps multiply together, on operands in shared memory."""
    able = 90 <= cuda_number(device.arch) < 110 and problem.dtype != "float32"
    return able and own >= GROUP_ROWS and warps >= GROUP_WARPS


# ---------------------------------------------------------------------------------------------- forward


def _forward(problem: AttentionProblem, device: DeviceProfile, config: Config) -> Footprint:
    own, stepped = config.integer("block_m"), config.integer("block_n")
    wide, wide_v = width(problem.head_dim), width(problem.head_dim_v)
    registers = 75 + own * (1.35 * wide_v + 1.7 * stepped) / (config.integer("num_warps") * WARP)
    walk = _Walk(own, stepped, wide + wide_v, wide + wide_v, wide, registers)
    memory = problem.bytes_moved() * filled(problem)
    found = _footprint(problem, device, config, walk_keys(problem, own, stepped), walk, memory)
    return _specialized(found) if config.get("warp_specialize", False) else found


def _specialized(found: Footprint) -> Footprint:
    """With warps of their own for loads and products, and no more registers than then fit."""
    threads = found.threads + SPECIALIZED_WARPS * WARP
    return replace(found, threads=threads, registers=min(found.registers, REGISTERS_OF_A_UNIT // threads // 8 * 8))


# ---------------------------------------------------------------------------------------------- backward


def _backward(problem: AttentionProblem, device: DeviceProfile, config: Config) -> Footprint:
    """Prepare, dK and dV, then dQ unless those add to it, then the gradient of a bias."""
    own, stepped = config.integer("block_outer"), config.integer("block_inner")
    wide, wide_v = width(problem.head_dim), width(problem.head_dim_v)
    both = wide + wide_v
    over_keys, over_rows = walk_keys(problem, own, stepped), walk_rows(problem, own, stepped)
    memory = problem.bytes_moved() * filled(problem) / 2  # of each of the two kernels

    def kernel(tiles: Tiles, products: int, accumulated: int, then: Footprint | None = None) -> Footprint:
        registers = 120 + own * (accumulated + 2.0 * stepped) / (config.integer("num_warps") * WARP)
        walk = _Walk(own, stepped, products, both, both, registers, BACKWARD_INSTRUCTIONS)
        return _footprint(problem, device, config, tiles, walk, memory, then)

    last = kernel(over_keys, both, 0) if problem.bias_grad else None
    if config.get("atomic_dq", False):
        dkv = kernel(over_rows, both + wide + both, both, last)
        return _prepare(problem, _adding(problem, dkv, over_rows.total * stepped))
    dq = kernel(over_keys, both + wide, wide, last)
    return _prepare(problem, kernel(over_rows, both + both, both, dq))


def _adding(problem: AttentionProblem, dkv: Footprint, rows: float) -> Footprint:
    """The kernel that adds to ``rows`` of dQ in float32, which torch zeroes before and converts after."""
    added = 2 * 4 * rows * problem.head_dim  # bytes, read and written in the cache
    elements = problem.batch * problem.seqlen_q * problem.heads_q * problem.head_dim * filled(problem)
    moved = elements * (2 * 4 + problem.torch_dtype.itemsize)
    return replace(dkv, traffic=dkv.traffic + added, memory=dkv.memory + moved, launches=3)


def _prepare(problem: AttentionProblem, then: Footprint) -> Footprint:
    """delta of every row: what both gradients read of the result and its gradient."""
    rows = math.fsum(count * length for count, length, _ in sequences(problem)) * problem.heads_q
    blocks = max(1, math.ceil(rows / PREPARE_ROWS))
    moved = rows * (2 * problem.head_dim_v * problem.torch_dtype.itemsize + 8)
    return Footprint(
        blocks=blocks,
        threads=PREPARE_THREADS,
        registers=PREPARE_REGISTERS,
        shared_bytes=0,
        matrix_flops=0.0,
        traffic=moved,
        vector_flops=2 * rows * problem.head_dim_v,
        memory=moved,
        in_flight=moved / blocks,  # everything at once
        then=then,
    )


# ---------------------------------------------------------------------------------------------- decode


def _decode(problem: AttentionProblem, device: DeviceProfile, config: Config) -> Footprint:
    """Attention over splits of the keys, then what puts them together; what appends is a launch more."""
    own, stepped = config.integer("block_m"), config.integer("block_n")
    element, wide, wide_v = problem.torch_dtype.itemsize, width(problem.head_dim), width(problem.head_dim_v)
    splits = config.integer("splits") or _splits(problem, config, device)
    ahead = max(1, (config.integer("num_stages") - 1) // decode_tiles.loads_in_a_row(problem))
    walk = _Walk(own, stepped, wide + wide_v, wide + wide_v, wide, 50 + decode_tiles.tile_registers(config, problem))
    keys = problem.batch * problem.heads_kv * visible_keys(problem)
    memory = element * keys * (problem.head_dim + problem.head_dim_v)
    tiles, then = _decode_tiles(problem, own, stepped, splits), _combine(problem, splits) if splits > 1 else None
    return replace(
        _footprint(problem, device, config, tiles, walk, memory, then),
        shared_bytes=decode_tiles.shared_bytes(config, problem, device),
        in_flight=ahead * element * stepped * (wide + wide_v),
        launches=2 if problem.append else 1,
    )


def _decode_tiles(problem: AttentionProblem, block_m: int, block_n: int, splits: int) -> Tiles:
    """Tiles of all KV heads: a block has positions times heads of the group as rows, and one split of their keys."""
    positions = max(1, block_m // max(1, problem.group))
    pieces = row_tiles(problem.group, block_m)  # that the heads of one position need
    of_head = tiles_of_band(problem.band, problem.seqlen_q, problem.seqlen_k, positions, block_n)
    heads = problem.batch * problem.heads_kv * pieces
    return Tiles(heads * of_head.blocks * splits, heads * of_head.total, -(-of_head.longest // splits))


@functools.lru_cache(maxsize=1024)
def _splits(problem: AttentionProblem, config: Config, device: DeviceProfile) -> int:
    return decode_tiles.choose_splits(problem, config, device)


def _combine(problem: AttentionProblem, splits: int) -> Footprint:
    """Weighs the splits' float32 results, a row to a block of one warp."""
    rows = max(1, problem.batch * problem.seqlen_q * problem.heads_q)
    moved = rows * (4 * splits * (problem.head_dim_v + 1) + problem.torch_dtype.itemsize * problem.head_dim_v)
    return Footprint(
        blocks=rows,
        threads=COMBINE_THREADS,
        registers=COMBINE_REGISTERS,
        shared_bytes=0,
        matrix_flops=0.0,
        traffic=2.0 * moved,  # written by attention, read here
        vector_flops=4.0 * rows * splits * problem.head_dim_v,
        in_flight=moved / rows,
    )


_COUNTED: dict[Op, Callable[[AttentionProblem, DeviceProfile, Config], Footprint]] = {
    "forward": _forward,
    "backward": _backward,
    "decode": _decode,
}
