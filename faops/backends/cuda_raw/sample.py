"""One real kernel a target, for doctor to compile: a causal forward of head dim 64."""

from __future__ import annotations

import torch

from faops.architectures import cuda_number
from faops.backends.cuda_raw.source import Source
from faops.backends.cuda_raw.specialize import specialise
from faops.backends.cuda_raw.targets import Target
from faops.backends.cuda_raw.tiles import SM75, SM80, Family
from faops.inputs import AttentionInputs
from faops.operands import Operands
from faops.registry import Config


def family_of(target: Target) -> Family:
    """The family whose kernels a target runs."""
    return SM75 if cuda_number(target.name) < SM80.arch else SM80


def sample_source(target: Target, head_dim: int = 64) -> Source:
    """Source of a plain causal forward in float16 with the family's default tiles."""
    from faops.backends.cuda_raw.forward import RawForward
    from faops.backends.cuda_raw.sm75_forward import Sm75Forward
    from faops.backends.cuda_raw.sm80_forward import Sm80Forward
    from faops.device import known

    kernel: RawForward = Sm75Forward() if family_of(target) is SM75 else Sm80Forward()
    inputs, operands = sample_call(head_dim)
    config: Config = kernel.tiles(inputs.problem(), known("t4" if kernel.family is SM75 else "a100"))
    return specialise(kernel.family, inputs, operands, config).source


def sample_call(head_dim: int, seqlen: int = 256) -> tuple[AttentionInputs, Operands]:
    """Tensors of a plain causal call in float16: batch 1, one head."""
    q, k, v, out = (torch.empty(1, seqlen, 1, head_dim, dtype=torch.float16) for _ in range(4))
    inputs = AttentionInputs(
        q, k, v, None, None, None, None, None, None, None, seqlen, seqlen, -1, 0, head_dim**-0.5, 0.0, 0.0, False,
        True, "",
    )  # fmt: skip
    return inputs, Operands.of(inputs, out, torch.empty(1, 1, seqlen))
