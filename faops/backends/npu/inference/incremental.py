"""The KV-cache call for one row on npu_incre_flash_attention, for NPUs that have no fused operator.

It gives no lse, so there are no parts to merge and no sinks to join.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from faops.backends.npu import footprint, operators
from faops.backends.npu.inference import cache_call, fused, scores, space
from faops.backends.npu.inference.cache_call import Operator, Result
from faops.backends.npu.inference.decode import cache_reasons
from faops.backends.npu.inference.fused import ONE_ROW
from faops.backends.npu.inference.kernel import InferenceKernel
from faops.backends.npu.inference.pages import MOST_KEYS_OF_ONE_ROW, Keys
from faops.backends.npu.inference.scores import Scores
from faops.device import DeviceProfile, detect
from faops.footprint import Footprint
from faops.inputs import DecodeInputs
from faops.problem import AttentionProblem, Band
from faops.registry import Config

OPERATOR = "npu_incre_flash_attention"
# What torch_npu's documents say of the 310P alone.
WITHOUT_SHIFT = ("310P",)
SMALL_BATCH, SMALL_KEYS = 256, 65536


class IncreDecode(InferenceKernel):
    """Decode of one row a sequence, dense or paged, without lse."""

    name = "incre_decode"
    op = "decode"
    operator = OPERATOR
    architectures = ("310P", "910B")
    priority = 28

    def own_reasons(self, problem: AttentionProblem, device: DeviceProfile) -> Iterator[str]:
        yield from cache_reasons(self.operator, problem, device)
        if problem.seqlen_q != 1:
            yield f"{OPERATOR} takes one row a sequence, not {problem.seqlen_q}"
        if problem.need_lse or problem.sinks:
            yield f"{OPERATOR} gives no lse" + (", which sinks need" if problem.sinks else "")
        if device.arch in WITHOUT_SHIFT:
            yield from _small_reasons(problem)
        elif reason := scores.expansion(problem):
            yield reason
        if problem.seqlen_k > MOST_KEYS_OF_ONE_ROW:
            yield f"a cache of {problem.seqlen_k} keys is more than {MOST_KEYS_OF_ONE_ROW}"

    def configs(self, problem: AttentionProblem, device: DeviceProfile) -> list[Config]:
        return space.incre_space(problem)

    def footprint(self, problem: AttentionProblem, device: DeviceProfile, config: Config) -> Footprint:
        return footprint.decode(problem, device, config, ONE_ROW.takes(problem.page_size))

    def launch(self, inputs: DecodeInputs, config: Config) -> Result:
        shifts = detect(inputs.q.device).arch not in WITHOUT_SHIFT
        return cache_call.run(inputs, config, Operator(attend, ONE_ROW, shifts, gives_lse=False))


def _small_reasons(problem: AttentionProblem) -> Iterator[str]:
    if problem.bias or problem.mask:
        yield f"{OPERATOR} has no pse_shift on the 310P to hide or bias keys of one row with"
    if problem.batch > SMALL_BATCH:
        yield f"batch {problem.batch} is more than the 310P's {SMALL_BATCH}"
    if problem.seqlen_k > SMALL_KEYS:
        yield f"a cache of {problem.seqlen_k} keys is more than the 310P's {SMALL_KEYS}"


def attend(
    q: Tensor, keys: Keys, band: Band, scores: Scores | None, scale: float, config: Config, need_lse: bool
) -> Result:
    """(out (B, 1, H, D), None): every row sees all of its ``keys``, but those that ``scores`` hides."""
    batch, _, heads, dim = q.shape
    # The operator wants q and pages with as many axes, and pages that lie sequence first have three.
    paged = keys.table is not None and not keys.heads_first
    layout = "BSH" if paged else fused.layout_of(keys, config)
    arguments: dict[str, Any] = {"actual_seq_lengths": [max(1, count) for count in keys.counts]}
    if keys.table is not None:
        arguments |= {"block_table": keys.table, "block_size": keys.page_size}
    if scores is not None:
        arguments["pse"] = scores.shift
    out = operators.call(
        OPERATOR, *fused.arranged(q, keys, layout), num_heads=heads, num_key_value_heads=keys.heads(dim),
        scale=scale, input_layout=layout, inner_precise=config.integer("inner_precise"), **arguments,
    )  # fmt: skip
    return out.view(batch, 1, heads, dim), None
