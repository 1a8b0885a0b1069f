"""What the inference kernels share as the registry sees them, and what their operators refuse alike."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator

from faops.backends.npu import operators
from faops.backends.npu.sources import hash_of_package
from faops.device import DeviceProfile
from faops.problem import AttentionProblem
from faops.registry import Config, Decision, Kernel, decide

# From torch_npu's documents of npu_fused_infer_attention_score, npu_prompt_flash_attention, npu_incre_flash_attention.
MOST_BATCH = 65535
MOST_HEADS = 256
MOST_GROUP = 64  # query heads a key and value head
MOST_HEAD_DIM = 512
HEAD_DIM_STEP = 16
MOST_KEYS = 20971520


class InferenceKernel(Kernel):
    """An operator of torch_npu for inference: it has no backward of its own, any kernel's goes with its (out, lse)."""

    backend = "npu"
    operator: str  # of torch_npu
    architectures: tuple[str, ...]  # that the operator is documented for

    def check(self, problem: AttentionProblem, device: DeviceProfile) -> Decision:
        return decide(
            [
                *self.device_reasons(problem, device),
                *self.feature_reasons(problem),
                *self.size_reasons(problem),
                *self.own_reasons(problem, device),
            ]
        )

    @abstractmethod
    def own_reasons(self, problem: AttentionProblem, device: DeviceProfile) -> Iterator[str]:
        """Every reason against ``problem`` that is not one of all inference operators."""

    def default_config(self, problem: AttentionProblem, device: DeviceProfile) -> Config:
        return self.configs(problem, device)[0]

    def source_hash(self) -> str:
        return hash_of_package(__file__)

    def device_reasons(self, problem: AttentionProblem, device: DeviceProfile) -> Iterator[str]:
        """What device, torch_npu and dtype have against it."""
        if device.vendor != "ascend":
            yield f"{self.operator} runs on Ascend NPUs, not on {device.name}"
        elif device.arch not in self.architectures:
            yield f"{self.operator} is for {', '.join(self.architectures)}, not for {device.arch}"
        found = operators.operators()
        if not found.has(self.operator):
            yield f"{found.origin} has no {self.operator}"
        if problem.dtype not in ("float16", "bfloat16"):
            yield f"{self.operator} computes float16 and bfloat16, not {problem.dtype}"
        elif problem.dtype == "bfloat16" and not device.limits.bfloat16:
            yield f"{device.arch} has no bfloat16"

    def feature_reasons(self, problem: AttentionProblem) -> Iterator[str]:
        """Features that no inference operator has."""
        if problem.softcap:
            yield f"{self.operator} has no softcap"
        if problem.alibi:
            yield f"{self.operator} takes biases in 16 bits only, too few for ALiBi"
        if problem.dropout:
            yield f"{self.operator} has no dropout"
        if problem.fp8_descale:
            yield f"{self.operator} takes no fp8 descales"

    def size_reasons(self, problem: AttentionProblem) -> Iterator[str]:
        """Sizes beyond what the operators take."""
        if problem.batch > MOST_BATCH:
            yield f"batch {problem.batch} is more than {MOST_BATCH}"
        if problem.heads_q > MOST_HEADS:
            yield f"{problem.heads_q} heads are more than {MOST_HEADS}"
        if problem.group > MOST_GROUP:
            yield f"{problem.group} query heads a key head are more than {MOST_GROUP}"
        if max(problem.seqlen_q, problem.seqlen_k) > MOST_KEYS:
            yield f"a length of {max(problem.seqlen_q, problem.seqlen_k)} is more than {MOST_KEYS}"
        for name, size in (("head_dim", problem.head_dim), ("head_dim_v", problem.head_dim_v)):
            if size > MOST_HEAD_DIM:
                yield f"{name} {size} is more than {MOST_HEAD_DIM}"
