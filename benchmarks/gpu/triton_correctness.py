"""Section "triton_correctness": every Triton kernel and config against the float64 oracle, on random calls.

Most of its time goes into compiling, so its items run in several processes side by side.
"""

from __future__ import annotations

import functools
import random
import zlib
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import Any

import torch

from benchmarks.gpu import triton_decode
from benchmarks.gpu.options import Options
from benchmarks.gpu.outcome import Item, SkipError
from benchmarks.gpu.triton_calls import BACKEND, Place, Trial, hold, kernel_of
from faops.device import DeviceProfile
from faops.problem import DTYPE_NAMES, OPS, AttentionProblem, Op
from faops.registry import Rejected
from tests.support import FEATURES, compatible

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
HEAD_DIMS = (64, 96, 128, 256)
ODD_HEAD_DIMS = ((33, 40), (80, 127), (129, 192), (192, 64), (8, 1), (255, 256))
CONFIG_HEAD_DIMS = (64, 128, 256)
SIZES = (1, 63, 65, 127, 129, 257, 300)
CAPACITIES = (65, 300, 520)
TINY = (1, 17, 33, 65)  # in place of both in the interpreter, which is slow
CONFIG_LENGTH = 300
# What a forward kernel sees of a call; backward sees everything.
SEEN: dict[Op, tuple[str, ...]] = {
    "forward": tuple(name for name in FEATURES if name not in ("lse_grad", "deterministic")),
    "backward": tuple(FEATURES),
    "decode": triton_decode.FEATURES,
}
ROTATED: dict[Op, tuple[tuple[str, ...], ...]] = {
    "forward": ((), ("causal",), ("varlen", "causal"), ("mask",), ("window", "gqa"), ("bias",)),
    "backward": ((), ("causal",), ("varlen", "causal"), ("mask",), ("window", "gqa"), ("dropout",)),
    "decode": (("gqa",), ("gqa", "paged16", "prefill"), ("gqa", "causal", "prefill"), ("gqa", "paged1", "window")),
}
FORWARDS = ("cuda_raw", "torch")  # backends whose results the backward takes over
MIXES = 12  # random sets of features for each op
MIX_SIZE = 4
QUICK_STEP = 6  # a quick run tries one config in so many


def items(options: Options) -> list[Item]:
    place = Place.of(options.card)
    if reason := unavailable(place.profile):
        return [Item("all", functools.partial(_skip, reason))]
    return [Item(str(trial), functools.partial(hold, trial, place)) for trial in trials(options, place.profile)]


def unavailable(profile: DeviceProfile) -> str:
    """Why Triton's kernels do not run on a device; "" if they do."""
    decision = kernel_of("forward").check(AttentionProblem(), profile)
    return "; ".join(decision.reasons) if isinstance(decision, Rejected) else ""


def trials(options: Options, profile: DeviceProfile) -> list[Trial]:
    """What is tried, the most telling first: each with a seed of its own, made of its text and the run's seed."""
    chance = Chance(options)
    found = [*_features(chance), *_head_dims(chance), *_mixes(chance), *_handed_over(chance)]
    found += list(_configs(profile, chance))[:: QUICK_STEP if options.quick else 1]
    return [replace(trial, seed=zlib.crc32(f"{options.seed} {trial}".encode())) for trial in found]


class Chance:
    """Draws what a run's trials leave open."""

    def __init__(self, options: Options) -> None:
        self.random = random.Random(options.seed)
        self._tiny = bool(options.card)

    def shape(self, op: Op, head_dim: int, head_dim_v: int | None = None) -> dict[str, int]:
        if op == "decode":
            return {"capacity": max(self.random.choice(TINY if self._tiny else CAPACITIES), 33), "head_dim": head_dim}
        sizes = TINY if self._tiny else SIZES
        return {
            "seqlen_q": self.random.choice(sizes), "seqlen_k": self.random.choice(sizes),
            "head_dim": head_dim, "head_dim_v": head_dim_v or head_dim,
        }  # fmt: skip

    def config_shape(self, op: Op, head_dim: int) -> dict[str, int]:
        """Several tiles of every config, the last one not whole; fewer in the interpreter."""
        length = max(TINY) if self._tiny else CONFIG_LENGTH
        if op == "decode":
            return {"capacity": length, "head_dim": head_dim}
        return {"seqlen_q": length, "seqlen_k": length - self.random.randrange(7), "heads_q": 2, "heads_kv": 2,
                "head_dim": head_dim, "head_dim_v": head_dim}  # fmt: skip


def _features(chance: Chance) -> Iterator[Trial]:
    """Each feature alone with the default config."""
    for dtype, op in product(DTYPES, OPS):
        for features in ((), *((name,) for name in SEEN[op])):
            yield Trial(op, dtype, features, shape=chance.shape(op, 64))


def _head_dims(chance: Chance) -> Iterator[Trial]:
    """Every size and some odd ones with the default configs."""
    for dtype, op, pair in product(DTYPES, OPS, [*((size, size) for size in HEAD_DIMS), *ODD_HEAD_DIMS]):
        features = ("gqa", "value_dim") if op == "decode" and pair[0] != pair[1] else ("causal",)
        yield Trial(op, dtype, features, shape=chance.shape(op, *pair))


def _mixes(chance: Chance) -> Iterator[Trial]:
    """Random features together."""
    for op in OPS:
        fits = triton_decode.compatible if op == "decode" else compatible
        for _ in range(MIXES):
            features = tuple(sorted(chance.random.sample(SEEN[op], MIX_SIZE)))
            while not fits(features):
                features = tuple(sorted(chance.random.sample(SEEN[op], MIX_SIZE)))
            yield Trial(
                op, chance.random.choice(DTYPES), features, shape=chance.shape(op, chance.random.choice(HEAD_DIMS))
            )


def _handed_over(chance: Chance) -> Iterator[Trial]:
    """Backward from what another backend's forward gives."""
    for backend, dtype, features in product(FORWARDS, DTYPES[:2], ((), ("causal", "gqa"), ("varlen",), ("sinks",))):
        yield Trial("backward", dtype, features, shape=chance.shape("backward", 128), forward=backend)


def _configs(profile: DeviceProfile, chance: Chance) -> Iterator[Trial]:
    """Every config of the space; 16-bit dtypes and features take turns."""
    for op, head_dim, wide in product(OPS, CONFIG_HEAD_DIMS, (False, True)):
        dtypes = DTYPES[2:] if wide else DTYPES[:2]
        problem = AttentionProblem(
            op, DTYPE_NAMES[dtypes[0]], seqlen_q=CONFIG_LENGTH, seqlen_k=CONFIG_LENGTH, heads_q=4, heads_kv=4,
            head_dim=head_dim, head_dim_v=head_dim,
        )  # fmt: skip
        if op == "decode":
            problem = replace(problem, seqlen_q=1, heads_q=8, heads_kv=2)
        for number, config in enumerate(kernel_of(op).configs(problem, profile)):
            features = ROTATED[op][number % len(ROTATED[op])]
            yield Trial(op, dtypes[number % len(dtypes)], features, config, chance.config_shape(op, head_dim))


def _skip(reason: str) -> dict[str, Any]:
    raise SkipError(f"{BACKEND}: {reason}")
