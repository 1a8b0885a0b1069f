"""Kernels of a few lines to try the emulator with."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import torch
from torch import Tensor

from faops.backends.cuda_raw.emulator import Buffer, Report, run
from faops.backends.cuda_raw.source import Source

FRAME = """#include "ptx.cuh"
struct Params {{
    const u32 *a, *b;
    u32* out;
    int what, more;
}};
{helpers}
KERNEL void LAUNCH_BOUNDS({threads}, 1) tiny(const GRID_CONSTANT Params params) {{
    const int t = thread_index();
    const u32 base = shared_base();
    {body}
}}
"""
POINTERS = (0, 8, 16)


def source(body: str, threads: int = 32, helpers: str = "") -> Source:
    """A kernel with the statements ``body``; ``t`` is the thread, ``base`` the start of shared memory."""
    return Source("tiny", "tiny", (), FRAME.format(body=body, threads=threads, helpers=helpers), threads)


def launch(
    kernel: Source,
    out: Tensor,
    a: Tensor | None = None,
    b: Tensor | None = None,
    what: int = 0,
    *,
    arch: str = "sm_80",
    mode: str = "run",
    grid: int = 1,
    shared: int = 4096,
    **options: int,
) -> Report:
    """Run it with ``a`` and ``b`` to read, ``out`` to write and the number ``what``."""
    named = [(name, tensor) for name, tensor in (("a", a), ("b", b), ("out", out)) if tensor is not None]
    buffers = [Buffer(x.data_ptr(), x.numel() * x.element_size(), name == "out", name) for name, x in named]
    params = struct.pack("<3Q2i", *(0 if x is None else x.data_ptr() for x in (a, b, out)), what, 0)
    return run(kernel, arch, params, grid, shared, buffers, mode, pointers=POINTERS, **options)


def words(count: int, fill: int = 0) -> Tensor:
    """``count`` 32-bit words."""
    return torch.full((count,), fill, dtype=torch.int32)


def choose(cases: Sequence[str]) -> str:
    """Statements that run the case whose number is ``params.what``."""
    return "switch (params.what) {" + "".join(f"case {i}: {{\n{case}\n}} break;" for i, case in enumerate(cases)) + "}"
