"""The CPU kernel behind scaled_dot_product_attention, called by name because only this form returns and takes lse.

Source of the names: ATen's native_functions.yaml. Tensors here are (B, M, H, D), any strides, K and V with their own
number of heads.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from faops.device import DeviceProfile
from faops.problem import AttentionProblem

FORWARD = "_scaled_dot_product_flash_attention_for_cpu"
BACKWARD = "_scaled_dot_product_flash_attention_for_cpu_backward"

HALF = ("float16", "bfloat16")


def cpu_reasons(device: DeviceProfile) -> Iterator[str]:
    """Why the kernel, which alone deals in lse, cannot be used."""
    if device.torch_type != "cpu":
        yield f"SDPA neither returns nor takes lse on {device.torch_type}"
    else:
        yield from (
            f"this torch has no aten::{name}" for name in (FORWARD, BACKWARD) if not hasattr(torch.ops.aten, name)
        )


def cpu_forward(
    q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """out like q, and lse (B, H, M). ``mask`` is additive, float32 or q's dtype; a row it hides wholly gets lse 0."""
    out, lse = cpu_forward_heads_first(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), causal, scale, mask)
    return out.transpose(1, 2), lse


def cpu_forward_heads_first(
    q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The same for (B, H, M, D) tensors."""
    if causal and scale <= 0:
        q, scale = with_positive_scale(q, scale)
    return _forward_kernel()(q, k, v, 0.0, causal, attn_mask=mask, scale=scale)  # type: ignore[no-any-return]


@functools.cache
def _forward_kernel() -> Any:
    """As a function of torch, which takes arguments faster than the operator of the same name."""
    return getattr(torch, FORWARD, None) or getattr(torch.ops.aten, FORWARD).default


def with_positive_scale(q: Tensor, scale: float) -> tuple[Tensor, float]:
    """q and a scale above 0 that give the same scores: causal rows are hidden by -inf before PyTorch scales them."""
    return (-q, -scale) if scale < 0 else (torch.zeros_like(q), 1.0)


def cpu_backward(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    causal: bool,
    scale: float,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """dq, dk, dv, with out and lse of any forward."""
    kernel = getattr(torch.ops.aten, BACKWARD).default
    factor = 1.0
    if causal and scale <= 0:
        factor = -1.0 if scale < 0 else 0.0
        q, scale = with_positive_scale(q, scale)
    swapped = (tensor.transpose(1, 2) for tensor in (dout, q, k, v, out))
    dq, dk, dv = kernel(*swapped, lse, 0.0, causal, attn_mask=mask, scale=scale)
    dq = dq if factor == 1.0 else dq * factor
    return dq.transpose(1, 2), dk.transpose(1, 2), dv.transpose(1, 2)


def may_upcast(problem: AttentionProblem, device: DeviceProfile) -> bool:
    """Whether computing in float32 is a choice: it is for 16-bit types on a CPU."""
    return device.torch_type == "cpu" and problem.dtype in HALF


def upcasts_by_default(problem: AttentionProblem, device: DeviceProfile) -> bool:
    """A CPU without instructions for 16-bit products runs the backward in half the time in float32, conversions
    included; forward it gains too little to pay for them at every size, so that is left to tuning.
    """
    return may_upcast(problem, device) and problem.op == "backward" and not device.arch.endswith("-bf16")


def widened(upcast: int, *tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors in float32, or as they are."""
    return tuple(tensor.float() for tensor in tensors) if upcast else tensors
