"""Online softmax over blocks of keys (Milakov and Gimelshein 2018), as forward and decode take it.

A row keeps ``highest``, the largest score so far in units of log 2, and ``total``, the sum of 2 ** (score - highest).
"""

from __future__ import annotations

import triton
import triton.language as tl

from faops.backends.triton.kernels.scores import LOG2E


@triton.jit
def take_block(scores, highest, total, scale, FOLD_SCALE: tl.constexpr, MAY_HIDE: tl.constexpr):
    """(weights of a block of scores, what results so far are to be multiplied by, highest, total).

    With FOLD_SCALE the scores still lack a positive scale. MAY_HIDE where all scores of a row may be -inf.
    """
    if FOLD_SCALE:
        higher = tl.maximum(highest, tl.max(scores, 1) * (scale * LOG2E))
    else:
        higher = tl.maximum(highest, tl.max(scores, 1))
    # A row that has seen no key yet has -inf here, and -inf - -inf is no number.
    if MAY_HIDE:
        base = tl.where(higher == float("-inf"), 0.0, higher)
    else:
        base = higher
    if FOLD_SCALE:
        weights = tl.exp2(scores * (scale * LOG2E) - base[:, None])
    else:
        weights = tl.exp2(scores - base[:, None])
    rescale = tl.exp2(highest - base)
    return weights, rescale, higher, total * rescale + tl.sum(weights, 1)


@triton.jit
def join_sink(acc, highest, total, sink):
    """(acc, highest, total) with one more key, whose score is ``sink`` and whose value is 0."""
    sink = sink.to(tl.float32) * LOG2E
    base = tl.maximum(highest, sink)
    rescale = tl.exp2(highest - base)
    return acc * rescale[:, None], base, total * rescale + tl.exp2(sink - base)
