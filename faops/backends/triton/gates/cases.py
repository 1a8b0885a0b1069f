"""The calls whose kernels the gates look at: architecture, kernel, head dim, dtype, feature and config."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from faops.architectures import KNOWN_DEVICES
from faops.autotune.measurement.synthetic import inputs_for
from faops.backends.triton import backward, decode, forward
from faops.backends.triton.base import TritonKernel
from faops.backends.triton.launch import Launch, Tensors
from faops.device import DeviceProfile, known
from faops.hollow import Inputs
from faops.inputs import AttentionInputs, BackwardInputs, DecodeInputs
from faops.problem import AttentionProblem, Band, Op
from faops.registry import Config

KERNELS: dict[str, TritonKernel] = {
    "forward": forward.TritonForward(),
    "backward": backward.TritonBackward(),
    "decode": decode.TritonDecode(),
}
ARCHS = ("sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120")
HEAD_DIMS = (32, 64, 96, 128, 192, 256)
DTYPES = ("float16", "bfloat16", "float32")

BATCH, HEADS, HEADS_KV = 2, 4, 2  # none is 1, which the compiler would take for a constant
SEQLEN = 256  # more than the rows of any tile
CACHE = 2048  # keys: enough for several splits
CAUSAL, WINDOW = Band(right=0), Band(left=48, right=0)

# What a feature changes in a causal call. Of a cache, "causal" is one new token a sequence.
FEATURES: dict[str, dict[str, Any]] = {
    "causal": {},
    "full": {"band": Band()},
    "window": {"band": WINDOW},
    "softcap": {"softcap": True},
    "alibi": {"alibi": True},
    "bias": {"bias": "bhmn"},
    "mask": {"mask": "bhmn"},
    "sinks": {"sinks": True},
    "dropout": {"dropout": True},
    "varlen": {"layout": "varlen"},
    "few": {"seqlen_q": 16},  # rows
    "chunk": {"seqlen_q": 128},  # rows
    "paged": {"layout": "paged", "page_size": 16},
    "rotary": {"append": True, "rotary": "interleaved"},
    "ragged": {"leftpad": True, "batch_index": True},
}
OF_CACHE = ("chunk", "paged", "rotary", "ragged")
NOT_OF_CACHE = ("full", "dropout", "varlen", "few")


@dataclass(frozen=True)
class Case:
    """One call on one architecture."""

    arch: str
    kernel: str  # one of KERNELS
    head_dim: int
    dtype: str
    feature: str  # one of FEATURES
    config: Config

    @property
    def device(self) -> DeviceProfile:
        return device_of(self.arch)

    @property
    def is_default(self) -> bool:
        """Whether the kernel takes this config unless tuned."""
        problem = problem_of(self.kernel, self.head_dim, self.dtype, self.feature)
        return self.config == KERNELS[self.kernel].default_config(problem, self.device)

    def launches(self) -> list[tuple[Launch, Tensors]]:
        """Every launch of the call, with tensors on the CPU."""
        inputs = _inputs(self.kernel, self.head_dim, self.dtype, self.feature)
        if isinstance(inputs, AttentionInputs):
            return forward.launches(inputs, self.config)
        if isinstance(inputs, BackwardInputs):
            return backward.launches(inputs, self.config)
        assert isinstance(inputs, DecodeInputs)
        return decode.launches(inputs, self.config, self.device)

    def __str__(self) -> str:
        values = " ".join(str(value) for value in self.config.values())
        return f"{self.arch} {self.kernel} d{self.head_dim} {self.dtype} {self.feature} [{values}]"


@functools.cache
def device_of(arch: str) -> DeviceProfile:
    """A well-known device of that architecture."""
    return known(next(name for name, device in KNOWN_DEVICES.items() if device.arch == arch))


def problem_of(kernel: str, head_dim: int, dtype: str, feature: str) -> AttentionProblem:
    op: Op = KERNELS[kernel].op
    decoding = op == "decode"
    plain: dict[str, Any] = {
        "op": op,
        "dtype": dtype,
        "batch": BATCH,
        "seqlen_q": 1 if decoding else SEQLEN,
        "seqlen_k": CACHE if decoding else SEQLEN,
        "heads_q": HEADS,
        "heads_kv": HEADS_KV,
        "head_dim": head_dim,
        "head_dim_v": head_dim,
        "band": CAUSAL,
        "need_lse": True,
    }
    problem = AttentionProblem(**{**plain, **FEATURES[feature]})
    if op == "backward" and problem.bias:
        return replace(problem, bias_grad=True)
    return problem


@functools.lru_cache(maxsize=64)
def _inputs(kernel: str, head_dim: int, dtype: str, feature: str) -> Inputs:
    return inputs_for(problem_of(kernel, head_dim, dtype, feature), "cpu")


def features(kernel: str) -> list[str]:
    """The features that a kernel has."""
    left_out = NOT_OF_CACHE if KERNELS[kernel].op == "decode" else OF_CACHE
    return [feature for feature in FEATURES if feature not in left_out]


def defaults(
    archs: Sequence[str],
    kernels: Sequence[str],
    head_dims: Sequence[int],
    dtypes: Sequence[str],
    wanted: Sequence[str],
) -> Iterator[Case]:
    """The default config of every combination that exists."""
    for arch in archs:
        for kernel in kernels:
            for head_dim in head_dims:
                for dtype in dtypes:
                    for feature in wanted:
                        if feature in features(kernel):
                            problem = problem_of(kernel, head_dim, dtype, feature)
                            config = KERNELS[kernel].default_config(problem, device_of(arch))
                            yield Case(arch, kernel, head_dim, dtype, feature, config)


def spaces(
    archs: Sequence[str], kernels: Sequence[str], head_dims: Sequence[int], dtypes: Sequence[str]
) -> Iterator[Case]:
    """Every config of the tuning spaces, in causal calls."""
    for arch in archs:
        for kernel in kernels:
            for head_dim in head_dims:
                for dtype in dtypes:
                    problem = problem_of(kernel, head_dim, dtype, "causal")
                    for config in KERNELS[kernel].configs(problem, device_of(arch)):
                        yield Case(arch, kernel, head_dim, dtype, "causal", config)
