"""Random tensors for calls of the contract double's operators, and results to compare with."""

from __future__ import annotations

import torch
from torch import Tensor

from faops import reference

COMPRESSED = torch.ones(2048, 2048, dtype=torch.bool).triu(1)
TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}


def random_qkv(
    batch: int = 2, rows: int = 9, keys: int = 13, heads: int = 4, heads_kv: int = 2, dim: int = 16, dim_v: int = 8,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """q, k, v of shape (B, S, N, D)."""
    return (
        torch.randn(batch, rows, heads, dim).to(dtype),
        torch.randn(batch, keys, heads_kv, dim).to(dtype),
        torch.randn(batch, keys, heads_kv, dim_v).to(dtype),
    )


def laid_out(tensor: Tensor, layout: str) -> Tensor:
    """A (B, S, N, D) tensor in another layout, contiguous."""
    return {
        "BSND": lambda t: t,
        "BNSD": lambda t: t.transpose(1, 2),
        "BSH": lambda t: t.flatten(2),
        "SBH": lambda t: t.flatten(2).transpose(0, 1),
        "TND": lambda t: t.flatten(0, 1),
    }[layout](tensor).contiguous()


def laid_back(tensor: Tensor, layout: str, heads: int) -> Tensor:
    """What :func:`laid_out` made, as (B, S, N, D) again; not for TND."""
    if layout == "BNSD":
        return tensor.transpose(1, 2)
    if layout == "BSND":
        return tensor
    entry = tensor.transpose(0, 1) if layout == "SBH" else tensor
    return entry.unflatten(-1, (heads, -1))


def expected(q: Tensor, k: Tensor, v: Tensor, hidden: Tensor | None = None, **options: object) -> tuple[Tensor, Tensor]:
    """(out, lse) of the oracle for (B, S, N, D) tensors; ``hidden`` is True where a pair takes no part."""
    mask = None if hidden is None else ~hidden
    return reference.attention(q, k, v, mask=mask, **options)  # type: ignore[arg-type]


def off(actual: Tensor, exact: Tensor) -> float:
    """Largest difference; infinite where only one of them is NaN."""
    return float((actual.detach().double() - exact.detach().double()).abs().nan_to_num(torch.inf).max())


def close(actual: Tensor, exact: Tensor) -> bool:
    """Equal up to the rounding of the result. For a dtype of 16 bits relative to the largest value."""
    return off(actual, exact) <= TOLERANCE[actual.dtype] * max(1.0, float(exact.detach().abs().max()))


def lse_of(results: tuple[Tensor, ...]) -> Tensor:
    """lse from the softmax statistics of the fusion operators."""
    return results[1][..., 0] + results[2][..., 0].log()
