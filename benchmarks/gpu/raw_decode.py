"""Section "raw_decode": the KV-cache kernels in CUDA C++ against the float64 oracle, on random calls.

Most of its time goes into compiling, so its items run in several processes side by side.
"""

from __future__ import annotations

import functools
import os
import zlib
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import Any

import torch

from benchmarks.gpu import triton_decode
from benchmarks.gpu.options import Options
from benchmarks.gpu.outcome import Item, SkipError
from benchmarks.gpu.triton_calls import Place, Trial, hold, kernel_of
from benchmarks.gpu.triton_correctness import MIX_SIZE, QUICK_STEP, Chance
from faops.architectures import cuda_number
from faops.backends.cuda_raw.tiles import SM80
from faops.device import DeviceProfile
from faops.problem import DTYPE_NAMES, AttentionProblem
from faops.registry import Kernel, Rejected

HEAD_DIMS = (64, 96, 128, 256)
ODD_HEAD_DIMS = ((33, 40), (80, 127), (129, 192), (192, 64), (8, 1), (255, 256))
CONFIG_HEAD_DIMS = (64, 128, 256)
CONFIG_LENGTH = 300
MIXES = 24  # random sets of features
# Tried with the configs of the tuning space, in turn.
ROTATED = (("gqa",), ("gqa", "paged16", "prefill"), ("gqa", "causal", "prefill"), ("gqa", "paged1", "window", "splits"))


def own_kernel(profile: DeviceProfile) -> Kernel:
    """The KV-cache kernel that is written for a device."""
    family = "sm75" if cuda_number(profile.arch) < SM80.arch else "sm80"
    return kernel_of("decode", f"cuda_raw.{family}_decode")


def items(options: Options) -> list[Item]:
    if options.card:
        os.environ["FAOPS_EMULATE"] = options.card  # of this process, which does nothing else
    place = Place.of(options.card)
    decision = own_kernel(place.profile).check(AttentionProblem("decode", "float16"), place.profile)
    if isinstance(decision, Rejected):
        return [Item("all", functools.partial(_skip, "; ".join(decision.reasons)))]
    return [Item(str(trial), functools.partial(hold, trial, place)) for trial in trials(options, place.profile)]


def dtypes(profile: DeviceProfile) -> tuple[torch.dtype, ...]:
    """What the device's tensor cores multiply."""
    return (torch.float16,) if cuda_number(profile.arch) < SM80.arch else (torch.bfloat16, torch.float16)


def trials(options: Options, profile: DeviceProfile) -> list[Trial]:
    """What is tried, the most telling first: each with a seed of its own, made of its text and the run's seed."""
    chance, kernel = Chance(options), own_kernel(profile)
    found = [*_features(chance, profile), *_head_dims(chance, profile), *_mixes(chance, profile)]
    found += list(_configs(chance, profile))[:: QUICK_STEP if options.quick else 1]
    named = (replace(trial, kernel=kernel.id) for trial in found)
    return [replace(trial, seed=zlib.crc32(f"{options.seed} {trial}".encode())) for trial in named]


def _features(chance: Chance, profile: DeviceProfile) -> Iterator[Trial]:
    """Each feature alone, and with grouped heads and several splits, with the default config."""
    for dtype, feature in product(dtypes(profile), ((), *((name,) for name in triton_decode.FEATURES))):
        for features in (feature, tuple(dict.fromkeys((*feature, "gqa", "splits")))):
            if triton_decode.compatible(features):
                yield Trial("decode", dtype, features, shape=chance.shape("decode", 64))


def _head_dims(chance: Chance, profile: DeviceProfile) -> Iterator[Trial]:
    """Every size and some odd ones with the default configs."""
    for dtype, (dim, dim_v) in product(dtypes(profile), [*((size, size) for size in HEAD_DIMS), *ODD_HEAD_DIMS]):
        features = ("append", "gqa", "rotary", *(("value_dim",) if dim != dim_v else ()))
        yield Trial("decode", dtype, features, shape=chance.shape("decode", dim))


def _mixes(chance: Chance, profile: DeviceProfile) -> Iterator[Trial]:
    """Random features together."""
    for _ in range(MIXES):
        features: tuple[str, ...] = ()
        while not features or not triton_decode.compatible(features):
            features = tuple(sorted(chance.random.sample(triton_decode.FEATURES, MIX_SIZE)))
        dtype, dim = chance.random.choice(dtypes(profile)), chance.random.choice(HEAD_DIMS)
        yield Trial("decode", dtype, features, shape=chance.shape("decode", dim))


def _configs(chance: Chance, profile: DeviceProfile) -> Iterator[Trial]:
    """Every config of the space; dtypes and features take turns."""
    kernel, own = own_kernel(profile), dtypes(profile)
    for head_dim in CONFIG_HEAD_DIMS:
        problem = AttentionProblem(
            "decode", DTYPE_NAMES[own[0]], seqlen_q=1, seqlen_k=CONFIG_LENGTH, heads_q=8, heads_kv=2,
            head_dim=head_dim, head_dim_v=head_dim,
        )  # fmt: skip
        for number, config in enumerate(kernel.configs(problem, profile)):
            features = ROTATED[number % len(ROTATED)]
            shape = chance.config_shape("decode", head_dim)
            yield Trial("decode", own[number % len(own)], features, config, shape)


def _skip(reason: str) -> dict[str, Any]:
    raise SkipError(reason)
