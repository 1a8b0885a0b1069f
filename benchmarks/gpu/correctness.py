"""Section "correctness": every kernel and config of both families against the float64 oracle, on random calls."""

from __future__ import annotations

import functools
import random
import zlib
from collections.abc import Iterator
from dataclasses import replace

import torch

from benchmarks.gpu.attention import DTYPES, FAMILIES, Trial, hold
from benchmarks.gpu.options import Options
from benchmarks.gpu.outcome import Item
from benchmarks.gpu.runners import runners_for
from faops.backends.cuda_raw.space import space
from faops.device import DeviceProfile, detect, known
from tests.support import FORWARD, compatible

HEAD_DIMS = (64, 96, 128, 256)
ODD_HEAD_DIMS = ((33, 40), (40, 33), (80, 127), (127, 80), (129, 192), (192, 64), (8, 1), (255, 256))
SIZES = (1, 63, 65, 127, 129, 257, 300)
ROTATED: tuple[tuple[str, ...], ...] = ((), ("causal",), ("varlen", "causal"), ("mask",), ("window", "gqa"), ("bias",))
MIXES = 12  # random sets of features for each family
MIX_SIZE = 4
QUICK_STEP = 8  # a quick run tries one config in so many


def items(options: Options) -> list[Item]:
    """Every trial; on a device newer than Turing, its family's default configs come again as Turing's code."""
    return [
        Item(f"{trial}{suffix}", functools.partial(hold, trial, runner))
        for suffix, runner in runners_for(options.card).items()
        for trial in trials(options)
        if not suffix or (trial.family == "sm75" and trial.config is None)
    ]


def trials(options: Options) -> list[Trial]:
    """What is tried, the most telling first: each with a seed of its own, made of its text and the run's seed."""
    profile = known(options.card) if options.card else detect(torch.device("cuda", torch.cuda.current_device()))
    families = [name for name in FAMILIES if not options.card or FAMILIES[name].family.arch <= _number(profile)]
    chance = random.Random(options.seed)
    found: list[Trial] = []
    for family in families:
        found += _features(family, chance)
    for family in families:
        found += _head_dims(family, chance)
    for family in families:
        found += _mixes(family, chance)
    for family in families:
        found += list(_configs(family, profile, chance))[:: QUICK_STEP if options.quick else 1]
    return [replace(trial, seed=zlib.crc32(f"{options.seed} {trial}".encode())) for trial in found]


def _number(profile: DeviceProfile) -> int:
    return int(profile.arch.removeprefix("sm_"))


def _shape(chance: random.Random, head_dim: int, head_dim_v: int | None = None, heads: int = 4) -> dict[str, int]:
    return {
        "seqlen_q": chance.choice(SIZES), "seqlen_k": chance.choice(SIZES), "heads_q": heads, "heads_kv": heads,
        "head_dim": head_dim, "head_dim_v": head_dim_v or head_dim,
    }  # fmt: skip


def _features(family: str, chance: random.Random) -> list[Trial]:
    """Each feature alone with the default config."""
    return [
        Trial(family, dtype, features, shape=_shape(chance, 64))
        for dtype in DTYPES[family]
        for features in ((), *((name,) for name in FORWARD))
    ]


def _head_dims(family: str, chance: random.Random) -> list[Trial]:
    """Every size and some odd ones, with the default configs for few rows and for enough to fill a device."""
    dims = [(size, size) for size in HEAD_DIMS] + list(ODD_HEAD_DIMS)
    few = [
        Trial(family, dtype, ("causal",), shape=_shape(chance, *pair, heads=2))
        for dtype in DTYPES[family]
        for pair in dims
    ]
    many = [
        Trial(family, dtype, ("causal",), shape={**_shape(chance, size, heads=96), "seqlen_q": 129})
        for dtype in DTYPES[family]
        for size in HEAD_DIMS
    ]
    return few + many


def _mixes(family: str, chance: random.Random) -> list[Trial]:
    """Random features together."""
    found: list[Trial] = []
    while len(found) < MIXES:
        features = tuple(sorted(chance.sample(FORWARD, MIX_SIZE)))
        if compatible(features):
            dtype = chance.choice(DTYPES[family])
            found.append(Trial(family, dtype, features, shape=_shape(chance, chance.choice(HEAD_DIMS))))
    return found


def _configs(family: str, profile: DeviceProfile, chance: random.Random) -> Iterator[Trial]:
    """Every legal config of every head dim; dtypes and features take turns."""
    number = 0
    for head_dim in HEAD_DIMS:
        for config in space(FAMILIES[family].family, head_dim, head_dim, profile):
            dtypes = DTYPES[family]
            shape = {**_shape(chance, head_dim, heads=2), "seqlen_q": 300, "seqlen_k": 300 - number % 7}
            yield Trial(family, dtypes[number % len(dtypes)], ROTATED[number % len(ROTATED)], config, shape)
            number += 1
