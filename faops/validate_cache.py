"""Checks of a KV-cache call that look at memory and at values. They all pass before a kernel writes anything.

Lengths, rows, pages and positions are read where that is free: on the CPU, where those of an NPU's call may lie too.
Elsewhere it would wait for the device and is done with FAOPS_CHECK_VALUES=1 only. There the kernels themselves touch
nothing outside the tensors they are given.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from faops.errors import ArgumentError
from faops.inputs import DecodeInputs
from faops.problem import UNLIMITED
from faops.validate import HOST_LENGTHS, check_range, may_read

Span = tuple[int, int]  # addresses, half-open


def check_cache_inputs(inputs: DecodeInputs) -> None:
    """What :func:`faops.attention_with_kvcache` refuses besides wrong shapes, dtypes and devices."""
    appends = inputs.k is not None and inputs.k.shape[1] > 0
    if appends:
        reads = {"k": inputs.k, "v": inputs.v, "q": inputs.q}
        check_caches_are_writable(inputs.k_cache, inputs.v_cache, reads)
    if may_read(inputs.q) or inputs.q.device.type in HOST_LENGTHS:
        _check_values(inputs, appends)


# --- memory ----------------------------------------------------------------------------------------------------------


def check_caches_are_writable(k_cache: Tensor, v_cache: Tensor, reads: Mapping[str, Tensor | None]) -> None:
    """New keys can be written in place, to memory that nothing else in the call uses; ``reads`` is the rest of it."""
    for name, cache in (("k_cache", k_cache), ("v_cache", v_cache)):
        if cache.is_inference() and not torch.is_inference_mode_enabled():
            expected = "a cache that was made outside of inference_mode, or a call inside of it: it is written in place"
            raise ArgumentError(name, "an inference tensor", expected)
        if not cache.is_contiguous() and overlaps_itself(cache):
            shown = f"shape {tuple(cache.shape)} with strides {cache.stride()}"
            raise ArgumentError(name, shown, "elements with memory of their own: new ones are written in place")
    memory = [_memory(cache) for cache in (k_cache, v_cache)]
    others = [_memory(tensor) for tensor in reads.values() if tensor is not None]
    if not _meet(memory[0], memory[1]) and not any(_meet(own, other) for own in memory for other in others):
        return  # nothing to look closer at, which is cheap to see
    span_k, span_v = _span(k_cache), _span(v_cache)
    if span_k[0] == span_v[0] and k_cache.numel() > 0:
        raise ArgumentError("v_cache", "the memory of k_cache", "memory of its own: new values are written to it")
    for name, tensor in reads.items():
        if tensor is None:
            continue
        span = _span(tensor)
        if _meet(span, span_k) or _meet(span, span_v):
            raise ArgumentError(name, "a view of a cache's memory", "memory outside of the caches: they are written to")


def overlaps_itself(tensor: Tensor) -> bool:
    """Whether two elements share memory, as after expand(). Strides that interleave in odd ways count as sharing."""
    reach = 1  # elements from the first to the last of the axes so far, by increasing stride
    for stride, size in sorted(zip(tensor.stride(), tensor.shape)):
        if size > 1:
            if stride < reach:
                return tensor.numel() > 0
            reach += (size - 1) * stride
    return False


def _meet(one: Span, other: Span) -> bool:
    return one[0] < other[1] and other[0] < one[1]


def _memory(tensor: Tensor) -> Span:
    """The addresses of all that a tensor's storage holds."""
    storage = tensor.untyped_storage()
    start = storage.data_ptr()
    return start, start + storage.nbytes()


def _span(tensor: Tensor) -> Span:
    """The addresses between a tensor's first and last element; empty for an empty tensor."""
    start = tensor.data_ptr()
    if tensor.numel() == 0:
        return start, start
    reach = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride()))
    return start, start + (reach + 1) * tensor.element_size()


# --- values ----------------------------------------------------------------------------------------------------------


def _check_values(inputs: DecodeInputs, appends: bool) -> None:
    """Lengths, left pads, rows, positions and pages lie inside of the tensors, and no key is written twice.

    What may not be read is taken to be right, and so is what it would be compared with.
    """
    added = 0 if inputs.k is None else inputs.k.shape[1]
    lengths = _checked_lengths(inputs, added)
    pads = None if lengths is None else _checked_pads(inputs, lengths, added)
    if lengths is not None:
        _check_positions(inputs, lengths, added)
    table, rows = inputs.block_table, inputs.cache_batch_idx
    if rows is not None and table is None and may_read(rows):
        _check_rows(rows.tolist(), inputs.k_cache.shape[0], appends)
    if table is None or lengths is None or not may_read(table):
        return
    if pads is not None:
        _check_pages(inputs, table, _first_keys(inputs, pads, lengths, added), lengths, added)
    if appends:
        _check_written_pages(inputs, table, lengths, added)


def _checked_lengths(inputs: DecodeInputs, added: int) -> list[int] | None:
    """Keys in the cache of each sequence, with room behind them for those that are added; None where not read."""
    capacity, batch = inputs.capacity, inputs.q.shape[0]
    if added > capacity:
        raise ArgumentError("k", f"{added} new keys", f"at most {capacity}, the keys a sequence can hold")
    if inputs.cache_seqlens is None:
        return [capacity] * batch
    if not may_read(inputs.cache_seqlens):
        return None
    lengths: list[int] = inputs.cache_seqlens.tolist()
    check_range("cache_seqlens", lengths, capacity - added, f"room for {added} new of {capacity} keys")
    return lengths


def _checked_pads(inputs: DecodeInputs, lengths: list[int], added: int) -> list[int] | None:
    """The first valid key of each sequence, at most the one behind its last; None where not read."""
    if inputs.cache_leftpad is None:
        return [0] * len(lengths)
    if not may_read(inputs.cache_leftpad):
        return None
    pads: list[int] = inputs.cache_leftpad.tolist()
    for pad, length in zip(pads, lengths):
        check_range("cache_leftpad", [pad], length + added, f"inside a sequence of {length + added} keys")
    return pads


def _check_positions(inputs: DecodeInputs, lengths: list[int], added: int) -> None:
    """The rotary tables hold every position that a query or a new key is rotated at."""
    if inputs.rotary_cos is None or not lengths:
        return
    rows = inputs.q.shape[1]
    needed = max(lengths) + max(added, rows if rows == 0 or not inputs.band.full else 1)
    if inputs.rotary_cos.shape[0] < needed:
        expected = f"at least {needed}, up to the last position that is rotated"
        raise ArgumentError("rotary_cos", f"{inputs.rotary_cos.shape[0]} positions", expected)


def _check_rows(rows: list[int], count: int, appends: bool) -> None:
    check_range("cache_batch_idx", rows, count - 1, f"a row of a cache of {count}")
    if appends and len(set(rows)) < len(rows):
        raise ArgumentError("cache_batch_idx", f"row {_repeated(rows)} twice", "a row of its own for each that appends")


def _first_keys(inputs: DecodeInputs, pads: list[int], lengths: list[int], added: int) -> list[int]:
    """The first key of each sequence that a row sees: pages before it are not read and may be gone."""
    if inputs.window_left == UNLIMITED:
        return pads
    before = inputs.q.shape[1] + inputs.window_left  # keys that the first row sees, and the rows that follow it
    return [max(pad, length + added - before) for pad, length in zip(pads, lengths)]


def _check_pages(inputs: DecodeInputs, table: Tensor, firsts: list[int], lengths: list[int], added: int) -> None:
    """The pages that are read or written exist. Entries beyond them are never looked at and may hold anything."""
    count, page_size = inputs.k_cache.shape[:2]
    if table.numel() == 0:
        return
    lowest, highest = torch.aminmax(table)
    if lowest.item() >= 0 and highest.item() < count:
        return
    for row, first, length in zip(table.tolist(), firsts, lengths):
        used = row[min(first, length) // page_size : -(-(length + added) // page_size)]
        check_range("block_table", used, count - 1, f"a page of a cache of {count}")


def _check_written_pages(inputs: DecodeInputs, table: Tensor, lengths: list[int], added: int) -> None:
    """No two new keys go to the same slot of a page."""
    page_size = inputs.k_cache.shape[1]
    numbers = [range(length // page_size, -(-(length + added) // page_size)) for length in lengths]
    most = max((len(own) for own in numbers), default=0)
    if len(lengths) * most <= 1:
        return
    columns = torch.tensor([own.start for own in numbers], device=table.device)[:, None]
    columns = (columns + torch.arange(most, device=table.device)).clamp_(max=table.shape[1] - 1)
    slots_of: dict[int, list[range]] = {}
    for own, pages, length in zip(numbers, table.gather(1, columns).tolist(), lengths):
        for number, page in zip(own, pages):
            start = number * page_size
            slots = range(max(length - start, 0), min(length + added - start, page_size))
            for others in slots_of.setdefault(page, []):
                if slots.start < others.stop and others.start < slots.stop:
                    shown = f"page {page} twice, both for slot {max(slots.start, others.start)}"
                    raise ArgumentError("block_table", shown, "a page of its own for each that appends: copy it first")
            slots_of[page].append(slots)


def _repeated(values: Iterable[int]) -> int:
    """The first value that was there before."""
    seen: set[int] = set()
    return next(value for value in values if value in seen or seen.add(value))  # type: ignore[func-returns-value]
