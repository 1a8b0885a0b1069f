"""The cases of the CPU benchmark: features, numbers of tokens, head dims and dtypes, with their random inputs."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from faops.problem import DTYPES

HEADS = 8
WINDOW = 256  # keys to the left that a row sees beside itself
SEED = 20
VARLEN_PARTS = (2, 4, 8, 16, 16)  # the sequences of a varlen batch are these parts of all tokens

TOKENS = (1024, 2048, 4096, 8192)
HEAD_DIMS = (64, 128)
FEWER_TOKENS = {128: (1024, 4096)}  # all lengths at both head dims would take twice as long and say no more
DTYPE_NAMES = ("float32", "bfloat16")


@dataclass(frozen=True)
class Feature:
    """One row of the feature matrix. ``needs_mask``: SDPA expresses it only through a mask of O(tokens²)."""

    name: str
    title: str
    causal: bool
    heads_kv: int = HEADS
    needs_mask: bool = False
    window: bool = False
    alibi: bool = False
    varlen: bool = False


FEATURES: dict[str, Feature] = {
    feature.name: feature
    for feature in (
        Feature("plain", "plain", causal=False),
        Feature("causal", "causal", causal=True),
        Feature("window", f"causal, window {WINDOW}", causal=True, needs_mask=True, window=True),
        Feature("alibi", "causal, ALiBi", causal=True, needs_mask=True, alibi=True),
        Feature("gqa", "causal, GQA 8:1", causal=True, heads_kv=1),
        Feature("varlen", "causal, 5 sequences", causal=True, needs_mask=True, varlen=True),
    )
}


@dataclass(frozen=True)
class Case:
    """Self-attention over ``tokens`` tokens, batch 1, HEADS query heads."""

    feature: str
    tokens: int
    head_dim: int
    dtype: str

    @property
    def kind(self) -> Feature:
        return FEATURES[self.feature]

    @property
    def torch_dtype(self) -> torch.dtype:
        return DTYPES[self.dtype]

    def with_tokens(self, tokens: int) -> Case:
        return dataclasses.replace(self, tokens=tokens)

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        return f"{self.feature} {self.tokens} d{self.head_dim} {self.dtype}"


@dataclass(frozen=True)
class Inputs:
    """q (1, tokens, heads, dim), k and v likewise with the key/value heads, and the gradient of the result."""

    q: Tensor
    k: Tensor
    v: Tensor
    dout: Tensor

    def leaves(self) -> tuple[Tensor, Tensor, Tensor]:
        """The same q, k and v as leaves that gather gradients."""
        q, k, v = (tensor.detach().requires_grad_() for tensor in (self.q, self.k, self.v))
        return q, k, v


def select(
    features: Sequence[str], tokens: Iterable[int], head_dims: Iterable[int], dtypes: Iterable[str]
) -> list[Case]:
    """The combinations, cases that share a compiled kernel side by side, short ones first."""
    return [
        Case(feature, length, head_dim, dtype)
        for feature, dtype, head_dim, length in itertools.product(features, dtypes, head_dims, sorted(tokens))
        if head_dim not in FEWER_TOKENS or length in FEWER_TOKENS[head_dim]
    ]


def make_inputs(case: Case) -> Inputs:
    """Standard normal tensors, the same in every process."""
    generator = torch.Generator().manual_seed(SEED)

    def normal(heads: int) -> Tensor:
        values = torch.randn(1, case.tokens, heads, case.head_dim, generator=generator)
        return values.to(case.torch_dtype)

    kv = case.kind.heads_kv
    return Inputs(normal(HEADS), normal(kv), normal(kv), normal(HEADS))


@functools.cache
def alibi_slopes() -> Tensor:
    """The geometric slopes of the ALiBi paper (Press et al. 2022), float32 (HEADS,)."""
    return torch.exp2(-8.0 * torch.arange(1, HEADS + 1, dtype=torch.float32) / HEADS)


def lengths(tokens: int) -> list[int]:
    """Lengths of the sequences of a varlen batch; they sum to ``tokens``, a multiple of 16."""
    return [tokens // part for part in VARLEN_PARTS]


def offsets(tokens: int) -> Tensor:
    """int32 (sequences + 1,): where each sequence begins, and the end."""
    return torch.tensor([0, *itertools.accumulate(lengths(tokens))], dtype=torch.int32)


def sequence_of(tokens: int) -> Tensor:
    """int64 (tokens,): the sequence that each token belongs to."""
    return torch.repeat_interleave(torch.tensor(lengths(tokens)))
