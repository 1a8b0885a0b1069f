"""The operators that write and read KV caches."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

from tests.npu.double.errors import HOST_UNSUPPORTED, INVALID_PARAMETER, TILING, refuse, refuse_on_host
from tests.npu.double.machine import Machine

Arguments = dict[str, Any]


def scatter_pages(machine: Machine, operator: str, arguments: Arguments) -> None:
    """npu_scatter_pa_kv_cache: token t of key and value goes to slot_mapping[t] of caches (blocks, size, N, D).

    In the default cache_mode the caches are tensors of the NZ format. PyTorch's tensors have it only after a cast, so
    here they never do; versions without the argument have that mode alone.
    """
    names = ("key", "value", "key_cache", "value_cache", "slot_mapping")
    key, value, key_cache, value_cache, slots = (arguments[name] for name in names)
    if machine.soc == "310P":
        refuse_on_host(operator, "is not supported on this product", HOST_UNSUPPORTED)
    if arguments.get("cache_mode", "PA_NZ") not in (None, "Norm"):
        refuse(operator, INVALID_PARAMETER, "cache_mode PA_NZ with caches that are not in the NZ format")
    if any(arguments[name] is not None for name in ("compress_lens", "compress_seq_offsets", "seq_lens")):
        refuse(operator, INVALID_PARAMETER, "compressed sequences: not in this double")
    for name in names:
        if not arguments[name].is_contiguous():
            refuse(operator, INVALID_PARAMETER, f"{name} is not contiguous")
    if not key.dtype == value.dtype == key_cache.dtype == value_cache.dtype:
        refuse(operator, INVALID_PARAMETER, "key, value and the caches differ in dtype")
    if slots.dtype not in (torch.int32, torch.int64) or tuple(slots.shape) != (key.shape[0],):
        refuse(operator, INVALID_PARAMETER, f"slot_mapping is {slots.dtype} {tuple(slots.shape)}, not int (tokens,)")
    for tokens, cache in ((key, key_cache), (value, value_cache)):
        if tokens.dim() != 3 or cache.dim() != 4 or tokens.shape[1:] != cache.shape[2:]:
            refuse(operator, TILING, f"tokens {tuple(tokens.shape)} do not fit into the cache {tuple(cache.shape)}")
    if key.shape[:2] != value.shape[:2] or key_cache.shape[:2] != value_cache.shape[:2]:
        refuse(operator, TILING, "key and value, or the caches, differ in more than the head dim")
    room = key_cache.shape[0] * key_cache.shape[1]
    if slots.numel() and (int(slots.min()) < 0 or int(slots.max()) >= room):
        refuse(operator, TILING, f"slot_mapping leaves 0 to {room - 1}")
    if slots.unique().numel() != slots.numel():
        refuse(operator, TILING, "slot_mapping names a slot twice")
    for tokens, cache in ((key, key_cache), (value, value_cache)):
        cache.view(room, *cache.shape[2:])[slots.long()] = tokens


def gather_pages(machine: Machine, operator: str, arguments: Arguments) -> None:
    """npu_gather_pa_kv_cache: the tokens of each sequence, one behind the other, into key and value."""
    names = ("key_cache", "value_cache", "block_tables", "seq_lens", "key", "value")
    key_cache, value_cache, tables, given, key, value = (arguments[name] for name in names)
    if machine.soc == "310P":
        refuse_on_host(operator, "is not supported on this product", HOST_UNSUPPORTED)
    for name in names:
        if not arguments[name].is_contiguous():
            refuse(operator, INVALID_PARAMETER, f"{name} is not contiguous")
    if tables.dtype not in (torch.int32, torch.int64) or tables.dtype != given.dtype or tables.dim() != 2:
        refuse(operator, INVALID_PARAMETER, "block_tables and seq_lens are integers of one dtype, the first 2-D")
    for tokens, cache in ((key, key_cache), (value, value_cache)):
        if tokens.dim() != 3 or cache.dim() != 4 or tokens.shape[1:] != cache.shape[2:] or tokens.dtype != cache.dtype:
            refuse(operator, TILING, f"tokens {tuple(tokens.shape)} do not fit the cache {tuple(cache.shape)}")
    ends = given.tolist()
    lengths = (
        [after - before for before, after in itertools.pairwise(ends)] if arguments["is_seq_lens_cumsum"] else ends
    )
    offsets = [0] * len(lengths) if arguments["seq_offset"] is None else arguments["seq_offset"].tolist()
    if len(lengths) != tables.shape[0] or sum(lengths) != key.shape[0]:
        refuse(operator, TILING, f"lengths {lengths} for {tables.shape[0]} sequences and {key.shape[0]} tokens")
    size, start = key_cache.shape[1], 0
    for table, length, offset in zip(tables.long(), lengths, offsets):
        if offset % size:
            refuse(operator, TILING, f"seq_offset {offset} is not a multiple of the block size {size}")
        places = torch.arange(length, device=key.device) + offset
        for tokens, cache in ((key, key_cache), (value, value_cache)):
            tokens[start : start + length] = cache[table[places // size], places % size]
        start += length


def scatter(machine: Machine, operator: str, arguments: Arguments) -> Tensor:
    """npu_scatter_nd_update_: rows of ``updates`` go where the last axis of ``indices`` points."""
    target, indices, updates = (arguments[name] for name in ("input", "indices", "updates"))
    small = (torch.float32, torch.float16, torch.bool)
    allowed = small if machine.soc == "310P" else (*small, torch.bfloat16, torch.int64, torch.int8)
    if target.dtype not in allowed or target.dtype != updates.dtype:
        refuse(operator, INVALID_PARAMETER, f"dtypes {target.dtype} and {updates.dtype}: alike, one of {allowed}")
    if indices.dtype not in (torch.int32, torch.int64) or indices.dim() < 2 or indices.shape[-1] > target.dim():
        refuse(operator, INVALID_PARAMETER, f"indices are {indices.dtype} {tuple(indices.shape)}")
    axes = indices.shape[-1]
    expected = (*indices.shape[:-1], *target.shape[axes:])
    if tuple(updates.shape) != expected:
        refuse(operator, TILING, f"updates have the shape {tuple(updates.shape)}, not {expected}")
    limits = torch.tensor(target.shape[:axes], device=indices.device)
    if ((indices < 0) | (indices >= limits)).any():
        refuse(operator, TILING, f"indices leave the shape {tuple(target.shape[:axes])}")
    target[indices.long().unbind(-1)] = updates
    return target  # type: ignore[no-any-return]
