"""Small kernels for tests of launching and compiling."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def scaled(x, absent, y, size, odd, one, large, scale, BLOCK: tl.constexpr):
    """y = scale * x[size:] for one block, and a use of every other number."""
    index = tl.arange(0, BLOCK)
    if absent is None:
        tl.store(y + index, tl.load(x + size + index) * scale, mask=index + odd < large + one)


@triton.jit
def places(x, columns, BLOCK: tl.constexpr):
    """Every program writes its place in the grid, over and over, so that there is time to mix them up."""
    place = tl.program_id(0) * columns + tl.program_id(1)
    for _ in range(BLOCK):
        tl.store(x + tl.program_id(0) * columns + tl.program_id(1), place)


@triton.jit
def shared(x, BLOCK: tl.constexpr):
    """A product, whose operands go through shared memory."""
    index = tl.arange(0, BLOCK)[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    values = tl.load(x + index).to(tl.float16)
    tl.store(x + index, tl.dot(values, tl.trans(values)))


@triton.jit
def crowded(x, BLOCK: tl.constexpr):
    """A tile that one warp has no registers for from 128 on: each thread has 64 * BLOCK / 32 elements."""
    index = tl.arange(0, 64)[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    values = tl.load(x + index)
    total = tl.sum(tl.sum(values, 1), 0)
    tl.store(x + index, values * total)
