"""New keys and values on their way into a KV cache; keys are rotated first."""

from __future__ import annotations

import triton
import triton.language as tl

from faops.backends.triton.kernels.cache import cache_rows, load_rotated, locate, of_sequence
from faops.backends.triton.kernels.scores import advance


@triton.jit(do_not_specialize=["new", "heads", "row_tiles", "capacity", "pages", "positions"])
def append(
    k, v, k_cache, v_cache, cache_seqlens, cache_batch_idx, block_table, rotary_cos, rotary_sin,
    new, heads, row_tiles, capacity, pages, positions, k_batch, k_row, k_head, v_batch, v_row, v_head,
    k_cache_page, k_cache_row, k_cache_head, v_cache_page, v_cache_row, v_cache_head, table_batch,
    HEAD_DIM: tl.constexpr, HEAD_DIM_V: tl.constexpr, WIDTH: tl.constexpr, WIDTH_V: tl.constexpr,
    PAGE_SIZE: tl.constexpr, ROTARY_DIM: tl.constexpr, INTERLEAVED: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """One program writes BLOCK_M of the ``new * heads`` rows of one sequence. The grid is row_tiles * batch."""
    program = tl.program_id(0)
    index = program // row_tiles
    row = program % row_tiles * BLOCK_M + tl.arange(0, BLOCK_M)
    token, head = row // heads, row % heads
    place = of_sequence(cache_seqlens, index, capacity) + token
    # What does not fit is dropped and overwrites nobody's keys.
    inside = (token < new) & (place >= 0) & (place < capacity)
    if PAGE_SIZE != 0:
        block_table = advance(block_table, index, table_batch)
    page, slot, exists = locate(
        block_table, of_sequence(cache_batch_idx, index, index), place, inside, pages, PAGE_SIZE
    )
    inside = tl.where(exists, inside, inside != inside)  # one truth or a block of them

    d = tl.arange(0, WIDTH)[None, :]
    filled = inside[:, None] & (d < HEAD_DIM)
    rows = advance(advance(advance(k, index, k_batch), token, k_row), head, k_head)[:, None]
    keys = load_rotated(rows, d, filled, place[:, None], rotary_cos, rotary_sin, positions, ROTARY_DIM, INTERLEAVED)
    rows = advance(cache_rows(k_cache, page, slot, k_cache_page, k_cache_row), head, k_cache_head)[:, None]
    tl.store(rows + d, keys, mask=filled)

    d = tl.arange(0, WIDTH_V)[None, :]
    filled = inside[:, None] & (d < HEAD_DIM_V)
    rows = advance(advance(advance(v, index, v_batch), token, v_row), head, v_head)[:, None]
    values = tl.load(rows + d, mask=filled)
    rows = advance(cache_rows(v_cache, page, slot, v_cache_page, v_cache_row), head, v_cache_head)[:, None]
    tl.store(rows + d, values, mask=filled)
