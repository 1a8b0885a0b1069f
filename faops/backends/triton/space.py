"""Tile configs: which are legal on a device, which are in the tuning space, and which is the default.

A config of the forward kernel holds ``block_m`` query rows and ``block_n`` keys a tile, ``num_warps`` and
``num_stages``, the blocks of keys and values in flight at a time, and ``warp_specialize`` where that is true.
"""

from __future__ import annotations

from faops import defaults
from faops.backends.triton import versions
from faops.backends.triton.specialize import width
from faops.defaults import ShippedDefault
from faops.device import DeviceProfile
from faops.problem import AttentionProblem
from faops.registry import Config

SCRATCH = 16 * 1024  # bytes; the most that was seen
# Where Triton gives loads, products and softmax warps of their own. On Hopper it leaves loops with plain pointers as
# they are, or fails.
WARP_SPECIALIZED = ("sm_100", "sm_103")
BARRIERS = 1024  # bytes at most
LEAST_ROWS = 16  # of a tile that tl.dot takes


def make_config(block_m: int, block_n: int, num_warps: int, num_stages: int) -> Config:
    return Config(block_m=block_m, block_n=block_n, num_warps=num_warps, num_stages=num_stages)


def forward_shared_bytes(config: Config, problem: AttentionProblem) -> int:
    """What a block takes at most: keys and values in every stage, and queries once."""
    element = problem.torch_dtype.itemsize
    wide, wide_v = width(problem.head_dim), width(problem.head_dim_v)
    keys = config.integer("block_n") * config.integer("num_stages") * (wide + wide_v)
    return element * (keys + config.integer("block_m") * wide)


def forward_default(problem: AttentionProblem, device: DeviceProfile) -> Config:
    """The shipped config, with no more rows than there are."""
    return few_rows(Config(forward_shipped(problem, device).config), problem)


def forward_shipped(problem: AttentionProblem, device: DeviceProfile) -> ShippedDefault:
    """The shipped default of the forward kernel for many rows."""
    return defaults.lookup("triton.forward", problem, device, case_of(problem))


def case_of(problem: AttentionProblem) -> str:
    """What shipped defaults tell apart: "crowded", "plain", or "scored" where only arithmetic on scores is added."""
    return "crowded" if is_crowded(problem) else "plain" if is_plain(problem) else "scored"


def is_crowded(problem: AttentionProblem) -> bool:
    """Whether tiles of something else than scores take registers, so that the largest tiles would spill."""
    return bool(problem.dropout or problem.bias or problem.mask)


def is_plain(problem: AttentionProblem) -> bool:
    """Whether nothing happens to scores but scaling and, for a causal band, hiding."""
    bare = problem.band.full or problem.band.causal
    return bare and not (problem.softcap or problem.alibi or is_crowded(problem))


def few_rows(config: Config, problem: AttentionProblem) -> Config:
    """``config`` with no more rows than there are."""
    rows = max(LEAST_ROWS, width(problem.seqlen_q))
    if rows >= config.integer("block_m"):
        return config
    warps = min(config.integer("num_warps"), 4)
    return make_config(rows, config.integer("block_n"), warps, config.integer("num_stages"))


def forward_space(problem: AttentionProblem, device: DeviceProfile) -> list[Config]:
    """The legal configs, the default among them."""
    wide = max(width(problem.head_dim), width(problem.head_dim_v))
    if problem.dtype == "float32":
        tiles = [(32, 16, 4), (32, 32, 4), (64, 32, 8), (64, 16, 4), (32, 16, 8)]
    elif wide <= 64:
        tiles = [(64, 32, 4), (64, 64, 4), (64, 128, 4), (128, 32, 4), (128, 64, 4), (128, 64, 8), (128, 128, 8)]
    elif wide <= 128:
        tiles = [(64, 32, 4), (64, 64, 4), (64, 128, 4), (128, 32, 4), (128, 32, 8), (128, 64, 8), (128, 128, 8)]
    else:
        tiles = [(64, 32, 4), (64, 32, 8), (64, 64, 8), (128, 32, 8)]
    found = [forward_default(problem, device)]
    for block_m, block_n, warps in tiles:
        for stages in (1, 2) if problem.dtype == "float32" else (2, 3):
            config = make_config(block_m, block_n, warps, stages)
            fits = forward_shared_bytes(config, problem) <= device.limits.shared_per_block
            if fits and config not in found:
                found.append(config)
    if device.arch in WARP_SPECIALIZED and versions.has_warp_specialization():
        limit = device.limits.shared_per_block
        pipelined = [config for config in found if config["num_stages"] != 1]
        fitting = [config for config in pipelined if _specialized_shared_bytes(config, problem) <= limit]
        found += [Config({**config, "warp_specialize": True}) for config in fitting]
    return found


def _specialized_shared_bytes(config: Config, problem: AttentionProblem) -> int:
    """What a block with warps of several kinds takes: one block of keys more, and barriers."""
    keys = config.integer("block_n") * width(problem.head_dim) * problem.torch_dtype.itemsize
    return forward_shared_bytes(config, problem) + keys + BARRIERS


def make_backward_config(
    block_outer: int, block_inner: int, num_warps: int, num_stages: int, atomic_dq: bool = False
) -> Config:
    """``block_outer`` rows or keys that a program owns, and ``block_inner`` of the other that it steps over.

    With ``atomic_dq`` the kernel that owns keys also adds to dQ: five products a tile in place of seven, in no order.
    """
    return Config(
        block_outer=block_outer, block_inner=block_inner, num_warps=num_warps, num_stages=num_stages,
        atomic_dq=atomic_dq,
    )  # fmt: skip


def backward_shared_bytes(config: Config, problem: AttentionProblem) -> int:
    """What a block takes at most: two stepped-over tiles in every stage, two of its own, and what the compiler needs
    to change layouts.
    """
    outer, inner = config.integer("block_outer"), config.integer("block_inner")
    both = width(problem.head_dim) + width(problem.head_dim_v)
    tiles = inner * config.integer("num_stages") * both + outer * both
    return problem.torch_dtype.itemsize * tiles + SCRATCH


def backward_default(problem: AttentionProblem, device: DeviceProfile) -> Config:
    """The shipped config."""
    return Config(backward_shipped(problem, device).config)


def backward_shipped(problem: AttentionProblem, device: DeviceProfile) -> ShippedDefault:
    """The shipped default of the backward kernels."""
    return defaults.lookup("triton.backward", problem, device, case_of(problem))


def backward_space(problem: AttentionProblem, device: DeviceProfile) -> list[Config]:
    """The legal configs, the default among them; those with atomic sums only where order may differ."""
    wide = max(width(problem.head_dim), width(problem.head_dim_v))
    stages: tuple[int, ...] = (1,) if problem.dtype == "float32" else (2, 3) if wide <= 128 else (1, 2)
    if problem.dtype == "float32":
        tiles = [(16, 16, 4), (16, 16, 8), (32, 16, 8), (32, 32, 8)]
        atomic = tiles[:3]
    elif wide <= 64:
        tiles = atomic = [(64, 32, 4), (64, 64, 4), (64, 64, 8), (128, 32, 8), (128, 64, 8)]
    elif wide <= 128:
        tiles = [(64, 32, 4), (64, 32, 8), (64, 64, 8), (128, 32, 8), (128, 64, 8)]
        atomic = tiles[1:4]  # with a product more the others spill much
    else:
        tiles, atomic = [(32, 32, 8), (64, 32, 8)], [(32, 32, 8)]
    found = [backward_default(problem, device)]
    candidates = [(tile, False) for tile in tiles]
    if not problem.deterministic:
        candidates += [(tile, True) for tile in atomic]
    for (outer, inner, warps), atomic_dq in candidates:
        for count in stages:
            config = make_backward_config(outer, inner, warps, count, atomic_dq)
            fits = backward_shared_bytes(config, problem) <= device.limits.shared_per_block
            if fits and config not in found:
                found.append(config)
    return found
