"""The calls whose kernel the gates look at: head dim, dtype, feature and config, on a 910B."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from faops.backends.triton.ascend import forward, space
from faops.backends.triton.launch import Launch, Tensors
from faops.device import known
from faops.hollow import hollow_inputs
from faops.inputs import AttentionInputs
from faops.problem import AttentionProblem, Band
from faops.registry import Config

DEVICE = known("910b")
HEAD_DIMS = (32, 40, 64, 96, 128, 192, 256)
DTYPES = ("float16", "bfloat16", "float32")
BATCH, HEADS, HEADS_KV, SEQLEN = 2, 4, 2, 512  # none is 1, which the compiler would take for a constant

# What a feature changes in a causal call.
FEATURES: dict[str, dict[str, Any]] = {
    "causal": {},
    "full": {"band": Band()},
    "window": {"band": Band(left=48, right=16)},
    "softcap": {"softcap": True},
    "alibi": {"alibi": True},
    "bias": {"bias": "bhmn"},
    "bias of keys": {"bias": ".h.n"},
    "bias of rows": {"bias": "bhm."},
    "mask": {"mask": "bhmn"},
    "mask of keys": {"mask": "b..n"},
    "mask of rows": {"mask": "b.m."},
    "sinks": {"sinks": True},
    "lse": {"need_lse": True},
    "varlen": {"layout": "varlen", "need_lse": True},
    "few": {"seqlen_q": 16},  # rows
    "everything": {"band": Band(48, 16), "layout": "varlen", "softcap": True, "alibi": True, "bias": "bhmn",
                   "mask": "b..n", "sinks": True, "need_lse": True},
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One call."""

    head_dim: int
    dtype: str
    feature: str  # one of FEATURES
    config: Config

    @property
    def problem(self) -> AttentionProblem:
        return problem_of(self.head_dim, self.dtype, self.feature)

    def launch(self) -> tuple[Launch, Tensors]:
        """The one launch of the call, with tensors that hold nothing."""
        inputs = hollow_inputs(self.problem)
        assert isinstance(inputs, AttentionInputs)
        return forward.launches(inputs, self.config)[0]

    def __str__(self) -> str:
        block_m, block_n, programs = (self.config.integer(name) for name in ("block_m", "block_n", "programs"))
        buffers = 2 if self.config["multibuffer"] else 1
        return f"d{self.head_dim} {self.dtype} {self.feature} [{block_m}x{block_n} {programs}p {buffers}b]"


def problem_of(head_dim: int, dtype: str, feature: str) -> AttentionProblem:
    plain: dict[str, Any] = {
        "dtype": dtype, "batch": BATCH, "seqlen_q": SEQLEN, "seqlen_k": SEQLEN, "heads_q": HEADS,
        "heads_kv": HEADS_KV, "head_dim": head_dim, "head_dim_v": head_dim, "band": Band(right=0),
    }  # fmt: skip
    return AttentionProblem(**{**plain, **FEATURES[feature]})


def defaults(head_dims: Sequence[int], dtypes: Sequence[str], features: Sequence[str]) -> Iterator[Case]:
    """The default config of every combination."""
    for head_dim in head_dims:
        for dtype in dtypes:
            for feature in features:
                config = space.forward_default(problem_of(head_dim, dtype, feature), DEVICE)
                yield Case(head_dim, dtype, feature, config)


def spaces(head_dims: Sequence[int], dtypes: Sequence[str], features: Sequence[str]) -> Iterator[Case]:
    """Every config of the tuning spaces. The number of programs changes nothing that is compiled."""
    for head_dim in head_dims:
        for dtype in dtypes:
            for feature in features:
                for config in space.forward_space(problem_of(head_dim, dtype, feature), DEVICE):
                    if config["programs"] == DEVICE.units:
                        yield Case(head_dim, dtype, feature, config)
