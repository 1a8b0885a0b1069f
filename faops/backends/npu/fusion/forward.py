"""Forward on npu_fusion_attention: the whole of attention in one operator of CANN, with lse for backward."""

from __future__ import annotations

import math

from torch import Tensor

from faops.backends.npu import footprint, operators
from faops.backends.npu.fusion.arrangement import arrange
from faops.backends.npu.fusion.kernel import Fusion, capturable, keywords
from faops.backends.npu.fusion.support import FORWARD
from faops.device import DeviceProfile
from faops.footprint import Footprint
from faops.inputs import AttentionInputs
from faops.layout import conform
from faops.problem import AttentionProblem
from faops.registry import Config


class FusionForward(Fusion):
    """Dense and packed sequences, in training and in prefill."""

    name = "fusion_forward"
    op = "forward"

    def footprint(self, problem: AttentionProblem, device: DeviceProfile, config: Config) -> Footprint:
        return footprint.forward(problem, device, config)

    def launch(self, inputs: AttentionInputs, config: Config) -> tuple[Tensor, Tensor | None]:
        q, k, v = inputs.q, inputs.k, inputs.v
        config = capturable(config, inputs)
        call = arrange(inputs, config, [q, k, v], [q])
        if call.empty:
            return call.from_rows(None, v.shape[-1]), call.to_lse(None, None) if inputs.need_lse else None
        out, softmax_max, softmax_sum = operators.call(
            FORWARD[str(config["operator"])],
            call.rows(q), call.keys(k), call.keys(v),
            sink=None if inputs.sinks is None else inputs.sinks.float().contiguous(),
            **keywords(inputs, call, config),
        )[:3]  # fmt: skip
        out = conform(call.from_rows(out, v.shape[-1]), q)
        lse = call.to_lse(softmax_max, softmax_sum) if inputs.need_lse else None
        return put_right(out, lse, call.unseen())


def put_right(out: Tensor, lse: Tensor | None, unseen: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Rows that turned out to see no key get out 0 and lse -inf; ``unseen`` (B or 1, H or 1, rows) tells which."""
    if unseen is None:
        return out, lse
    rows = unseen.shape[-1]
    out[:, -rows:].masked_fill_(unseen.transpose(1, 2).unsqueeze(-1), 0.0)
    if lse is not None:
        lse[..., -rows:].masked_fill_(unseen, -math.inf)
    return out, lse
