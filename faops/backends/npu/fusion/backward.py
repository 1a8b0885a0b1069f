"""Backward on npu_fusion_attention_grad, from (out, lse) of any forward."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from faops.backends.npu import footprint, operators
from faops.backends.npu.fusion import support
from faops.backends.npu.fusion.arrangement import arrange
from faops.backends.npu.fusion.kernel import Fusion, capturable, keywords
from faops.device import DeviceProfile
from faops.errors import UnavailableError
from faops.footprint import Footprint
from faops.inputs import BackwardInputs
from faops.problem import AttentionProblem
from faops.registry import Config, Decision, decide


class FusionBackward(Fusion):
    """Gradients of q, k and v in one operator; that of the sinks in a few small ones.

    The operator computes a probability as exp(score - softmax_max) / softmax_sum. lse is the one number that counts
    in these two, so it goes in as softmax_max beside a sum of 1.
    """

    name = "fusion_backward"
    op = "backward"

    def check(self, problem: AttentionProblem, device: DeviceProfile) -> Decision:
        return decide([*support.reasons(problem, device), *support.backward_reasons(problem)])

    def footprint(self, problem: AttentionProblem, device: DeviceProfile, config: Config) -> Footprint:
        return footprint.backward(problem, device, config)

    def launch(
        self, inputs: BackwardInputs, config: Config
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
        forward = inputs.forward
        q, k, v = forward.q, forward.k, forward.v
        require_determinism(forward.deterministic)
        config = capturable(config, forward)
        call = arrange(forward, config, [q, k, v, inputs.out, inputs.dout])
        dsinks = gradient_of_sinks(inputs) if inputs.sinks_grad else None
        if call.empty:
            return call.from_rows(None, q.shape[-1]), call.from_keys(None, k), call.from_keys(None, v), None, dsinks
        softmax_max, softmax_sum = call.to_softmax(inputs.lse)
        dq, dk, dv = operators.call(
            support.BACKWARD[str(config["operator"])],
            call.rows(q), call.keys(k), call.keys(v), call.rows(inputs.dout),
            attention_in=call.rows(inputs.out),
            softmax_max=softmax_max,
            softmax_sum=softmax_sum,
            **keywords(forward, call, config),
        )[:3]  # fmt: skip
        return call.from_rows(dq, q.shape[-1]), call.from_keys(dk, k), call.from_keys(dv, v), None, dsinks


def require_determinism(deterministic: bool) -> None:
    """Raises UnavailableError where a deterministic call was accepted while the process's setting was another one."""
    if deterministic and not torch.are_deterministic_algorithms_enabled():
        raise UnavailableError(
            "npu_fusion_attention_grad is not deterministic now: torch.use_deterministic_algorithms was switched off"
        )


def gradient_of_sinks(inputs: BackwardInputs) -> Tensor | None:
    """(H,) gradient of the sinks: minus the sum over rows of the sink's probability times dout·out.

    Of the operator's versions only some return it, and this needs no more than lse, into which the sink went.
    """
    sinks = inputs.forward.sinks
    if sinks is None:
        return None
    share = (inputs.dout.float() * inputs.out.float()).sum(-1)  # (B, M, H) or (total, H)
    share = share.transpose(-1, -2)  # as lse is
    probability = (sinks.float().unsqueeze(-1) - inputs.lse).exp()
    probability = probability.masked_fill(inputs.lse == -math.inf, 0.0)
    by_head = (probability * share).sum(-1)
    return -(by_head if by_head.dim() == 1 else by_head.sum(0)).to(sinks.dtype)
