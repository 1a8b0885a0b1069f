"""Packed sequences as the operators want them: cumulative ends on the host, and no row that sees no key.

Operators take the ends of the sequences without the leading 0 of cu_seqlens. They refuse a causal sequence with more
rows than keys, so rows that see nothing are left out here. And they keep the two softmax results in an order of their
own: named (T, H, 8), stored sequence by sequence as blocks (H, length, 8).
"""

from __future__ import annotations

import functools
from itertools import accumulate, pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from faops import lengths
from faops.backends.npu.masks import dead_rows
from faops.inputs import AttentionInputs
from faops.problem import Band

Span = tuple[int, int]  # half-open


class Packing(NamedTuple):
    """Which part of packed tensors an operator gets, and where the sequences end in that part.

    ``spans`` are the rows of q that see a key, a span a sequence; ``keys`` is the one span of k and v that holds all
    that those rows see.
    """

    spans: tuple[Span, ...]
    ends_q: tuple[int, ...]
    ends_k: tuple[int, ...]
    keys: Span
    unread: tuple[Span, ...]  # spans of keys within ``keys`` that belong to sequences without rows

    @property
    def rows(self) -> int:
        """How many rows the operator gets."""
        return self.ends_q[-1] if self.ends_q else 0

    @property
    def solid(self) -> Span | None:
        """The rows as one span of q; None where others lie between them."""
        inner = [span for span in self.spans if span[0] < span[1]]
        if any(before[1] != after[0] for before, after in pairwise(inner)):
            return None
        return (inner[0][0], inner[-1][1]) if inner else (0, 0)


def of(inputs: AttentionInputs) -> Packing:
    """The packing of a call. Waits for the device where cu_seqlens lie there, once for all layers of a step."""
    assert inputs.cu_seqlens_q is not None and inputs.cu_seqlens_k is not None
    starts_q, starts_k = lengths.host(inputs.cu_seqlens_q), lengths.host(inputs.cu_seqlens_k)
    return plan(tuple(starts_q), tuple(starts_k), Band(-1, inputs.window_right))


@functools.lru_cache(maxsize=64)
def plan(starts_q: tuple[int, ...], starts_k: tuple[int, ...], band: Band) -> Packing:
    """The packing of sequences that begin at the given rows and keys, the ends of the last ones included.

    Sequences without rows go where they can: at either end, and in between where they have no keys either.
    """
    rows, keys = [], []
    for row, row_end, key, key_end in zip(starts_q, starts_q[1:], starts_k, starts_k[1:]):
        rows.append((row + dead_rows(row_end - row, key_end - key, band), row_end))
        keys.append((key, key_end))
    live = [index for index, (row, end) in enumerate(rows) if row < end]
    if not live:
        return Packing((), (), (), (0, 0), ())
    between = zip(rows[live[0] : live[-1] + 1], keys[live[0] : live[-1] + 1])
    pairs = [(row, key) for row, key in between if row[0] < row[1] or key[0] < key[1]]
    rows, keys = [row for row, _ in pairs], [key for _, key in pairs]
    return Packing(
        spans=tuple(rows),
        ends_q=tuple(accumulate(end - row for row, end in rows)),
        ends_k=tuple(accumulate(end - key for key, end in keys)),
        keys=(keys[0][0], keys[-1][1]),
        unread=tuple(key for row, key in pairs if row[0] == row[1]),
    )


@functools.lru_cache(maxsize=4)
def row_index(packing: Packing, device: torch.device) -> Tensor:
    """The rows of q that the operator gets, int64 (rows,)."""
    with torch.inference_mode(False):
        return torch.cat([torch.arange(*span) for span in packing.spans]).to(device)


@functools.lru_cache(maxsize=4)
def softmax_order(packing: Packing, heads: int, device: torch.device) -> Tensor:
    """Where the softmax results of (head, row) are stored, int64 (H, rows): by sequence, each a block (H, length)."""
    with torch.inference_mode(False):
        starts = torch.tensor((0, *packing.ends_q[:-1]))
        sizes = torch.tensor(packing.ends_q) - starts
        start = starts.repeat_interleave(sizes)
        size = sizes.repeat_interleave(sizes)
        within = torch.arange(packing.rows) - start
        return (start * heads + torch.arange(heads).unsqueeze(1) * size + within).to(device)
