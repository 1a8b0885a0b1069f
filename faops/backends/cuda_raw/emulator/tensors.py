"""Runs a specialised kernel on CPU tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from faops.backends.cuda_raw import params
from faops.backends.cuda_raw.emulator.grid import Buffer, Report, run
from faops.backends.cuda_raw.specialize import Specialised
from faops.operands import Operands

WRITTEN = ("out", "lse")


def launch(kernel: Specialised, operands: Operands, arch: str, mode: str = "run") -> Report:
    """Run ``kernel`` as an ``arch`` device ("sm_80") would; modes and errors as of :func:`.grid.run`."""
    buffers = [
        buffer_of(tensor, name, name in WRITTEN)
        for name, tensor in zip(params.POINTERS, operands)
        if tensor is not None and tensor.numel() > 0
    ]
    packed = bytes(kernel.packed(operands))
    return run(
        kernel.source, arch, packed, kernel.grid, kernel.shared_bytes, buffers, mode,
        pointers=params.POINTER_OFFSETS, host_threads=torch.get_num_threads(),
    )  # fmt: skip


def buffer_of(tensor: Tensor, name: str, writable: bool) -> Buffer:
    """The bytes from a tensor's first to its last element, gaps between rows included."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride()))
    return Buffer(tensor.data_ptr(), (last + 1) * tensor.element_size(), writable, name)
