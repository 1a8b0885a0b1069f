"""The KV-cache kernels of Turing: m16n8k8 products, copies through registers."""

from __future__ import annotations

from faops.backends.cuda_raw.base import TuringKernel
from faops.backends.cuda_raw.decode import RawDecode
from faops.backends.cuda_raw.decode_tiles import SM75


class Sm75Decode(TuringKernel, RawDecode):
    """CUDA C++ in csrc/sm75_decode.cu, decode_append.cu and decode_combine.cu."""

    name = "sm75_decode"
    priority = 30  # above Triton, whose products for Turing use no tensor cores
    family = SM75
