"""The forward kernel of Ampere, Ada and whatever is newer: m16n8k16 products, cp.async."""

from __future__ import annotations

from faops.backends.cuda_raw.base import AmpereKernel
from faops.backends.cuda_raw.forward import RawForward
from faops.backends.cuda_raw.tiles import SM80


class Sm80Forward(AmpereKernel, RawForward):
    """CUDA C++ in csrc/sm80_forward.cu."""

    name = "sm80_forward"
    priority = 18  # below SDPA's own kernels, where they serve, until it is measured against them
    family = SM80
