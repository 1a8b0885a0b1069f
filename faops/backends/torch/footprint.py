"""What the torch kernels cost: operations started, products, and passes over scores that lie in memory.

Counted from the loops of the kernels. PyTorch's own kernel counts as one operation, with the tiles that its CPU form
has (ATen, native/cpu/FlashAttentionKernel.cpp).
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

import torch

from faops.device import DeviceProfile
from faops.footprint import Footprint, mma_sync_share
from faops.problem import AttentionProblem, Band
from faops.registry import Config
from faops.tiling import filled, loops_of_band, sequences, tiles_of_band

FLOAT32 = 4  # bytes
BACKWARD_PRODUCTS = 2.5  # five products of a tile for two
TF32_SHARE = 0.5  # of the 16-bit rate: NVIDIA's data sheets


class Work(NamedTuple):
    """``tasks`` that run side by side in each call of a kernel, and what all calls do together.

    ``scores`` of all tiles, numbers read and written in ``passes`` over them, ``operations`` started; ``tile`` the
    scores that a task has in hand; ``longest`` the work of the longest task as a multiple of the mean; ``slower`` how
    much longer a product takes than in large float32 matrices; ``copied`` numbers of inputs and results.
    """

    tasks: float
    scores: float
    passes: float
    operations: float
    tile: float
    longest: float = 1.0
    slower: float = 1.0
    copied: float = 0.0


def _footprint(problem: AttentionProblem, device: DeviceProfile, config: Config, work: Work) -> Footprint:
    """The footprint of ``work`` on a CPU, or by a library on any other device."""
    element = 8 if problem.dtype == "float64" else FLOAT32
    factor = BACKWARD_PRODUCTS if problem.op == "backward" else 1.0
    products = 2 * work.scores * (problem.head_dim + problem.head_dim_v) * factor
    memory = problem.bytes_moved() * filled(problem) + element * work.copied
    passes = element * work.passes
    launches = max(1, round(work.operations))
    if device.torch_type == "cpu":
        double = element / FLOAT32
        return Footprint(
            blocks=max(1, round(work.tasks)),
            threads=_threads(device, config),
            registers=0,
            shared_bytes=round(element * work.tile),
            matrix_flops=products * double,
            traffic=passes,
            longest=work.longest,
            launches=launches,
            exponentials=work.scores * double,
            memory=memory,
            matrix_share=1 / work.slower,
        )
    exact = problem.dtype == "float64" or torch.get_float32_matmul_precision() == "highest"
    return Footprint(
        blocks=1,
        threads=0,
        registers=0,
        shared_bytes=0,
        matrix_flops=0.0 if exact else products,
        traffic=passes + memory,
        launches=launches,
        vector_flops=products if exact else 0.0,
        exponentials=work.scores,
        memory=memory,
        matrix_share=TF32_SHARE * mma_sync_share(device.arch),
    )


def _threads(device: DeviceProfile, config: Config) -> int:
    return config.integer("threads") or device.threads or max(1, device.units)


def _slower_by_rows(rows: float, half: float) -> float:
    """How much longer products of so few rows take than large ones: twice as long with ``half`` rows."""
    return 1 + half / max(1.0, rows)


# ---------------------------------------------------------------------------------------------- blockwise

# In each tile: operations, and readings and writings of every score; more of each feature.
FORWARD, BACKWARD = (14, 10), (14, 16)
FEATURES = {"softcap": (3, 6), "alibi": (5, 3), "bias": (2, 3), "mask": (5, 4), "dropout": (60, 120)}
OF_ROWS = 8  # operations of a block of rows, besides those of its tiles
OF_CHUNK = 8  # operations of a chunk of heads: its keys and values are packed
HALF_SPEED_ROWS = 32  # of a product of matrices on a CPU that takes twice as long as it should, fitted to one CPU
OF_EDGE = (5, 8)  # for each side of the band, in each chunk: the tile of zeros and infinities is made


def blockwise(problem: AttentionProblem, device: DeviceProfile, config: Config) -> Footprint:
    """A loop over tiles of rows and keys for each chunk of heads; every operation uses all threads."""
    block_q, block_k, block_h = (config.integer(name) for name in ("block_q", "block_k", "block_h"))
    used = [cost for name, cost in FEATURES.items() if getattr(problem, name)]
    operations, passes = (base + sum(cost[item] for cost in used) for item, base in enumerate(
        BACKWARD if problem.op == "backward" else FORWARD
    ))  # fmt: skip
    started = scores = moved = 0.0
    for count, batch, rows, keys in _batches(problem):
        loops = loops_of_band(problem.band, rows, keys, block_q, block_k)
        chunks = count * math.ceil(batch * problem.heads_kv / max(1, block_h))
        pairs = count * batch * problem.heads_q * loops.pairs
        edges = _edges(problem, rows, keys, block_q, block_k)
        started += chunks * (loops.tiles * operations + loops.blocks * OF_ROWS + edges * OF_EDGE[0] + OF_CHUNK)
        scores += pairs
        moved += passes * pairs + chunks * edges * OF_EDGE[1] * block_q * block_k
        moved += count * batch * loops.tiles * _sums(problem, block_q, block_k)
    heads = min(block_h, max(1, problem.batch * problem.heads_kv)) * max(1, problem.group)
    threads = _threads(device, config)
    tile = heads * min(block_q, problem.seqlen_q) * min(block_k, problem.seqlen_k) / threads
    slower = _slower_by_rows(max(1, problem.group) * min(block_q, problem.seqlen_q), HALF_SPEED_ROWS)
    work = Work(threads, scores, moved, started, tile, slower=slower, copied=_copied(problem))
    return _footprint(problem, device, config, work)


def _batches(problem: AttentionProblem) -> list[tuple[float, int, int, int]]:
    """(how many, batch, rows, keys) of what the blockwise loops compute at a time: a batch as one, or each sequence."""
    if problem.layout == "dense" and not (problem.batch_index or problem.leftpad):
        return [(1.0, problem.batch, problem.seqlen_q, problem.seqlen_k)]
    return [(count, 1, rows, keys) for count, rows, keys in sequences(problem)]


def _edges(problem: AttentionProblem, rows: int, keys: int, block_q: int, block_k: int) -> float:
    """Tiles that hide some of their pairs and differ in where: they are made once for each chunk."""
    sides = (problem.band.left >= 0) + (problem.band.right >= 0)
    return sides * min(max(1.0, block_k / block_q), -(-rows // block_q)) if keys else 0.0


def _sums(problem: AttentionProblem, block_q: int, block_k: int) -> float:
    """Numbers read and written of the running sums of all heads in one tile of a sequence."""
    of_rows = problem.heads_q * min(block_q, problem.seqlen_q)
    if problem.op != "backward":
        return 4.0 * of_rows * problem.head_dim_v
    of_keys = problem.heads_kv * min(block_k, problem.seqlen_k)
    return 2.0 * (of_rows * problem.head_dim + of_keys * (problem.head_dim + problem.head_dim_v))


def _copied(problem: AttentionProblem) -> float:
    """Numbers read and written to pack rows and keys by heads."""
    keys = problem.heads_kv * problem.seqlen_k * (problem.head_dim + problem.head_dim_v)
    rows = problem.heads_q * problem.seqlen_q * (problem.head_dim + problem.head_dim_v)
    return 2.0 * problem.batch * (keys + rows) * (2 if problem.op == "backward" else 1) * filled(problem)


# ---------------------------------------------------------------------------------------------- PyTorch's kernel

CPU_ROWS = ((768, 256), (192, 64), (0, 32))  # rows of the CPU kernel's tiles, by the fewest query rows they are for
CPU_KEYS = 512
CPU_PASSES = 4  # over the scores of its tiles
CPU_HALF_SPEED_ROWS = 12  # as HALF_SPEED_ROWS, of the kernel's own tiles
OF_BLOCK = 12  # operations of a block of rows of a band, the kernel among them
OF_CALL = 3
OF_SEQUENCE, OF_PART = 6, 8  # operations of a sequence of a KV cache, and of each part of its pages
# How much longer 16-bit products take than those of float32 on a CPU that has no instructions for them, forward and
# backward: measured on one (Xeon, AVX-512).
HALF_SLOWER = {"forward": 1.1, "backward": 2.0, "decode": 1.1}


def fused(problem: AttentionProblem, device: DeviceProfile, config: Config) -> Footprint:
    """One call of PyTorch's own kernel, or one for each sequence of a packed batch."""
    if device.torch_type != "cpu":
        return _fused_on_device(problem, device)
    each = problem.layout == "varlen"
    shapes = [(count, 1 if each else problem.batch, rows, keys) for count, rows, keys in sequences(problem)]
    calls = sum(count for count, *_ in shapes) if each else 1.0
    parts = [(count if each else 1.0, _cpu_call(problem, problem.band, *shape)) for count, *shape in shapes]
    scores = math.fsum(count * part.scores for count, part in parts)
    longest = max(part.longest for _, part in parts)
    tasks = math.fsum(count * part.tasks for count, part in parts) / max(1.0, calls)
    tile = max(part.tile for _, part in parts)
    slower = max(part.slower for _, part in parts) * _slower(problem, device, config)
    work = Work(tasks, scores, CPU_PASSES * scores, calls * OF_CALL, tile, longest, slower)
    return _footprint(problem, device, config, work)


def banded(problem: AttentionProblem, device: DeviceProfile, config: Config) -> Footprint:
    """A call of PyTorch's CPU kernel for each block of rows, with the keys that its band shows."""
    block_q = min(config.integer("block_q"), max(1, problem.seqlen_q))
    loops = loops_of_band(problem.band, problem.seqlen_q, problem.seqlen_k, block_q, CPU_KEYS)
    mean = math.ceil(loops.pairs / max(1, problem.seqlen_q))  # keys of a block
    call = _cpu_call(problem, Band(), problem.batch, block_q, mean)
    scores = float(loops.pairs * problem.batch * problem.heads_q)
    passes = (CPU_PASSES + 1) * scores  # the bias of a band is read as well
    copied = _copied(problem) / 2  # rows are reversed
    work = Work(call.tasks, scores, passes, loops.blocks * OF_BLOCK, call.tile, slower=call.slower, copied=copied)
    return _footprint(problem, device, config, work)


def cached(problem: AttentionProblem, device: DeviceProfile, config: Config) -> Footprint:
    """A call of PyTorch's CPU kernel for each sequence, with the heads of a group as rows; pages are copied before."""
    group, rows = max(1, problem.group), max(1, problem.seqlen_q)
    apart = problem.layout == "paged" or problem.batch_index
    calls = problem.batch if apart else 1
    merged = replace(problem, heads_q=problem.heads_kv)
    call = _cpu_call(
        merged, problem.band if rows > 1 else Band(), problem.batch // calls, group * rows, problem.seqlen_k
    )
    parts, copied = 1.0, 0.0
    if problem.layout == "paged":
        numbers = problem.seqlen_k * problem.heads_kv * problem.head_dim  # of a sequence's keys
        parts = max(1.0, numbers * problem.torch_dtype.itemsize / (1024 * config.integer("gather")))
        copied = 4.0 * problem.batch * numbers
    scores = calls * call.scores
    operations = calls * (OF_SEQUENCE + parts * OF_PART)
    slower = call.slower * _slower(problem, device, config)
    work = Work(call.tasks, scores, CPU_PASSES * scores, operations, call.tile, call.longest, slower, copied)
    return _footprint(problem, device, config, work)


def _cpu_call(problem: AttentionProblem, band: Band, batch: int, rows: int, keys: int) -> Work:
    """The tasks of one call, a tile of rows of one head each, and the scores of all tiles, hidden ones left out."""
    heads = problem.heads_q
    if rows == 1 and problem.group > 1 and not problem.mask and not problem.need_lse:
        heads, rows = problem.heads_kv, problem.group  # the heads of a group become rows
    block_q = min(rows, next(size for least, size in CPU_ROWS if rows >= least))
    block_k = max(1, min(CPU_KEYS, keys))
    tiles = tiles_of_band(band, rows, keys, max(1, block_q), block_k)
    tile = float(block_q * block_k)
    scores = batch * heads * tiles.total * tile
    return Work(
        batch * heads * tiles.blocks,
        scores,
        0.0,
        1,
        tile,
        tiles.unevenness,
        _slower_by_rows(block_q, CPU_HALF_SPEED_ROWS),
    )


def _slower(problem: AttentionProblem, device: DeviceProfile, config: Config) -> float:
    half = problem.dtype in ("float16", "bfloat16") and not config.get("upcast", False)
    return HALF_SLOWER[problem.op] if half and not device.arch.endswith("-bf16") else 1.0


def _fused_on_device(problem: AttentionProblem, device: DeviceProfile) -> Footprint:
    """What a library's fused kernel must do at least."""
    pairs = problem.batch * problem.heads_q * problem.band.visible_pairs(problem.seqlen_q, problem.seqlen_k)
    memory = float(problem.bytes_moved())
    half = problem.dtype != "float32"
    return Footprint(
        blocks=1,
        threads=0,
        registers=0,
        shared_bytes=0,
        matrix_flops=float(problem.flops()) if half else 0.0,
        traffic=memory,
        vector_flops=0.0 if half else float(problem.flops()),
        exponentials=float(pairs),
        memory=memory,
        matrix_share=mma_sync_share(device.arch),
    )
