"""The KV-cache kernels of Ampere, Ada and whatever is newer: m16n8k16 products, cp.async."""

from __future__ import annotations

from faops.backends.cuda_raw.base import AmpereKernel
from faops.backends.cuda_raw.decode import RawDecode
from faops.backends.cuda_raw.decode_tiles import SM80


class Sm80Decode(AmpereKernel, RawDecode):
    """CUDA C++ in csrc/sm80_decode.cu, decode_append.cu and decode_combine.cu."""

    name = "sm80_decode"
    priority = 18  # above Triton's, in which nothing looks for races
    family = SM80
