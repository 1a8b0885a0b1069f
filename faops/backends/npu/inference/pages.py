"""The keys of a KV-cache call as an operator takes them: in place where it reads the cache as it lies, else copied.

In place are a contiguous dense cache, read from its start; pages of a size that the operator takes; and a contiguous
dense cache seen as pages, for calls that start elsewhere or use other rows. What the operator reads has no slot in it
that nobody ever wrote: memory there may hold NaN, which a mask does not make harmless.

Everything else is gathered: the visible keys of every sequence side by side, from 0 on, a bounded number at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from faops.backends.npu import operators
from faops.backends.npu.inference.sequences import Sequence
from faops.device import detect
from faops.inputs import DecodeInputs
from faops.validate import may_read

GATHER = "npu_gather_pa_kv_cache"
WITHOUT_GATHER = ("310P",)
MOST_ELEMENTS = 2**31 - 1  # of a paged cache
WIDEST_ROW = 65535  # Hk · D of pages with their sequence first
MOST_KEYS_OF_ONE_ROW = 262144
STEP = 128  # keys gathered at a time are a multiple of this


@dataclass(slots=True)
class Keys:
    """Keys of every sequence. ``starts`` are the cache positions of their first ones, and ``counts`` how many follow.

    Dense: k and v (B, width, Hk, D), or (B, Hk, width, D) if heads_first. Paged (with a table (B, columns), int32):
    (pages, page size, Hk · D), or (pages, Hk, page size, D) if heads_first; width is columns · page size.
    """

    k: Tensor
    v: Tensor
    starts: list[int]
    counts: list[int]
    width: int
    heads_first: bool = False
    table: Tensor | None = None
    page_size: int = 0
    behind: int = 0  # keys of each sequence that follow these ones and are in another part

    def heads(self, dim: int) -> int:
        """Key and value heads."""
        if self.heads_first:
            return self.k.shape[1]
        return self.k.shape[2] if self.table is None else self.k.shape[2] // dim


@dataclass(frozen=True, slots=True)
class PageRule:
    """Which page sizes an operator takes: multiples of ``step`` up to ``most``."""

    step: int
    most: int

    def takes(self, size: int) -> bool:
        return 0 < size <= self.most and size % self.step == 0

    def largest(self, capacity: int) -> int:
        """The largest legal size that divides ``capacity``; 0 if there is none."""
        sizes = range(self.most - self.most % self.step, 0, -self.step)
        return next((size for size in sizes if capacity % size == 0), 0)


def in_place(inputs: DecodeInputs, sequences: list[Sequence], rule: PageRule) -> Keys | None:
    """The keys where they lie; None where the operator cannot read them there."""
    k, v = inputs.k_cache, inputs.v_cache
    heads_first = not (k.is_contiguous() and v.is_contiguous())
    if heads_first and not (k.transpose(1, 2).is_contiguous() and v.transpose(1, 2).is_contiguous()):
        return None
    if inputs.block_table is not None:
        return _pages(inputs, inputs.block_table, k.shape[1], sequences, rule, heads_first)
    plain = all(index == one.row and one.pad == 0 for index, one in enumerate(sequences))
    narrowed = inputs.q.shape[1] == 1 and any(one.first > 0 for one in sequences)  # a window of one row
    if plain and not narrowed:
        return _rows(inputs, sequences, heads_first)
    size = 0 if heads_first else rule.largest(k.shape[1])
    found = None if size == 0 else _pages(inputs, None, size, sequences, rule, heads_first)
    return _rows(inputs, sequences, heads_first) if found is None and plain else found


def _rows(inputs: DecodeInputs, sequences: list[Sequence], heads_first: bool) -> Keys | None:
    """A dense cache from its first key on."""
    batch, capacity = len(sequences), inputs.k_cache.shape[1]
    if inputs.q.shape[1] == 1 and capacity > MOST_KEYS_OF_ONE_ROW:
        return None
    k, v = (cache[:batch] for cache in (inputs.k_cache, inputs.v_cache))
    if heads_first:
        k, v = k.transpose(1, 2), v.transpose(1, 2)
    return Keys(k, v, [0] * batch, [one.last for one in sequences], capacity, heads_first)


def _pages(
    inputs: DecodeInputs, table: Tensor | None, size: int, sequences: list[Sequence], rule: PageRule, heads_first: bool
) -> Keys | None:
    """Pages of ``size`` keys, from that of each sequence's first visible key on; without a table a dense cache's."""
    k, v = inputs.k_cache, inputs.v_cache
    wide = k.shape[2] * k.shape[3]
    if not rule.takes(size) or k.numel() > MOST_ELEMENTS or (not heads_first and wide > WIDEST_ROW):
        return None
    skipped = [one.first // size for one in sequences]
    if any(one.pad > page * size for one, page in zip(sequences, skipped)):
        return None  # the padding shares a page with keys
    used_pages = [-(-one.last // size) - page for one, page in zip(sequences, skipped)]
    columns = max(1, *used_pages)
    if sum(used_pages) > k.numel() // (size * wide):
        return None  # sequences that share pages; the operator wants as many pages as they have together
    if inputs.q.shape[1] == 1 and columns * size > MOST_KEYS_OF_ONE_ROW:
        return None
    if table is None:
        of_row = k.shape[1] // size
        numbers = [[one.row * of_row + min(page + step, of_row - 1) for step in range(columns)]
                   for one, page in zip(sequences, skipped)]  # fmt: skip
        used = torch.tensor(numbers, dtype=torch.int32).to(k.device)
    else:
        used = _columns_of(table.to(k.device), skipped, columns)
        if not may_read(inputs.q) or any(one.last == 0 for one in sequences):
            used = used.clamp(0, max(0, inputs.k_cache.shape[0] - 1))
    if heads_first:
        k, v = k.transpose(1, 2), v.transpose(1, 2)
    else:
        k, v = k.view(-1, size, wide), v.view(-1, size, v.shape[2] * v.shape[3])
    starts = [page * size for page in skipped]
    counts = [one.last - start for one, start in zip(sequences, starts)]
    return Keys(k, v, starts, counts, columns * size, heads_first, used.contiguous(), size)


def _columns_of(table: Tensor, skipped: list[int], count: int) -> Tensor:
    """``count`` columns of a block table from each sequence's first visible page on."""
    if not any(skipped):
        return table[:, :count]
    wanted = torch.tensor(skipped)[:, None] + torch.arange(count)
    return table.gather(1, wanted.clamp(max=table.shape[1] - 1).to(table.device))


def gathered(inputs: DecodeInputs, sequences: list[Sequence], step: int) -> Iterator[Keys]:
    """The visible keys of every sequence from 0 on, at most ``step`` of each at a time, the last ones first.

    All sequences' parts end at their last keys but a multiple of ``step``: what lies behind a part is as many for all.
    """
    longest = max((one.visible for one in sequences), default=0)
    for behind in range(0, max(1, longest), max(1, step)):
        lasts = [max(one.first, one.last - behind) for one in sequences]
        starts = [max(one.first, last - step) for one, last in zip(sequences, lasts)]
        counts = [last - start for last, start in zip(lasts, starts)]
        width = max(1, *counts)
        k, v = _copied(inputs, sequences, starts, counts, width)
        yield Keys(k, v, starts, counts, width, behind=behind)


def keys_at_a_time(inputs: DecodeInputs, longest: int, bound: int, whole: bool) -> int:
    """Keys of each sequence to gather at a time: all if ``whole``, else what ``bound`` bytes hold, or fewer for splits.

    At least as many as there are rows: rows then see everything that lies before the last part.
    """
    batch, rows, _, _ = inputs.q.shape
    if whole:
        return max(1, longest)
    of_key = batch * (inputs.k_cache.shape[2] * (inputs.k_cache.shape[3] + inputs.v_cache.shape[3]))
    step = bound // max(1, of_key * inputs.q.element_size())
    if inputs.num_splits > 1:
        step = min(step, -(-longest // inputs.num_splits))
    step = max(STEP, rows, step)
    step = -(-step // STEP) * STEP
    return min(step, MOST_KEYS_OF_ONE_ROW) if rows == 1 else step


def _copied(
    inputs: DecodeInputs, sequences: list[Sequence], starts: list[int], counts: list[int], width: int
) -> tuple[Tensor, Tensor]:
    """Keys and values [start, start + width) of each sequence, (B, width, Hk, D); behind its count: any of its own."""
    if inputs.block_table is not None:
        by_operator = _copied_by_operator(inputs, inputs.block_table, starts, width)
        if by_operator is not None:
            return by_operator
    device = inputs.k_cache.device
    ends = torch.tensor([max(start, start + count - 1) for start, count in zip(starts, counts)])
    positions = torch.minimum(torch.tensor(starts)[:, None] + torch.arange(width), ends[:, None])
    positions = positions.clamp(max=max(0, inputs.capacity - 1)).to(device)
    if inputs.block_table is None:
        entries = torch.tensor([one.row for one in sequences], dtype=torch.int64).to(device)[:, None]
    else:
        size = inputs.k_cache.shape[1]
        table = inputs.block_table.to(device)
        entries = table.gather(1, positions // size).clamp(0, max(0, inputs.k_cache.shape[0] - 1)).to(torch.int64)
        positions = positions % size
    return inputs.k_cache[entries, positions], inputs.v_cache[entries, positions]


def _copied_by_operator(
    inputs: DecodeInputs, table: Tensor, starts: list[int], width: int
) -> tuple[Tensor, Tensor] | None:
    """The same by npu_gather_pa_kv_cache, which starts at the beginning of a page; None where it cannot."""
    k_cache, v_cache = inputs.k_cache, inputs.v_cache
    size, batch = k_cache.shape[1], len(starts)
    aligned = all(start % size == 0 for start in starts) and k_cache.is_contiguous() and v_cache.is_contiguous()
    known = detect(inputs.q.device).arch not in WITHOUT_GATHER and operators.operators().takes(GATHER, "seq_offset")
    if not aligned or not known or max(starts) + width > inputs.capacity:
        return None
    k = k_cache.new_empty(batch * width, *k_cache.shape[2:])
    v = v_cache.new_empty(batch * width, *v_cache.shape[2:])
    lengths, offsets = (torch.tensor(numbers, dtype=torch.int32).to(k.device) for numbers in ([width] * batch, starts))
    held = table.to(k.device).clamp(0, max(0, k_cache.shape[0] - 1)).contiguous()  # unused entries may hold anything
    operators.call(GATHER, k_cache, v_cache, held, lengths, k, v, seq_offset=offsets)
    return k.view(batch, width, *k.shape[1:]), v.view(batch, width, *v.shape[1:])
