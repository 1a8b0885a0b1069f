"""The CPU kernel behind scaled_dot_product_attention, called by name because only this form returns and takes lse.

Source of the names: ATen's native_functions.yaml. Tensors here are (B, M, H, D), any strides, K and V with their own
number of heads.
"""

from __future__ import annotations

from collections.abc import Iterator

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
    kernel = getattr(torch.ops.aten, FORWARD).default
    swapped = (q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
    out, lse = kernel(*swapped, 0.0, causal, attn_mask=mask, scale=scale)
    return out.transpose(1, 2), lse


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
    swapped = (tensor.transpose(1, 2) for tensor in (dout, q, k, v, out))
    dq, dk, dv = kernel(*swapped, lse, 0.0, causal, attn_mask=mask, scale=scale)
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
