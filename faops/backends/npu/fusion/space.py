"""The configs of the fusion kernels: choices that CANN leaves to its caller.

How a problem is cut into tiles is not among them: CANN decides that itself, and no argument of the operators sets it.
What is left are the operator's version, the layout that the tensors are brought into, how the band is told, and
whether the kernel guards rows that see nothing.

- ``operator``: "v1", "v2" or "v3" of npu_fusion_attention, where they mean the same.
- ``layout``: "as_given" copies least; "BNSD" and "SBH" bring everything into that one. The tuner's own tensors are
  contiguous, so that as_given is BSND for them.
- ``mask``: "compressed" (the 2048 × 2048 mask, sparse_mode 3 and 4), "full" (a mask of the whole matrix), or "none".
- ``inner_precise``: 0, or 2, which guards rows without a key. Results do not depend on it: such rows are put right
  afterwards.
"""

from __future__ import annotations

from faops.backends.npu import layouts
from faops.backends.npu.fusion import support
from faops.device import DeviceProfile
from faops.problem import AttentionProblem
from faops.registry import Config

# A whole mask of the band is worth a try up to this many bytes: 8192 × 8192. Above, it costs more than it can save.
FULL_MASK_LIMIT = 1 << 26


def configs(problem: AttentionProblem, device: DeviceProfile) -> list[Config]:
    """Every config of an accepted problem, the default first."""
    return [
        Config(operator=operator, layout=layout, mask=mask, inner_precise=precise)
        for operator in support.versions(problem, device)
        for layout in layout_choices(problem)
        for mask in mask_choices(problem)
        for precise in precise_choices(problem)
    ]


def default(problem: AttentionProblem, device: DeviceProfile) -> Config:
    """The preferred operator, no copy that can be avoided, and the small mask."""
    return Config(
        operator=support.versions(problem, device)[0],
        layout=layout_choices(problem)[0],
        mask=mask_choices(problem)[0],
        inner_precise=precise_choices(problem)[0],
    )


def layout_choices(problem: AttentionProblem) -> tuple[str, ...]:
    return (layouts.PACKED,) if problem.layout == "varlen" else (layouts.AS_GIVEN, "BNSD", "SBH")


def mask_choices(problem: AttentionProblem) -> tuple[str, ...]:
    if problem.mask:
        return ("full",)
    if problem.band.full:
        return ("none",)
    # A whole mask of packed sequences lies in the top left corner of each and cannot be aligned bottom-right in all.
    if problem.layout == "varlen" or problem.seqlen_q * problem.seqlen_k > FULL_MASK_LIMIT:
        return ("compressed",)
    return ("compressed", "full")


def precise_choices(problem: AttentionProblem) -> tuple[int, ...]:
    """The guard is worth its price only where values on the device decide which rows see a key."""
    return (2, 0) if problem.mask or problem.bias else (0,)
