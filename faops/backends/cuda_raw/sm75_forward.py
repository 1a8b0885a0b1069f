"""The forward kernel of Turing: m16n8k8 products, copies through registers."""

from __future__ import annotations

from faops.backends.cuda_raw.base import TuringKernel
from faops.backends.cuda_raw.forward import RawForward
from faops.backends.cuda_raw.tiles import SM75


class Sm75Forward(TuringKernel, RawForward):
    """CUDA C++ in csrc/sm75_forward.cu."""

    name = "sm75_forward"
    priority = 30  # above SDPA, which has no flash kernel for Turing
    family = SM75
