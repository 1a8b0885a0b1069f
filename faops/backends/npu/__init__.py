"""The Ascend backend: fused operators of torch_npu, their keywords bound to the operators' schemas at run time."""

from __future__ import annotations


def register_kernels() -> None:
    """Add this backend's kernels to the registry."""
