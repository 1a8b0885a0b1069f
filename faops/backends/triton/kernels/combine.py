"""One result from those of all splits of the keys."""

from __future__ import annotations

import triton
import triton.language as tl

from faops.backends.triton.kernels.arithmetic import narrow
from faops.backends.triton.kernels.scores import LN2, LOG2E, advance


@triton.jit(do_not_specialize=["rows", "heads_kv", "splits"])
def combine(
    partial, out, lse, sinks, rows, heads_kv, splits, out_batch, out_row, out_head, lse_batch, lse_head,
    GROUP: tl.constexpr, HEAD_DIM_V: tl.constexpr, WIDTH_V: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """One program finishes one row of one head; ``partial`` is as :func:`decode.attention_decode` leaves it.

    The grid has as many programs as ``partial`` has rows, ``rows`` a KV head: positions times the GROUP of its heads.
    """
    row = tl.program_id(0)
    row_of_head, head_kv, index = row % rows, row // rows % heads_kv, row // rows // heads_kv
    position, head = row_of_head // GROUP, head_kv * GROUP + row_of_head % GROUP
    results = advance(partial, row, splits * HEAD_DIM_V)
    logs = advance(advance(partial, tl.num_programs(0), splits * HEAD_DIM_V), row, splits)
    s = tl.arange(0, BLOCK_S)
    d = tl.arange(0, WIDTH_V)[None, :]

    acc = tl.zeros([WIDTH_V], dtype=tl.float32)
    highest = tl.cast(float("-inf"), tl.float32)
    total = tl.cast(0.0, tl.float32)
    for split in tl.range(0, splits, BLOCK_S):
        log = tl.load(logs + split + s, mask=split + s < splits, other=float("-inf"))
        seen = log > float("-inf")  # the others saw no key and have left no result
        higher = tl.maximum(highest, tl.max(log, 0))
        base = tl.where(higher == float("-inf"), 0.0, higher)
        weights = tl.exp2(log - base)
        rescale = tl.exp2(highest - base)
        at = results + ((split + s)[:, None] * HEAD_DIM_V + d)
        part = tl.load(at, mask=seen[:, None] & (d < HEAD_DIM_V), other=0.0)
        acc = acc * rescale + tl.sum(part * weights[:, None], 0)
        total = total * rescale + tl.sum(weights, 0)
        highest = higher

    alive = highest > float("-inf")
    if sinks is not None:
        sink = tl.load(sinks + head).to(tl.float32) * LOG2E
        base = tl.maximum(highest, sink)
        rescale = tl.exp2(highest - base)
        acc *= rescale
        total = total * rescale + tl.exp2(sink - base)
        highest = base
    weight = tl.where(alive, 1 / tl.where(alive, total, 1.0), 0.0)
    d = tl.arange(0, WIDTH_V)
    out = advance(advance(advance(out, index, out_batch), position, out_row), head, out_head)
    tl.store(out + d, narrow(acc * weight, out.dtype.element_ty), mask=d < HEAD_DIM_V)
    if lse is not None:
        lse = advance(advance(lse, index, lse_batch), head, lse_head)
        tl.store(lse + position, tl.where(alive, (highest + tl.log2(total)) * LN2, float("-inf")))
