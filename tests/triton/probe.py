"""A kernel that shows what functions of the kernels return. Imported inside tests only, where it is interpreted."""

from __future__ import annotations

import triton
import triton.language as tl

from faops.backends.triton.kernels.scores import key_range, row_range


@triton.jit
def find_range(
    found, start, end, seqlen_q, seqlen_k, left, right,
    BLOCK: tl.constexpr, WINDOW_LEFT: tl.constexpr, WINDOW_RIGHT: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    if KEYS:
        low, full_low, full_high, high = key_range(
            start, end, seqlen_q, seqlen_k, left, right, BLOCK, WINDOW_LEFT, WINDOW_RIGHT
        )
    else:
        low, full_low, full_high, high = row_range(
            start, end, seqlen_q, seqlen_k, left, right, BLOCK, WINDOW_LEFT, WINDOW_RIGHT
        )
    tl.store(found, low)
    tl.store(found + 1, full_low)
    tl.store(found + 2, full_high)
    tl.store(found + 3, high)
