"""Putting attention over parts of the keys together, by npu_attention_update where it exists, else in torch operations.

lse = log Σ exp(lse_i)        out = Σ exp(lse_i − lse) · out_i
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from faops.backends.npu import operators
from faops.device import DeviceProfile

OPERATOR = "npu_attention_update"
# torch_npu's documents: 1 to 16 parts, head dims of 8 to 512 in multiples of 8; not on the 310P. 16-bit outs are taken
# from CANN 8.5 on, which no schema tells, so it gets float32.
MOST_PARTS = 16
HEAD_DIMS = range(8, 513, 8)
WITHOUT_OPERATOR = ("310P",)
WITH_LSE = 1  # update_type: 0 gives out alone
# Stands for the lse -inf of a row without a key: the operator subtracts the largest of a row's, and -inf from -inf is
# NaN. Far below any true lse, and far enough from float32's limit that a difference of two is finite.
NEVER = -1.0e30


def takes(head_dim: int, device: DeviceProfile) -> bool:
    """Whether the operator merges results of that head dim."""
    return head_dim in HEAD_DIMS and device.arch not in WITHOUT_OPERATOR and operators.operators().takes(OPERATOR)


def merge(outs: Sequence[Tensor], lses: Sequence[Tensor], with_operator: bool) -> tuple[Tensor, Tensor]:
    """(out, lse) over the keys of all parts.

    ``outs`` are (B, M, H, D) of one dtype, 0 where ``lses`` (B, H, M), float32, are -inf: a part without a key for that
    row. out has their dtype. A row without a key in any part gets out 0, lse -inf.
    """
    if len(outs) == 1:
        return outs[0], lses[0]
    if with_operator:
        return _by_operator(list(outs), list(lses))
    stacked = torch.stack(list(lses))  # (parts, B, H, M)
    lse = stacked.logsumexp(0)
    weights = (stacked - lse.masked_fill(lse == -math.inf, 0.0)).exp().transpose(2, 3).unsqueeze(-1)
    out = sum((weight * part for weight, part in zip(weights, outs)), torch.zeros_like(weights[0]))
    return out.to(outs[0].dtype), lse


def _by_operator(outs: list[Tensor], lses: list[Tensor]) -> tuple[Tensor, Tensor]:
    """The same by npu_attention_update, as many parts at a time as it takes."""
    batch, seqlen_q, heads, dim = outs[0].shape
    flat_outs = [out.reshape(-1, dim).float() for out in outs]
    flat_lses = [lse.transpose(1, 2).reshape(-1).clamp(min=NEVER) for lse in lses]
    while len(flat_outs) > 1:
        most = slice(0, MOST_PARTS)
        out, lse = operators.call(OPERATOR, flat_lses[most], flat_outs[most], update_type=WITH_LSE)
        flat_outs, flat_lses = [out, *flat_outs[MOST_PARTS:]], [lse, *flat_lses[MOST_PARTS:]]
    lse = flat_lses[0].view(batch, seqlen_q, heads).transpose(1, 2)
    return flat_outs[0].view(batch, seqlen_q, heads, dim).to(outs[0].dtype), lse.masked_fill(
        lse < NEVER / 2, -math.inf
    ).contiguous()


def join_sinks(out: Tensor, lse: Tensor, sinks: Tensor) -> tuple[Tensor, Tensor]:
    """Each head's sink joins the softmax denominator of (out (B, M, H, D), lse (B, H, M)); dead rows stay dead.

    Packed: out (total, H, D), lse (H, total).
    """
    joined = torch.logaddexp(lse, sinks.float()[:, None])
    share = (lse - joined).exp().transpose(-2, -1).unsqueeze(-1)
    return (out * share).to(out.dtype), torch.where(lse == -math.inf, lse, joined)
