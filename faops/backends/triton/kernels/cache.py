"""What the KV-cache kernels share: a sequence's own numbers, where its keys lie, and rotary embedding.

A dense cache is read like a paged one whose sequences have one page each. On a GPU nobody has looked at lengths, pages
and rows: whatever they are, nothing outside of the tensors is read or written.
"""

from __future__ import annotations

import triton
import triton.language as tl

from faops.backends.triton.kernels.arithmetic import narrow
from faops.backends.triton.kernels.scores import advance


@triton.jit
def of_sequence(values, index, default):
    """``values[index]``, or ``default`` where there are no values."""
    if values is None:
        return default
    else:
        return tl.load(values + index)


@triton.jit
def locate(block_table, own_page, place, inside, pages, PAGE_SIZE: tl.constexpr):
    """(page, slot in it, whether the cache has that page) of the keys at ``place``, a number or many.

    ``own_page`` holds all keys where nothing is paged. In place of a page that the cache, of ``pages`` > 0, does not
    have its first or last one is returned.
    """
    if PAGE_SIZE == 0:
        page, slot = own_page, place
    else:
        page, slot = tl.load(block_table + place // PAGE_SIZE, mask=inside), place % PAGE_SIZE
    return tl.maximum(tl.minimum(page, pages - 1), 0), slot, (page >= 0) & (page < pages)


@triton.jit
def load_rotated(rows, d, inside, position, cos, sin, positions, ROTARY_DIM: tl.constexpr,
                 INTERLEAVED: tl.constexpr):  # fmt: skip
    """Elements ``d`` (1, WIDTH) of ``rows`` (R, 1), pointers; the first ROTARY_DIM turn by the angles of ``position``.

    Computed in float32 and rounded once, as :func:`faops.rotary.apply_rotary` does. ``cos`` and ``sin`` are contiguous
    and have ``positions`` rows; what stands at a position that they lack stays as it is.
    """
    x = tl.load(rows + d, mask=inside, other=0.0)
    if ROTARY_DIM == 0:
        return x
    else:
        pairs: tl.constexpr = ROTARY_DIM // 2
        turning = inside & (d < ROTARY_DIM) & (position >= 0) & (position < positions)
        if INTERLEAVED:
            first = d % 2 == 0
            pair = d // 2
            partner = d ^ 1
        else:
            first = d < pairs
            pair = tl.where(first, d, d - pairs)
            partner = tl.where(first, d + pairs, d - pairs)
        other = tl.load(rows + partner, mask=turning, other=0.0).to(tl.float32)
        angle = tl.cast(position, tl.int64) * pairs + pair
        c = tl.load(cos + angle, mask=turning, other=1.0).to(tl.float32)
        s = tl.load(sin + angle, mask=turning, other=0.0).to(tl.float32)
        turned = x.to(tl.float32) * c + tl.where(first, -other, other) * s
        return tl.where(turning, narrow(turned, x.dtype), x)


@triton.jit
def cache_rows(cache, page, slot, page_stride, row_stride):
    """Pointers to the first elements of keys or values, a number or many."""
    return advance(advance(cache, page, page_stride), slot, row_stride)
