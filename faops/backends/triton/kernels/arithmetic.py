"""Products and roundings, with what Triton's interpreter does to bfloat16 put right.

The interpreter keeps bfloat16 as integers of 16 bits: it multiplies those integers as they are, and it cuts digits off
where a GPU rounds to the nearest even.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def dot(a, b, acc, PRECISION: tl.constexpr):
    """``a @ b + acc`` in float32, acc being None for none."""
    if acc is None and not (INTERPRETED and a.dtype == tl.bfloat16):  # Triton 3.3 takes no None that was handed on
        return tl.dot(a, b, input_precision=PRECISION)
    elif INTERPRETED and a.dtype == tl.bfloat16:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), acc, input_precision=PRECISION)
    else:
        return tl.dot(a, b, acc, input_precision=PRECISION)


@triton.jit
def narrow(x, dtype):
    """float32 ``x`` rounded to ``dtype``."""
    if INTERPRETED and dtype == tl.bfloat16:
        bits = x.to(tl.uint32, bitcast=True)
        bits += 0x7FFF + ((bits >> 16) & 1)
        return (bits >> 16).to(tl.uint16).to(tl.bfloat16, bitcast=True)
    else:
        return x.to(dtype)


INTERPRETED = tl.constexpr(not isinstance(dot, triton.runtime.JITFunction))
