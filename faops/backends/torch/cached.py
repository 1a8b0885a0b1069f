"""What the KV-cache kernels share: rotating, appending in place, and finding a sequence's keys again.

Lengths and the block table are read on the host, which an accelerator has to be waited for unless they are there.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from faops.inputs import DecodeInputs
from faops.problem import UNLIMITED
from faops.rotary import angles_at, rotate


class Sequence(NamedTuple):
    """Where one sequence's keys are: in ``row`` of a dense cache, at positions [first, last)."""

    row: int
    first: int
    last: int


def cached_lengths(inputs: DecodeInputs) -> list[int]:
    """Keys in the cache of each sequence before this call."""
    if inputs.cache_seqlens is None:
        return [inputs.capacity] * inputs.q.shape[0]
    lengths: list[int] = inputs.cache_seqlens.tolist()
    return lengths


def sequences_of(inputs: DecodeInputs, lengths: list[int]) -> list[Sequence]:
    """The keys of each sequence, new ones included, that a row may see: less the left padding and what lies before
    every row's window.
    """
    batch, seqlen_q = inputs.q.shape[:2]
    added = 0 if inputs.k is None else inputs.k.shape[1]
    rows = range(batch) if inputs.cache_batch_idx is None else inputs.cache_batch_idx.tolist()
    pads = [0] * batch if inputs.cache_leftpad is None else inputs.cache_leftpad.tolist()
    found = []
    for row, pad, length in zip(rows, pads, lengths):
        last = length + added
        first = pad if inputs.window_left == UNLIMITED else max(pad, last - seqlen_q - inputs.window_left)
        found.append(Sequence(row, first, max(first, last)))
    return found


def is_dense_batch(inputs: DecodeInputs, sequences: list[Sequence]) -> bool:
    """Whether the sequences' keys are one slice of a dense cache."""
    if inputs.block_table is not None or inputs.cache_batch_idx is not None or not sequences:
        return False
    first, last = sequences[0][1:]
    return all(one.first == first and one.last == last for one in sequences)


def append(inputs: DecodeInputs, lengths: list[int]) -> Tensor:
    """Write the new keys, rotated, and values into the caches, in place. Returns q, rotated."""
    q, k = rotated(inputs)
    if k is None or inputs.v is None or k.numel() + inputs.v.numel() == 0:
        return q
    if len(lengths) == 1 or (inputs.block_table is None and len(set(lengths)) == 1):
        placed = _append_slices(inputs, lengths, k, inputs.v)
        if placed:
            return q
    positions = _starts(inputs) + torch.arange(k.shape[1], device=k.device)
    if inputs.block_table is not None:
        page_size = inputs.k_cache.shape[1]
        pages = inputs.block_table.to(k.device).gather(1, positions // page_size)
        positions = positions % page_size
    elif inputs.cache_batch_idx is not None:
        pages = inputs.cache_batch_idx[:, None].to(k.device)
    else:
        pages = torch.arange(len(lengths), device=k.device)[:, None]
    inputs.k_cache[pages, positions] = k
    inputs.v_cache[pages, positions] = inputs.v
    return q


def _append_slices(inputs: DecodeInputs, lengths: list[int], k: Tensor, v: Tensor) -> bool:
    """Write what lies side by side in the caches as one slice of each; False where it does not."""
    start, added = lengths[0], k.shape[1]
    if inputs.block_table is None:
        if inputs.cache_batch_idx is not None and len(lengths) > 1:
            return False
        row = 0 if inputs.cache_batch_idx is None else int(inputs.cache_batch_idx[0])
    else:
        page_size = inputs.k_cache.shape[1]
        page, start = divmod(start, page_size)
        if start + added > page_size:
            return False
        row = int(inputs.block_table[0, page])
    rows = slice(row, row + len(lengths))
    inputs.k_cache[rows, start : start + added] = k
    inputs.v_cache[rows, start : start + added] = v
    return True


def rotated(inputs: DecodeInputs) -> tuple[Tensor, Tensor | None]:
    """q and the new keys, rotated at their absolute positions where rotary is on."""
    q, k, cos, sin = inputs.q, inputs.k, inputs.rotary_cos, inputs.rotary_sin
    if cos is None or sin is None or cos.shape[1] == 0:
        return q, k
    start = _starts(inputs)
    steps = torch.arange(max(q.shape[1], 0 if k is None else k.shape[1]), device=q.device)
    # Only rows that see keys by position advance; those of a full call all stand at the cache's end.
    rows = start.expand(-1, q.shape[1]) if inputs.band.full else start + steps[: q.shape[1]]
    of_rows = angles_at(cos, sin, rows, q.dtype)
    if k is None:
        return rotate(q, *of_rows, inputs.rotary_interleaved), None
    if k.shape[1] == q.shape[1] and (q.shape[1] == 1 or not inputs.band.full):
        both = rotate(torch.cat((q, k), 2), *of_rows, inputs.rotary_interleaved)
        return both[:, :, : q.shape[2]], both[:, :, q.shape[2] :]
    of_keys = angles_at(cos, sin, start + steps[: k.shape[1]], q.dtype)
    return rotate(q, *of_rows, inputs.rotary_interleaved), rotate(k, *of_keys, inputs.rotary_interleaved)


def _starts(inputs: DecodeInputs) -> Tensor:
    """cached_lengths as a column on q's device, (B, 1)."""
    if inputs.cache_seqlens is None:
        return torch.full((inputs.q.shape[0], 1), inputs.capacity, device=inputs.q.device)
    return inputs.cache_seqlens[:, None].to(inputs.q.device)


def keys_of(inputs: DecodeInputs, cache: Tensor, index: int, keys: Sequence) -> Tensor:
    """Keys or values of one sequence, (1, last - first, Hk, D): a view, or a copy of its pages."""
    if inputs.block_table is None:
        return cache[keys.row : keys.row + 1, keys.first : keys.last]
    page_size = cache.shape[1]
    low = keys.first // page_size
    pages = inputs.block_table[index, low : -(-keys.last // page_size)]
    # index_select copies pages as wholes, in less than half the time that cache[pages] takes on a CPU.
    gathered = cache.index_select(0, pages.to(cache.device)).flatten(0, 1)
    return gathered[None, keys.first - low * page_size : keys.last - low * page_size]
