"""Runs a specialised kernel on CPU tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from faops.backends.cuda_raw.emulator.grid import Buffer, Report, run
from faops.backends.cuda_raw.specialize import Specialised


def launch(kernel: Specialised, tensors: Sequence[Tensor | None], arch: str, mode: str = "run") -> Report:
    """Run ``kernel`` as an ``arch`` device ("sm_80") would; modes and errors as of :func:`.grid.run`."""
    buffers = [
        buffer_of(tensor, name, name in kernel.struct.written)
        for name, tensor in zip(kernel.struct.pointers, tensors)
        if tensor is not None and tensor.numel() > 0
    ]
    packed = bytes(kernel.packed(tensors))
    return run(
        kernel.source, arch, packed, kernel.grid, kernel.shared_bytes, buffers, mode,
        pointers=kernel.struct.pointer_offsets, host_threads=torch.get_num_threads(),
    )  # fmt: skip


def buffer_of(tensor: Tensor, name: str, writable: bool) -> Buffer:
    """The bytes from a tensor's first to its last element, gaps between rows included."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride()))
    return Buffer(tensor.data_ptr(), (last + 1) * tensor.element_size(), writable, name)
