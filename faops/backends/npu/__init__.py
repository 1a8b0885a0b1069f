"""The Ascend backend: fused operators of torch_npu, their keywords bound to the operators' schemas at run time."""

from __future__ import annotations

from faops.registry import register


def register_kernels() -> None:
    """Add this backend's kernels to the registry."""
    from faops.backends.npu.fusion.backward import FusionBackward
    from faops.backends.npu.fusion.forward import FusionForward
    from faops.backends.npu.inference.decode import InferDecode
    from faops.backends.npu.inference.forward import InferForward
    from faops.backends.npu.inference.incremental import IncreDecode
    from faops.backends.npu.inference.prompt import PromptForward

    for kernel in (FusionForward, FusionBackward, InferForward, PromptForward, InferDecode, IncreDecode):
        register(kernel())
