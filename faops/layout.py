"""Memory layout of results: the same for every kernel, so that the operators' fake implementations can promise it."""

from __future__ import annotations

import torch
from torch import Tensor


def empty_out(q: Tensor, head_dim: int) -> Tensor:
    """An uninitialised result like ``q``, (B, M, H, head_dim) or (total, H, head_dim), dense, in the order of q's axes.

    A q that lies heads-first in memory (the layout "bhsd") gives a result that does too.
    """
    if q.dim() == 4 and q.stride(1) < q.stride(2):
        batch, seqlen, heads, _ = q.shape
        return q.new_empty(batch, heads, seqlen, head_dim).transpose(1, 2)
    return q.new_empty(*q.shape[:-1], head_dim)


def empty_lse(q: Tensor) -> Tensor:
    """An uninitialised lse: (B, H, M), or (H, total_q) for a packed q; float32, or float64 for float64."""
    dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    shape = (q.shape[1], q.shape[0]) if q.dim() == 3 else (q.shape[0], q.shape[2], q.shape[1])
    return q.new_empty(shape, dtype=dtype)


def conform(result: Tensor, q: Tensor) -> Tensor:
    """``result`` in the layout of :func:`empty_out`; a copy only where a kernel chose another one."""
    if result.dim() == 4 and q.stride(1) < q.stride(2):
        return result if result.transpose(1, 2).is_contiguous() else result.transpose(1, 2).contiguous().transpose(1, 2)
    return result.contiguous()
