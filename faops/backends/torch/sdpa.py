"""PyTorch's own scaled_dot_product_attention, used exactly where its semantics are those of faops.

What differs there and is therefore refused: causal is aligned top-left (equal only for M = N), there is no window,
softcap, ALiBi or sink, dropout is not counter-based, and a bias would have to be materialised. Only the CPU
kernel gives lse back, so it alone serves training; elsewhere SDPA serves inference.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch.nn.functional as F
from torch import Tensor

from faops.backends.torch import footprint
from faops.backends.torch.blockwise import common_reasons
from faops.backends.torch.sdpa_cpu import (
    cpu_backward,
    cpu_forward,
    cpu_reasons,
    may_upcast,
    upcasts_by_default,
    widened,
    with_positive_scale,
)
from faops.backends.torch.threads import cpu_threads, thread_choices
from faops.backends.torch.tiles import split_heads
from faops.device import DeviceProfile
from faops.footprint import Footprint
from faops.inputs import AttentionInputs, BackwardInputs
from faops.problem import AttentionProblem
from faops.registry import Config, Decision, Kernel, decide


def shared_reasons(problem: AttentionProblem, device: DeviceProfile) -> Iterator[str]:
    """Why SDPA does not mean the same, or would need O(M·N) memory, in either direction."""
    yield from common_reasons(problem, device)
    if problem.layout != "dense":
        yield f"SDPA has no {problem.layout} layout"
    if problem.batch == 0 or problem.seqlen_q == 0 or problem.seqlen_k == 0:
        yield "SDPA does not define the result for an empty input"
    if not problem.band.full:
        if not problem.band.causal:
            yield "SDPA has no sliding window"
        elif problem.seqlen_q != problem.seqlen_k:
            yield "SDPA aligns causal top-left, which differs unless seqlen_q = seqlen_k"
    if problem.head_dim != problem.head_dim_v:
        yield "SDPA has no fused kernel for head_dim_v different from head_dim"
    unsupported = {
        "softcap": problem.softcap,
        "ALiBi without a materialised bias": problem.alibi,
        "additive bias without materialising it": bool(problem.bias),
        "sinks": problem.sinks,
        "counter-based dropout": problem.dropout,
    }
    yield from (f"SDPA has no {name}" for name, used in unsupported.items() if used)


class Sdpa(Kernel):
    """What the SDPA kernels share: to tune there are the thread count and, for 16-bit types, the computing dtype."""

    backend = "torch"
    priority = 20

    def configs(self, problem: AttentionProblem, device: DeviceProfile) -> list[Config]:
        default = self.default_config(problem, device)
        upcasts = (False, True) if may_upcast(problem, device) else (False,)
        choices = (
            Config(threads=threads, upcast=upcast) for threads in thread_choices(device.threads) for upcast in upcasts
        )
        return [default, *(config for config in choices if config != default)]

    def default_config(self, problem: AttentionProblem, device: DeviceProfile) -> Config:
        return Config(threads=0, upcast=upcasts_by_default(problem, device))

    def footprint(self, problem: AttentionProblem, device: DeviceProfile, config: Config) -> Footprint:
        return footprint.fused(problem, device, config)


class SdpaForward(Sdpa):
    """scaled_dot_product_attention for plain and square causal attention, GQA, and boolean masks of O(N)."""

    name = "sdpa_forward"
    op = "forward"

    def check(self, problem: AttentionProblem, device: DeviceProfile) -> Decision:
        return decide(self._reasons(problem, device))

    def _reasons(self, problem: AttentionProblem, device: DeviceProfile) -> Iterator[str]:
        yield from shared_reasons(problem, device)
        if problem.mask:
            if problem.mask.endswith("mn"):
                yield "SDPA turns a boolean mask into a float one of the same O(M·N) size"
            if problem.need_lse:
                yield "SDPA reports lse 0 instead of -inf for rows that the mask leaves without a key"
            if not problem.band.full:
                yield "SDPA takes either a mask or causal"
        if problem.need_lse:
            yield from cpu_reasons(device)
        if device.torch_type == "cpu":
            return
        if problem.dtype not in ("float16", "bfloat16", "float32"):
            yield f"SDPA has no fused kernel for {problem.dtype} on {device.torch_type}"
        if problem.group > 1 and (device.torch_type != "cuda" or problem.dtype == "float32"):
            yield f"SDPA expands K and V for GQA in {problem.dtype} on {device.torch_type}"

    def launch(self, inputs: AttentionInputs, config: Config) -> tuple[Tensor, Tensor | None]:
        if not config["upcast"]:
            return self._launch(inputs, inputs.q, inputs.k, inputs.v, config)
        q, k, v = widened(1, inputs.q, inputs.k, inputs.v)
        out, lse = self._launch(inputs, q, k, v, config)
        return out.to(inputs.q.dtype), lse

    def _launch(
        self, inputs: AttentionInputs, q: Tensor, k: Tensor, v: Tensor, config: Config
    ) -> tuple[Tensor, Tensor | None]:
        causal, scale = is_causal(inputs), inputs.scale
        group = q.shape[2] // k.shape[2]
        with cpu_threads(config.integer("threads")):
            if inputs.need_lse:
                out, lse = cpu_forward(q, k, v, causal, scale)
                return out, lse.contiguous()
            if causal and scale <= 0:
                q, scale = with_positive_scale(q, scale)
            k, v = k.transpose(1, 2), v.transpose(1, 2)
            if group == 1:
                out = F.scaled_dot_product_attention(q.transpose(1, 2), k, v, inputs.mask, 0.0, causal, scale=scale)
            elif q.shape[1] == 1 and inputs.mask is None:
                # One row: the heads of a group become the rows of their kv head, which reads K and V once.
                out = F.scaled_dot_product_attention(split_heads(q.squeeze(1), group), k, v, scale=scale)
                return out.flatten(1, 2).unsqueeze(1), None
            else:
                out = F.scaled_dot_product_attention(
                    q.transpose(1, 2), k, v, inputs.mask, 0.0, causal, scale=scale, enable_gqa=True
                )
        return out.transpose(1, 2), None


class SdpaBackward(Sdpa):
    """The backward of SDPA's CPU kernel, which takes (out, lse) of any forward."""

    name = "sdpa_backward"
    op = "backward"

    def check(self, problem: AttentionProblem, device: DeviceProfile) -> Decision:
        return decide(self._reasons(problem, device))

    def _reasons(self, problem: AttentionProblem, device: DeviceProfile) -> Iterator[str]:
        yield from shared_reasons(problem, device)
        yield from cpu_reasons(device)
        if problem.mask:
            yield "SDPA's backward gives NaN where the mask leaves a row without a key"
        if problem.lse_grad:
            yield "SDPA has no gradient through lse"

    def launch(self, inputs: BackwardInputs, config: Config) -> tuple[Tensor, Tensor, Tensor, None, None]:
        forward = inputs.forward
        given = (inputs.dout, forward.q, forward.k, forward.v, inputs.out)
        with cpu_threads(config.integer("threads")):
            dout, q, k, v, out = widened(config.integer("upcast"), *given)
            gradients = cpu_backward(dout, q, k, v, out, inputs.lse, is_causal(forward), forward.scale)
        dq, dk, dv = (gradient.to(forward.q.dtype) for gradient in gradients)
        return dq, dk, dv, None, None


def is_causal(inputs: AttentionInputs) -> bool:
    """Whether SDPA must be told causal: the band of an accepted problem is full or square causal."""
    return 0 <= inputs.window_right < inputs.max_seqlen_q - 1
