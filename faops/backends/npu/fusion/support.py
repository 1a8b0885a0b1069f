"""What the operators of the fusion family run, and every reason why they cannot run a problem.

Limits are those of CANN's documents of aclnnFlashAttentionScore(Grad) and aclnnFlashAttentionVarLenScore, and of the
checks in op-plugin, which puts the torch operators on top of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import fields

import torch

from faops import cann
from faops.backends.npu import masks, pse
from faops.backends.npu.operators import Operators, operators
from faops.device import DeviceProfile
from faops.problem import AttentionProblem

ARCHITECTURES = ("910B", "910C", "950")
DTYPES = ("float16", "bfloat16", "float32")
HEADS_LIMIT = 256
HEAD_DIM_LIMIT = 768
LENGTH_LIMIT = 1_000_000  # of one sequence, and of all packed ones together
BATCH_LIMIT = 2 << 20
PACKED_BATCH_LIMIT = 1 << 10  # 1K in the documents of torch_npu, 2K in those of CANN
SINK_SINCE = (8, 5)  # of CANN

# The torch operators of the family, those that do more first: v2 adds pse_type, v3 is v1 with lengths as CPU tensors,
# which a graph can capture. All run the same kernels.
VERSIONS = ("v2", "v1", "v3")
FORWARD = {
    "v1": "npu_fusion_attention",
    "v2": "npu_fusion_attention_v2",
    "v3": "npu_fusion_attention_v3",
}
BACKWARD = {
    "v1": "npu_fusion_attention_grad",
    "v2": "npu_fusion_attention_grad_v2",
    "v3": "npu_fusion_attention_grad_v3",
}

# Fields of a problem that are handled here, or asked about below. A field that is not is refused, so that a feature
# that faops gains later is never ignored.
HANDLED = {
    "op", "dtype", "batch", "seqlen_q", "seqlen_k", "heads_q", "heads_kv", "head_dim", "head_dim_v", "band", "need_lse",
    "layout", "alibi", "bias", "mask", "sinks", "softcap", "dropout", "lse_grad", "bias_grad", "deterministic",
}  # fmt: skip


def reasons(problem: AttentionProblem, device: DeviceProfile) -> Iterator[str]:
    """Why the family cannot run ``problem``, in either direction."""
    yield from device_reasons(problem, device)
    yield from shape_reasons(problem)
    yield from score_reasons(problem)
    yield from cann_reasons(problem)
    for field in fields(problem):
        value = getattr(problem, field.name)
        if field.name not in HANDLED and value != field.default:
            yield f"npu_fusion_attention has no {field.name}" + ("" if value is True else f" {value}")
    suited = suitability(problem, device, operators())
    if all(suited.values()):
        yield from dict.fromkeys(suited.values())


def device_reasons(problem: AttentionProblem, device: DeviceProfile) -> Iterator[str]:
    if device.vendor != "ascend":
        yield f"npu_fusion_attention runs on Ascend NPUs, not on {device.name}"
    elif device.arch not in ARCHITECTURES:
        yield f"npu_fusion_attention runs on {', '.join(ARCHITECTURES)}, not on {device.arch}"
    if problem.dtype not in DTYPES:
        yield f"npu_fusion_attention computes {', '.join(DTYPES)}, not {problem.dtype}"


def shape_reasons(problem: AttentionProblem) -> Iterator[str]:
    if problem.heads_q > HEADS_LIMIT:
        yield f"npu_fusion_attention takes up to {HEADS_LIMIT} query heads, not {problem.heads_q}"
    if problem.head_dim > HEAD_DIM_LIMIT:
        yield f"npu_fusion_attention takes a head_dim up to {HEAD_DIM_LIMIT}, not {problem.head_dim}"
    if problem.head_dim_v > problem.head_dim:
        yield f"npu_fusion_attention takes a head_dim_v up to head_dim {problem.head_dim}, not {problem.head_dim_v}"
    if max(problem.seqlen_q, problem.seqlen_k) > LENGTH_LIMIT:
        longest = max(problem.seqlen_q, problem.seqlen_k)
        yield f"npu_fusion_attention takes sequences up to {LENGTH_LIMIT}, not {longest}"
    if problem.layout == "paged":
        yield "npu_fusion_attention has no paged layout"
    limit = PACKED_BATCH_LIMIT if problem.layout == "varlen" else BATCH_LIMIT
    if problem.batch > limit:
        packed = "packed " if problem.layout == "varlen" else ""
        yield f"npu_fusion_attention takes up to {limit} {packed}sequences, not {problem.batch}"


def score_reasons(problem: AttentionProblem) -> Iterator[str]:
    """Reasons that lie in what happens to the scores."""
    if problem.softcap:
        yield "npu_fusion_attention has no softcap"
    if problem.dropout:
        yield (
            "npu_fusion_attention draws its dropout mask from the generator of the NPU, and its backward draws it "
            "again: the counter-based mask of faops cannot be given to both"
        )
    if problem.layout == "varlen":
        for name, what in (("alibi", "ALiBi"), ("bias", "a bias"), ("mask", "a mask")):
            if getattr(problem, name):
                yield f"npu_fusion_attention takes no {what.removeprefix('a ')} that suits every packed sequence"
        return
    if problem.alibi and not pse.built_in(problem) and problem.dtype != "float32":
        together = "ALiBi with a bias" if problem.bias else "ALiBi for seqlen_q different from seqlen_k"
        yield f"npu_fusion_attention takes {together} as a {problem.dtype} tensor, which rounds it too much"
    for what, limit, size in (
        ("mask", masks.MASK_LIMIT, masks.mask_bytes(problem)),
        ("pse", pse.PSE_LIMIT, pse.pse_bytes(problem)),
    ):
        if size > limit:
            yield f"npu_fusion_attention needs a {what} of {size >> 20} MiB, which is more than {limit >> 20} MiB"


def cann_reasons(problem: AttentionProblem) -> Iterator[str]:
    """What the schema of an operator promises and an older CANN on this machine does not keep."""
    if problem.sinks and problem.op == "forward":
        version = cann.version()
        if version and release(version) < SINK_SINCE:
            yield f"npu_fusion_attention has a sink from CANN {'.'.join(map(str, SINK_SINCE))} on, not in {version}"


def release(version: str) -> tuple[int, ...]:
    """The first two numbers of a version of CANN: (8, 3) of "8.3.RC1"."""
    return tuple(int(number) for number in re.findall(r"\d+", version)[:2])


def backward_reasons(problem: AttentionProblem) -> Iterator[str]:
    """Reasons that hold for backward alone."""
    if problem.lse_grad:
        yield "npu_fusion_attention_grad has no gradient through lse"
    if problem.bias_grad:
        yield "npu_fusion_attention_grad has no gradient of the bias: its dpse is reserved and not written"
    if problem.deterministic and not torch.are_deterministic_algorithms_enabled():
        yield (
            "npu_fusion_attention_grad is deterministic only while torch.use_deterministic_algorithms(True) holds, "
            "which is a setting of the whole process"
        )


def suitability(problem: AttentionProblem, device: DeviceProfile, offered: Operators) -> dict[str, str]:
    """For each version of the operator, why it cannot run ``problem``; "" for one that can."""
    return {version: unsuited(version, problem, device, offered) for version in VERSIONS}


def unsuited(version: str, problem: AttentionProblem, device: DeviceProfile, offered: Operators) -> str:
    backward = problem.op == "backward"
    name = (BACKWARD if backward else FORWARD)[version]
    if not offered.has(name):
        return f"{offered.origin} has no {name}"
    if version == "v3" and device.arch == "950":
        return f"{name} does not run on 950"
    if (problem.bias or problem.alibi) and not offered.takes(name, "pse_type"):
        return f"{name} of {offered.origin} has no pse_type"
    if problem.sinks and not backward:  # backward finds the gradient of the sinks without the operator's help
        if not offered.takes(name, "sink"):
            return f"{name} of {offered.origin} has no sink"
        if device.arch == "950":  # version 1 even drops it there, without a word
            return f"{name} has no sink on 950"
    return ""


def versions(problem: AttentionProblem, device: DeviceProfile) -> list[str]:
    """Versions of the operator that run ``problem``, the preferred one first."""
    return [version for version, reason in suitability(problem, device, operators()).items() if not reason]
