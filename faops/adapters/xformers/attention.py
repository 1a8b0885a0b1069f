"""memory_efficient_attention and its relatives, with the names, arguments and shapes of ``xformers.ops``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from faops.adapters.xformers.dense import AttentionBias, LowerTriangularMaskWithTensorBias
from faops.adapters.xformers.route import Call, attend
from faops.errors import ArgumentError
from faops.validate import describe

Bias = Tensor | AttentionBias | None
SHAPES = "(B, M, K), (B, M, H, K) or (B, M, G, H, K)"


def memory_efficient_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_bias: Bias = None,
    p: float = 0.0,
    scale: float | None = None,
    *,
    op: Any = None,
    output_dtype: torch.dtype | None = None,
) -> Tensor:
    """Attention in xFormers' words.

    Args:
        query: (B, M, H, K); or (B, M, K), of one head; or (B, M, G, H, K), G groups of H heads, whose keys and values
            are usually expanded along H and are then read once for the group.
        key: the same with N for M; value: the same with its own last axis, Kv.
        attn_bias: a bias class of :mod:`faops.adapters.xformers.ops.fmha.attn_bias`, or a floating tensor that is added
            to the scores: (B, H, M, N), or (B, M, N) and (B, G, H, M, N) where the query has as many axes; sizes of 1
            are broadcast. Has a gradient.
        p: dropout probability, below 1.
        scale: factor of the scores; K ** -0.5 if None.
        op: means nothing: faops chooses the kernel.
        output_dtype: dtype of the result; the query's by default.

    Returns:
        as the query, with Kv for K. A row without a key gives 0.

    Raises:
        ArgumentError: an argument is wrong or not supported; also a ValueError.
        NoKernelError: nothing can run this.
    """
    return _attend(query, key, value, attn_bias, p, scale, output_dtype, False)[0]


def memory_efficient_attention_forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_bias: Bias = None,
    p: float = 0.0,
    scale: float | None = None,
    *,
    op: Any = None,
    output_dtype: torch.dtype | None = None,
) -> Tensor:
    """As :func:`memory_efficient_attention`, without a gradient."""
    with torch.no_grad():
        return _attend(query, key, value, attn_bias, p, scale, output_dtype, False)[0]


def memory_efficient_attention_forward_requires_grad(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_bias: Bias = None,
    p: float = 0.0,
    scale: float | None = None,
    *,
    op: Any = None,
    output_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """(out, lse): the result and the log-sum-exp of the scores, natural log, float32.

    lse is (B, H, M), or (B, G, H, M) for five axes; (1, H, total) with a bias of sequences. -inf for a row without a
    key. Both have gradients.
    """
    if p != 0.0:
        raise ArgumentError("p", p, "0: dropout is for memory_efficient_attention alone")
    out, lse = _attend(query, key, value, attn_bias, 0.0, scale, output_dtype, True)
    assert lse is not None
    return out, lse


def memory_efficient_attention_partial(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_bias: Bias = None,
    p: float = 0.0,
    scale: float | None = None,
    *,
    op: Any = None,
    output_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """(out, lse) over a part of the keys, for :func:`merge_attentions`. out is float32 or float64 by default."""
    wide = torch.float64 if query.dtype == torch.float64 else torch.float32
    return memory_efficient_attention_forward_requires_grad(
        query, key, value, attn_bias, p, scale, output_dtype=output_dtype or wide
    )


def merge_attentions(
    attn_split: Tensor | Sequence[Tensor],
    lse_split: Tensor | Sequence[Tensor],
    write_lse: bool = True,
    output_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Attention over all keys from attentions over disjoint parts of them (Juravsky et al. 2024, arXiv 2402.05099).

    Args:
        attn_split: (B, M, H, K) or (B, M, G, H, K) of each part, as a sequence or stacked in front.
        lse_split: (B, H, M) or (B, G, H, M) of each part, likewise.
        write_lse: return lse too; None without.
        output_dtype: of the result; that of the parts by default.
    """
    parts, weights = _stacked("attn_split", attn_split), _stacked("lse_split", lse_split)
    expected = (*parts.shape[:2], *parts.shape[3:-1], parts.shape[2])
    if parts.dim() not in (5, 6) or tuple(weights.shape) != expected:
        raise ArgumentError("lse_split", f"shape {tuple(weights.shape)}", f"{expected}, to fit attn_split")
    lse = weights.logsumexp(0)
    shares = (weights - lse.masked_fill(lse == -torch.inf, 0.0)).exp().movedim(-1, 2)
    out = (parts * shares[..., None]).sum(0).to(output_dtype or parts.dtype)
    return out, lse if write_lse else None


def _stacked(name: str, split: Tensor | Sequence[Tensor]) -> Tensor:
    if isinstance(split, Tensor):
        return split
    if not split or any(part.shape != split[0].shape for part in split):
        raise ArgumentError(name, f"shapes {[tuple(part.shape) for part in split]}", "at least one part, all alike")
    return torch.stack(list(split))


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_bias: Bias,
    p: float,
    scale: float | None,
    output_dtype: torch.dtype | None,
    return_lse: bool,
) -> tuple[Tensor, Tensor | None]:
    _check(query, key, value, p)
    axes = query.dim()
    if isinstance(attn_bias, LowerTriangularMaskWithTensorBias):
        attn_bias = type(attn_bias)(_four_axes_bias(attn_bias._bias, axes))
    elif isinstance(attn_bias, Tensor):
        attn_bias = _four_axes_bias(attn_bias, axes)
    elif attn_bias is not None and not isinstance(attn_bias, AttentionBias):
        raise ArgumentError("attn_bias", describe(attn_bias), "None, a tensor or a bias of faops.adapters.xformers")
    q, k, v = _four_axes(query, key, value)
    out, lse = attend(Call(q, k, v, float(p), scale, return_lse), attn_bias)
    if axes == 3:
        out = out.squeeze(2)
    elif axes == 5:
        groups = query.shape[2:4]
        out = out.view(*out.shape[:2], *groups, out.shape[-1])
        lse = None if lse is None else lse.view(lse.shape[0], *groups, lse.shape[-1])
    return out if output_dtype is None else out.to(output_dtype), lse


def _check(query: Tensor, key: Tensor, value: Tensor, p: float) -> None:
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        if not isinstance(tensor, Tensor) or tensor.dim() not in (3, 4, 5) or tensor.dim() != query.dim():
            raise ArgumentError(name, describe(tensor), f"{SHAPES}, with as many axes as query")
    if key.shape[:-1] != value.shape[:-1]:
        raise ArgumentError(
            "value", f"shape {tuple(value.shape)}", f"that of key, {tuple(key.shape)}, but for the last"
        )
    if query.dim() > 3 and query.shape[2:-1] != key.shape[2:-1]:
        expected = f"those of query, {tuple(query.shape[2:-1])}; expand what is shared"
        raise ArgumentError("key", f"heads {tuple(key.shape[2:-1])}", expected)
    if not isinstance(p, int | float) or not 0 <= p < 1:
        raise ArgumentError("p", repr(p), "a probability in [0, 1)")


def _four_axes(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(B, M, H, D) of each; keys and values that are expanded over heads are taken once."""
    if query.dim() == 3:
        return query.unsqueeze(2), key.unsqueeze(2), value.unsqueeze(2)
    shared = query.shape[-2] > 1 and key.stride(-2) == value.stride(-2) == 0
    if query.dim() == 5:
        query = query.flatten(2, 3)
        key, value = (tensor[:, :, :, 0] if shared else tensor.flatten(2, 3) for tensor in (key, value))
    elif shared:
        key, value = key[:, :, :1], value[:, :, :1]
    return query, key, value


def _four_axes_bias(bias: Tensor, axes: int) -> Tensor:
    """(B, H, M, N) of a tensor that goes with a query of so many axes."""
    if not isinstance(bias, Tensor) or not bias.is_floating_point() or bias.dim() != axes:
        expected = {3: "(B, M, N)", 4: "(B, H, M, N)", 5: "(B, G, H, M, N)"}[axes]
        raise ArgumentError("attn_bias", describe(bias), f"a floating tensor {expected}, added to the scores")
    if axes == 3:
        return bias.unsqueeze(1)
    return bias.flatten(1, 2) if axes == 5 else bias
