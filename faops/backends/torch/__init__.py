"""The PyTorch backend: SDPA where it means the same, blockwise online softmax for all the rest. Runs on any device."""

from __future__ import annotations


def register_kernels() -> None:
    """Add this backend's kernels to the registry."""
    from faops.backends.torch.blockwise import BlockwiseBackward, BlockwiseForward
    from faops.backends.torch.decode import BlockwiseDecode
    from faops.backends.torch.sdpa import SdpaBackward, SdpaForward
    from faops.registry import register

    for kernel in (SdpaForward(), SdpaBackward(), BlockwiseForward(), BlockwiseBackward(), BlockwiseDecode()):
        register(kernel)
