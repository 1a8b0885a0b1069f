"""Configs of the inference kernels. None sets a tile: tiling is chosen inside CANN.

``operator`` is the version of npu_fused_infer_attention_score, ``layout`` the input_layout for tensors that lie
sequence first (those that lie heads first are BNSD), ``inner_precise`` 0 for high precision or 1 for high performance,
which bfloat16 does not tell apart. ``keys`` of a KV-cache call are read "in_place" where the operator can, or always
"gathered", at most ``gather`` KiB at a time.
"""

from __future__ import annotations

from faops.backends.npu import operators
from faops.backends.npu.inference.fused import OPERATORS, ROWS
from faops.problem import AttentionProblem
from faops.registry import Config

GATHERED_KIB = (256 << 10, 64 << 10)
# Head dims that the layout TND takes without rope parts; 64 in v2 alone, where every query head has keys of its own.
PACKED_HEAD_DIM, PACKED_HEAD_DIM_MHA = 128, 64


def versions() -> list[str]:
    """Versions of the fused operator that there are, the newest first."""
    found = operators.operators()
    return [name for name in ("v2", "v1") if found.has(OPERATORS[name])]


def precisions(problem: AttentionProblem) -> list[int]:
    """Values of inner_precise that differ, the default first."""
    return [0] if problem.dtype == "bfloat16" else [0, 1]


def packing_versions(problem: AttentionProblem) -> list[str]:
    """Versions of the fused operator whose layout TND takes the head dim, the newest first."""
    if problem.head_dim == PACKED_HEAD_DIM:
        return versions()
    only_new = problem.head_dim == PACKED_HEAD_DIM_MHA and problem.group == 1
    return [version for version in versions() if version == "v2" and only_new]


def forward_space(problem: AttentionProblem) -> list[Config]:
    """Configs of a call without a cache, the default first."""
    if problem.layout == "varlen":
        pairs = [(version, "TND") for version in packing_versions(problem)]
    else:
        pairs = [(version, layout) for version in versions() for layout in ("as_given", "BNSD", "BSH")]
    return [
        Config(operator=version, layout=layout, inner_precise=precise)
        for version, layout in pairs
        for precise in precisions(problem)
    ]


def decode_space(problem: AttentionProblem) -> list[Config]:
    """Configs of a KV-cache call, the default first."""
    pairs = [(version, layout) for version in versions() for layout in ("BSND", "BSH")]
    if problem.layout == "paged" and not (problem.bias or problem.mask):
        packed = [(version, "TND") for version in packing_versions(problem)]
        only_so = problem.seqlen_q > 1 and not ROWS.takes(problem.page_size)  # are such pages read in place
        pairs = [*packed, *pairs] if only_so else [*pairs, *packed]
    found = [
        Config(operator=version, layout=layout, inner_precise=precise, keys="in_place", gather=GATHERED_KIB[0])
        for version, layout in pairs
        for precise in precisions(problem)
    ]
    return [*found, *(Config({**found[0], "keys": "gathered", "gather": size}) for size in GATHERED_KIB)]


def incre_space(problem: AttentionProblem) -> list[Config]:
    """Configs of a one-row call on npu_incre_flash_attention, the default first."""
    return [
        Config(layout=layout, inner_precise=precise, keys=keys, gather=0)
        for keys in ("in_place", "gathered")
        for layout in ("BSND", "BSH")
        for precise in precisions(problem)
    ]


def prompt_space(problem: AttentionProblem) -> list[Config]:
    """Configs of npu_prompt_flash_attention, the default first. The operator has no inner_precise."""
    return [Config(layout=layout) for layout in ("as_given", "BNSD", "BSH")]
