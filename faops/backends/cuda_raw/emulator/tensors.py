"""Runs a specialised kernel on CPU tensors."""

from __future__ import annotations

import os

from torch import Tensor

from faops.backends.cuda_raw import params
from faops.backends.cuda_raw.emulator.run import Buffer, Report, run
from faops.backends.cuda_raw.specialize import Operands, Specialised

WRITTEN = ("out", "lse")


def launch(kernel: Specialised, operands: Operands, arch: str, mode: str = "run") -> Report:
    """Run ``kernel`` as an ``arch`` device ("sm_80") would; modes and errors as of :func:`.run.run`."""
    tensors = operands.tensors()
    packed = bytearray(kernel.template)
    addresses = (0 if tensor is None else tensor.data_ptr() for tensor in tensors)
    params.POINTER_STRUCT.pack_into(packed, 0, *addresses)
    buffers = [
        buffer_of(tensor, name, name in WRITTEN)
        for name, tensor in zip(params.POINTERS, tensors)
        if tensor is not None and tensor.numel() > 0
    ]
    return run(
        kernel.source,
        arch,
        bytes(packed),
        kernel.grid,
        kernel.shared_bytes,
        buffers,
        mode,
        pointers=params.POINTER_OFFSETS,
        host_threads=os.cpu_count() or 1,
    )


def buffer_of(tensor: Tensor, name: str, writable: bool) -> Buffer:
    """The bytes from a tensor's first to its last element, gaps between rows included."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride()))
    return Buffer(tensor.data_ptr(), (last + 1) * tensor.element_size(), writable, name)
