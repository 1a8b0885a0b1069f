"""The PyTorch backend: SDPA where it means the same, blockwise online softmax for all the rest. Runs on any device."""

from __future__ import annotations


def register_kernels() -> None:
    """Add this backend's kernels to the registry."""
    from faops.backends.torch.blockwise import BlockwiseBackward, BlockwiseForward
    from faops.backends.torch.decode import BlockwiseDecode
    from faops.backends.torch.sdpa import SdpaBackward, SdpaForward
    from faops.backends.torch.sdpa_banded import SdpaBandedBackward, SdpaBandedForward
    from faops.backends.torch.sdpa_decode import SdpaDecode
    from faops.backends.torch.sdpa_varlen import SdpaVarlenBackward, SdpaVarlenForward
    from faops.registry import register

    kinds = (
        SdpaForward, SdpaBackward, SdpaBandedForward, SdpaBandedBackward, SdpaVarlenForward, SdpaVarlenBackward,
        BlockwiseForward, BlockwiseBackward, BlockwiseDecode, SdpaDecode,
    )  # fmt: skip
    for kind in kinds:
        register(kind())
