"""Where each sequence's keys are in the cache, as numbers on the host: Ascend's operators want lengths there.

Reading them waits for the device once a step, not once a layer (:mod:`faops.lengths`). Since they are read anyway, they
are checked as well, before anything is written.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from faops import lengths
from faops.errors import ArgumentError
from faops.inputs import DecodeInputs
from faops.problem import UNLIMITED
from faops.validate import check_range


class Sequence(NamedTuple):
    """One sequence of a KV-cache call: cache positions, and its ``row`` in a dense cache."""

    row: int
    past: int  # keys in the cache before the call
    pad: int  # the first valid key
    first: int  # the first key that any of the call's rows sees
    last: int  # one behind the last key, new ones included

    @property
    def visible(self) -> int:
        """Keys that rows may see."""
        return self.last - self.first


def sequences_of(inputs: DecodeInputs) -> list[Sequence]:
    """The sequences of a call. Raises ArgumentError for a length, row or left padding outside of the cache."""
    batch, seqlen_q = inputs.q.shape[:2]
    new = 0 if inputs.k is None else inputs.k.shape[1]
    past = _lengths(inputs, batch, new)
    pads = _values(inputs.cache_leftpad, [0] * batch)
    rows = _values(inputs.cache_batch_idx, list(range(batch)))
    check_range("cache_batch_idx", rows if inputs.cache_batch_idx is not None else [], inputs.k_cache.shape[0] - 1,
                f"a row of a cache of {inputs.k_cache.shape[0]}")  # fmt: skip
    _check_positions(inputs, past, new)
    found = []
    for row, length, pad in zip(rows, past, pads):
        last = length + new
        check_range("cache_leftpad", [pad], last, f"inside a sequence of {last} keys")
        seen = pad if inputs.window_left == UNLIMITED else max(pad, last - seqlen_q - inputs.window_left)
        found.append(Sequence(row, length, pad, min(seen, last), last))
    return found


def _lengths(inputs: DecodeInputs, batch: int, new: int) -> list[int]:
    if inputs.cache_seqlens is None:
        return [inputs.capacity] * batch
    past = lengths.host(inputs.cache_seqlens)
    check_range("cache_seqlens", past, inputs.capacity - new, f"room for {new} new of {inputs.capacity} keys")
    return past


def _values(tensor: Tensor | None, default: list[int]) -> list[int]:
    return default if tensor is None else lengths.host(tensor)


def _check_positions(inputs: DecodeInputs, past: list[int], new: int) -> None:
    """The rotary tables hold every position that a query or a new key is rotated at."""
    cos = inputs.rotary_cos
    if cos is None or cos.shape[1] == 0 or not past:
        return
    rows = inputs.q.shape[1]
    needed = max(past) + max(new, rows if rows == 0 or not inputs.band.full else 1)
    if cos.shape[0] < needed:
        expected = f"at least {needed}, up to the last position that is rotated"
        raise ArgumentError("rotary_cos", f"{cos.shape[0]} positions", expected)
