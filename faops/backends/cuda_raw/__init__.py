"""Raw CUDA kernels: written in CUDA C++, compiled at run time by NVRTC, and run on a CPU by the emulator."""

from __future__ import annotations


def register_kernels() -> None:
    """Add this backend's kernels to the registry."""
    from faops.backends.cuda_raw.sm75_decode import Sm75Decode
    from faops.backends.cuda_raw.sm75_forward import Sm75Forward
    from faops.backends.cuda_raw.sm80_decode import Sm80Decode
    from faops.backends.cuda_raw.sm80_forward import Sm80Forward
    from faops.registry import register

    register(Sm75Forward())
    register(Sm80Forward())
    register(Sm75Decode())
    register(Sm80Decode())
