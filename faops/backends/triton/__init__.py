"""Triton kernels: forward, backward and decode for Ampere and newer, and for a CPU through Triton's interpreter;
forward for Ascend NPUs through triton-ascend.
"""

from __future__ import annotations


def register_kernels() -> None:
    """Add this backend's kernels to the registry."""
    from faops.backends.triton.ascend.forward import AscendForward
    from faops.backends.triton.backward import TritonBackward
    from faops.backends.triton.decode import TritonDecode
    from faops.backends.triton.forward import TritonForward
    from faops.registry import register

    register(TritonForward())
    register(TritonBackward())
    register(TritonDecode())
    register(AscendForward())
