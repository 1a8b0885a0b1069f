"""Merging partial results: npu_attention_update and npu_ring_attention_update."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.npu.double.errors import HOST_UNSUPPORTED, INVALID_PARAMETER, TILING, refuse, refuse_on_host
from tests.npu.double.layouts import LANES
from tests.npu.double.machine import Machine, fresh

Arguments = dict[str, Any]
FLOATS = (torch.float16, torch.bfloat16, torch.float32)


def update(machine: Machine, operator: str, arguments: Arguments) -> tuple[Tensor, Tensor | None]:
    """(out (rows, D), lse (rows,) or None) of parts that saw different keys; exactly the documented formula, so rows
    whose every lse is -inf come out as NaN.
    """
    lses, outs, kind = (arguments[name] for name in ("lse", "local_out", "update_type"))
    if machine.soc == "310P":
        refuse_on_host(operator, "is not supported on this product", HOST_UNSUPPORTED)
    if kind not in (0, 1) or len(lses) != len(outs) or not 1 <= len(lses) <= 16:
        refuse(operator, INVALID_PARAMETER, f"update_type {kind}, {len(lses)} and {len(outs)} parts: 0 or 1; 1 to 16")
    allowed = FLOATS if machine.has_cann("8.5") else (torch.float32,)
    rows, dim = outs[0].shape[0], outs[0].shape[-1]
    for lse, out in zip(lses, outs):
        if lse.dtype != torch.float32 or out.dtype not in allowed or out.dtype != outs[0].dtype:
            refuse(operator, INVALID_PARAMETER, f"dtypes {lse.dtype} and {out.dtype}: float32, and one of {allowed}")
        if tuple(lse.shape) != (rows,) or tuple(out.shape) != (rows, dim):
            refuse(operator, INVALID_PARAMETER, f"shapes {tuple(lse.shape)}, {tuple(out.shape)}: (rows,), (rows, D)")
        if not lse.is_contiguous() or not out.is_contiguous():
            refuse(operator, INVALID_PARAMETER, "a part is not contiguous")
    if dim % 8 or not 8 <= dim <= 512:
        refuse(operator, TILING, f"head dim {dim}; a multiple of 8 from 8 to 512")
    parts = torch.stack([lse.double() for lse in lses])
    most = parts.amax(0)
    merged = most + torch.exp(parts - most).sum(0).log()
    weights = torch.exp(parts - merged)
    result = fresh((rows, dim), outs[0].dtype, outs[0].device)
    result.copy_((torch.stack([out.double() for out in outs]) * weights[..., None]).sum(0))
    return result, merged.float() if kind == 1 else None


def ring_update(machine: Machine, operator: str, arguments: Arguments) -> tuple[Tensor, Tensor, Tensor]:
    """(out, max, sum) of two partial results with the statistics of the fusion operators."""
    names = ("attn_out", "softmax_max", "softmax_sum")
    earlier, later = ([arguments[f"{when}_{name}"] for name in names] for when in ("prev", "cur"))
    layout, of_statistics = arguments["input_layout"], arguments["input_softmax_layout"]
    if machine.soc == "310P":
        refuse_on_host(operator, "is not supported on this product", HOST_UNSUPPORTED)
    if layout not in ("SBH", "TND") or of_statistics not in ("", "SBH", "TND"):
        refuse_on_host(operator, f"input_layout {layout}, input_softmax_layout {of_statistics}")
    out = earlier[0]
    if any(a.shape != b.shape or a.dtype != b.dtype for a, b in zip(earlier, later)) or out.dtype not in FLOATS:
        refuse_on_host(operator, "both parts must have the same shapes and dtypes")
    dimensions = 4 if layout == "SBH" else 3
    for statistic in earlier[1:]:
        if statistic.dtype != torch.float32 or statistic.dim() != dimensions or statistic.shape[-1] != LANES:
            refuse_on_host(operator, f"softmax tensors are float32 with {dimensions} dimensions, the last of size 8")
    if out.dim() != 3:
        refuse_on_host(operator, "prev_attn_out must be a 3D tensor")
    if layout == "TND":
        _check_packed(operator, arguments, out)
    (_, most_a, sum_a), (_, most_b, sum_b) = ([t.double() for t in part] for part in (earlier, later))
    most = torch.maximum(most_a, most_b)
    share_a, share_b = sum_a * torch.exp(most_a - most), sum_b * torch.exp(most_b - most)
    total = share_a + share_b
    parts = [
        part[0].double() * _like_out(share / total, out, layout)
        for part, share in ((earlier, share_a), (later, share_b))
    ]
    return (parts[0] + parts[1]).to(out.dtype), most.float(), total.float()


def _check_packed(operator: str, arguments: Arguments, out: Tensor) -> None:
    lengths = arguments["actual_seq_qlen"]
    if lengths is None or lengths.dtype != torch.int64:
        refuse_on_host(operator, "actual_seq_qlen (int64) is required when input_layout is 'TND'")
    if arguments["input_softmax_layout"] != "TND" or out.shape[-1] % 64:
        refuse(operator, TILING, "TND: statistics in another layout, or a head dim that is no multiple of 64")


def _like_out(share: Tensor, out: Tensor, layout: str) -> Tensor:
    """Shares (B, N, S, 8), or (T, N, 8), as factors of out (S, B, N·D), or (T, N, D)."""
    if layout == "TND":
        return share[..., :1]
    factor = share[..., 0].permute(2, 0, 1)  # (S, B, N)
    return factor.repeat_interleave(out.shape[-1] // factor.shape[-1], dim=-1)
