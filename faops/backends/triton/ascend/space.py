"""Tile configs for an Ascend NPU: which fit its buffers, which are in the tuning space, and which is the default.

A config holds ``block_m`` query rows and ``block_n`` keys of a tile, how many ``programs`` share the tiles of rows, and
``multibuffer``: whether what moves between memory and a buffer has two of them, so that moving overlaps computing.

An AI core of the 910B has a cube core, which multiplies, and two vector cores, which share the rows of a tile. Sizes of
their buffers: CATLASS, include/acot/arch/arch.hpp, AtlasA2; the 192 KB of a vector core and the number of programs also
triton-ascend's "Triton Operator Development Guide" and "Development Differences Between Ascend and GPUs".
"""

from __future__ import annotations

from faops.backends.triton.specialize import LARGEST_TILE, width
from faops.device import DeviceProfile
from faops.problem import AttentionProblem
from faops.registry import Config

KIB = 1024
UNIFIED_BYTES = 192 * KIB  # of a vector core
L1_BYTES = 512 * KIB  # of a cube core: what it is to multiply
VECTOR_CORES = 2  # of an AI core
FRACTAL = 16  # rows and columns of the smallest matrix that the cube unit takes
MOST_PROGRAMS = 65535  # of a grid, all axes together
CORES = 20  # of a 910B whose count is not known

ROWS, KEYS = (128, 64, 32, 16), (256, 128, 64, 32)  # of the tuning space
DEFAULT_KEYS = 128  # at most: what most of the tutorial's cases have
SMALLEST = 4  # part of the default's tile that a tile has at least
VARIANTS = ((True, 1), (True, 2), (False, 1))  # multibuffer, and programs for each core


def make_config(block_m: int, block_n: int, programs: int, multibuffer: bool = True) -> Config:
    return Config(block_m=block_m, block_n=block_n, programs=programs, multibuffer=multibuffer)


def forward_default(problem: AttentionProblem, device: DeviceProfile) -> Config:
    """The largest tile with two buffers that fits, a program to a core: by rule, measured by nobody."""
    tiles = sorted(_tiles(problem), key=lambda tile: (tile[1] > DEFAULT_KEYS, -tile[0] * tile[1], tile[0]))
    candidates = [make_config(*tile, _cores(device), multibuffer) for multibuffer in (True, False) for tile in tiles]
    smallest = make_config(FRACTAL, FRACTAL, _cores(device), False)
    return next((config for config in candidates if fits(config, problem)), smallest)


def forward_space(problem: AttentionProblem, device: DeviceProfile) -> list[Config]:
    """The legal configs, the default first."""
    found = {forward_default(problem, device): None}
    largest = max(config.integer("block_m") * config.integer("block_n") for config in found)
    tiles = [(m, n) for m, n in _tiles(problem) if m * n * SMALLEST >= largest]
    for multibuffer, rounds in VARIANTS:
        for tile in tiles:
            config = make_config(*tile, min(rounds * _cores(device), MOST_PROGRAMS), multibuffer)
            if fits(config, problem):
                found[config] = None
    return list(found)


def _cores(device: DeviceProfile) -> int:
    return device.units or CORES


def _tiles(problem: AttentionProblem) -> list[tuple[int, int]]:
    """(rows, keys) of the tiles that have no more of them than the problem's, rounded up."""
    rows, keys = (min(LARGEST_TILE, width(length)) for length in (problem.seqlen_q, problem.seqlen_k))
    found = [(m, n) for m in ROWS for n in KEYS if m <= rows and n <= keys]
    return found or [(m, keys) for m in ROWS if m <= rows]


def fits(config: Config, problem: AttentionProblem) -> bool:
    """Whether the buffers of a core hold a tile, as far as counting tells; CANN's compiler has the last word.

    Of tiles whose sides are powers of two L0C, where the cube core leaves a product, holds all that these two hold.
    """
    return unified_bytes(config, problem) <= UNIFIED_BYTES and _l1_bytes(config, problem) <= L1_BYTES


def unified_bytes(config: Config, problem: AttentionProblem) -> int:
    """What a vector core holds of its share of a tile, in bytes.

    Scores, and two of the same size that are compared with or subtracted from them, beside the result so far; later the
    weights once more in the values' dtype, and two of the result's size. Softcap's tanh holds two more of the scores'
    size; ALiBi holds the keys' places. With two buffers what comes and goes is there twice: both products, the weights
    for the cube core, bias and mask. The gates hold this to be no less than what the compiled kernel has alive.
    """
    block_n = config.integer("block_n")
    scores, result = 4 * block_n, 4 * width(problem.head_dim_v)  # of a row
    weights = problem.torch_dtype.itemsize * block_n
    like_scores = (5 if problem.softcap else 3) + bool(problem.alibi)
    held = max(like_scores * scores + result, scores + weights + 2 * result) + 8 * 4  # and what has a number a row
    if config["multibuffer"]:
        held += scores + weights + result + block_n * ((4 if problem.bias else 0) + (1 if problem.mask else 0))
    return -(-config.integer("block_m") // VECTOR_CORES) * held + VECTOR_CORES * 4 * block_n


def _l1_bytes(config: Config, problem: AttentionProblem) -> int:
    """Queries, weights, keys and values once. Where there is no room for two of the latter they come one by one, as in
    the tutorial's case of 256 keys at head dim 256.
    """
    block_m, block_n = config.integer("block_m"), config.integer("block_n")
    wide, wide_v = width(problem.head_dim), width(problem.head_dim_v)
    return problem.torch_dtype.itemsize * (block_m * (wide + block_n) + block_n * (wide + wide_v))
