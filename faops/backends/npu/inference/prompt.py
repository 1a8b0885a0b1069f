"""Forward on npu_prompt_flash_attention, for NPUs that have no fused inference operator. It gives no lse.

Everything is passed that has a default: next_tokens is 0 where it is left out, which hides keys.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from faops.backends.npu import footprint, operators
from faops.backends.npu.inference import fused, scores, space
from faops.backends.npu.inference.forward import dense_reasons
from faops.backends.npu.inference.fused import UNBOUNDED
from faops.backends.npu.inference.kernel import HEAD_DIM_STEP, InferenceKernel
from faops.backends.npu.inference.plain import Plain, Result, nothing_seen, padded_dim
from faops.device import DeviceProfile, detect
from faops.footprint import Footprint
from faops.inputs import AttentionInputs
from faops.layout import conform
from faops.problem import AttentionProblem
from faops.registry import Config

OPERATOR = "npu_prompt_flash_attention"
# What torch_npu's documents say of the 310P alone: no pse_shift, sparse_mode 0, as many key heads as query heads.
SMALL = ("310P",)
SMALL_BATCH, SMALL_LENGTH = 128, 65535
WIDEST = 65535  # heads times head dim, in the layouts that are sequence first


class PromptForward(InferenceKernel):
    """softmax(q kᵀ) v, dense, without lse."""

    name = "prompt_forward"
    op = "forward"
    operator = OPERATOR
    architectures = ("310P", "910B", "910C")
    priority = 24

    def own_reasons(self, problem: AttentionProblem, device: DeviceProfile) -> Iterator[str]:
        yield from dense_reasons(problem)
        if problem.layout != "dense":
            yield f"{OPERATOR} is used for dense calls only, not {problem.layout} ones"
        if problem.need_lse or problem.sinks:
            yield f"{OPERATOR} gives no lse" + (", which sinks need" if problem.sinks else "")
        if (wide := problem.heads_q * padded_dim(problem.head_dim, problem.head_dim_v)) >= WIDEST:
            yield f"heads times head dim are {wide}, not below {WIDEST}"
        if device.arch in SMALL:
            yield from _small_reasons(problem)

    def configs(self, problem: AttentionProblem, device: DeviceProfile) -> list[Config]:
        return space.prompt_space(problem)

    def footprint(self, problem: AttentionProblem, device: DeviceProfile, config: Config) -> Footprint:
        return footprint.forward(problem, device, config, HEAD_DIM_STEP)

    def launch(self, inputs: AttentionInputs, config: Config) -> Result:
        if inputs.q.numel() == 0 or inputs.k.shape[1] == 0:
            return nothing_seen(inputs)
        small = detect(inputs.q.device).arch in SMALL
        call = Plain(inputs, config, explicit=small)
        arguments: dict[str, Any] = {"pre_tokens": UNBOUNDED, "next_tokens": UNBOUNDED}
        if call.scores is not None:
            arguments |= {"pse": call.scores.shift, "atten_mask": call.scores.hidden}
        else:
            arguments |= fused.band_arguments(call.band, call.q.device)
        q, k, v = fused.arranged(call.q, call.keys, layout := fused.layout_of(call.keys, config))
        # 0 for as many key heads as query heads, the only value that the 310P takes.
        heads, heads_kv = inputs.q.shape[2], inputs.k.shape[2]
        out = operators.call(
            OPERATOR, q, k, v, head_num=heads, num_key_value_heads=0 if heads == heads_kv else heads_kv,
            scale=inputs.scale, input_layout=layout, **arguments,
        )  # fmt: skip
        out = out.transpose(1, 2) if layout == "BNSD" else out.view(*call.q.shape)
        scores.settle(out, None, call.dead())
        return conform(out[..., : inputs.v.shape[3]], inputs.q), None


def _small_reasons(problem: AttentionProblem) -> Iterator[str]:
    if problem.group > 1:
        yield f"{OPERATOR} has no grouped heads on the 310P"
    if problem.bias or "h" in problem.mask or (problem.mask and problem.seqlen_q == 1):
        yield f"{OPERATOR} has no pse_shift on the 310P, which biases, masks of one row and masks by head need"
    if problem.batch > SMALL_BATCH:
        yield f"batch {problem.batch} is more than the 310P's {SMALL_BATCH}"
    if max(problem.seqlen_q, problem.seqlen_k) > SMALL_LENGTH:
        yield f"a length of {max(problem.seqlen_q, problem.seqlen_k)} is more than the 310P's {SMALL_LENGTH}"
    if not problem.band.full and problem.seqlen_q * problem.seqlen_k > scores.MOST_EXPANDED_BYTES:
        yield f"the band would need a mask of {problem.seqlen_q * problem.seqlen_k >> 20} MiB on the 310P"
