"""The KV-cache call on npu_fused_infer_attention_score."""

from __future__ import annotations

from collections.abc import Iterator

from faops.backends.npu import footprint
from faops.backends.npu.inference import append, cache_call, fused, scores, space
from faops.backends.npu.inference.cache_call import Operator, Result
from faops.backends.npu.inference.fused import ONE_ROW, PACKED, ROWS
from faops.backends.npu.inference.kernel import HEAD_DIM_STEP, InferenceKernel
from faops.backends.npu.inference.pages import PageRule
from faops.device import DeviceProfile
from faops.footprint import Footprint
from faops.inputs import DecodeInputs
from faops.problem import AttentionProblem
from faops.registry import Config


class InferDecode(InferenceKernel):
    """Decode and chunked prefill over a dense or paged cache, any page size. Keys are read in place or gathered."""

    name = "infer_decode"
    op = "decode"
    operator = fused.OPERATORS["v1"]
    architectures = ("910B", "910C", "950")
    priority = 30

    def own_reasons(self, problem: AttentionProblem, device: DeviceProfile) -> Iterator[str]:
        yield from cache_reasons(self.operator, problem, device)
        if reason := scores.expansion(problem):
            yield reason

    def configs(self, problem: AttentionProblem, device: DeviceProfile) -> list[Config]:
        return space.decode_space(problem)

    def footprint(self, problem: AttentionProblem, device: DeviceProfile, config: Config) -> Footprint:
        rule = _page_rule(config["layout"] == "TND", problem.seqlen_q)
        return footprint.decode(problem, device, config, rule.takes(problem.page_size))

    def launch(self, inputs: DecodeInputs, config: Config) -> Result:
        packed = config["layout"] == "TND" and inputs.k_cache.is_contiguous() and inputs.block_table is not None
        rule = _page_rule(packed, inputs.q.shape[1])
        return cache_call.run(inputs, config, Operator(fused.attend, rule, bands_one_row=packed))


def _page_rule(packed: bool, seqlen_q: int) -> PageRule:
    if packed:
        return PACKED
    return ONE_ROW if seqlen_q == 1 else ROWS


def cache_reasons(operator: str, problem: AttentionProblem, device: DeviceProfile) -> Iterator[str]:
    """What the operators for a KV cache have against it: caches cannot be padded."""
    if problem.head_dim % HEAD_DIM_STEP:
        yield f"head_dim {problem.head_dim} of the cache is no multiple of {HEAD_DIM_STEP}"
    if problem.head_dim_v != problem.head_dim:
        yield f"{operator} wants values of the keys' head dim, not {problem.head_dim_v} beside {problem.head_dim}"
    if reason := append.missing(problem, device):
        yield reason
