"""Putting attention over parts of the keys together: ``flash_attn_combine`` of flash-attn 3, in torch operations."""

from __future__ import annotations

import torch
from torch import Tensor

from faops.adapters.flash_attn.conventions import FlashAttnArgumentError
from faops.validate import describe


def flash_attn_combine(
    out_partial: Tensor, lse_partial: Tensor, out: Tensor | None = None, out_dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    """Attention over all keys from attention over parts of them.

    Args:
        out_partial: float32 (parts, B, M, H, Dv), or (parts, total_q, H, Dv).
        lse_partial: float32 (parts, B, M, H), or (parts, total_q, H); -inf where a part has no key.
        out: where to write the result; a new tensor if None.
        out_dtype: its dtype, float32 if None.

    Returns:
        (out, lse): (B, M, H, Dv) and float32 (B, M, H), or without B. Rows without a key have out 0 and lse -inf.
    """
    for name, tensor in (("out_partial", out_partial), ("lse_partial", lse_partial)):
        if not isinstance(tensor, Tensor) or tensor.dtype != torch.float32:
            raise FlashAttnArgumentError(name, describe(tensor), "a float32 tensor")
    if out_partial.dim() not in (4, 5) or out_partial.shape[:-1] != lse_partial.shape:
        expected = "(parts, B, M, H), the axes of out_partial but its last"
        raise FlashAttnArgumentError("lse_partial", describe(lse_partial), expected)
    lse = torch.logsumexp(lse_partial, dim=0)
    weights = torch.exp(lse_partial - lse.clamp(min=torch.finfo(lse.dtype).min)).unsqueeze(-1)
    # A part without a key may hold anything.
    combined = (out_partial * weights).masked_fill(weights == 0, 0.0).sum(0)
    return _written(combined, out, out_dtype), lse


def _written(result: Tensor, out: Tensor | None, dtype: torch.dtype | None) -> Tensor:
    dtype = (torch.float32 if out is None else out.dtype) if dtype is None else dtype
    if out is None:
        return result.to(dtype)
    if out.shape != result.shape or out.dtype != dtype:
        raise FlashAttnArgumentError("out", describe(out), f"a {dtype} tensor of shape {tuple(result.shape)}")
    return out.copy_(result)
