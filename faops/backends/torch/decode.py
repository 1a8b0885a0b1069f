"""The KV-cache kernel in torch operations: append in place, rotate, then blockwise attention over the cached keys.

Reads lengths and the block table on the host, so it synchronises on an accelerator; it is the fallback, not the fast
path.
"""

from __future__ import annotations

import torch
from torch import Tensor

from faops.backends.torch.blockwise import Blockwise
from faops.backends.torch.blockwise_forward import attend
from faops.backends.torch.threads import cpu_threads
from faops.backends.torch.tiles import Features, alibi_of
from faops.inputs import DecodeInputs
from faops.layout import empty_lse, empty_out
from faops.registry import Config
from faops.rotary import apply_rotary


class BlockwiseDecode(Blockwise):
    """Decode and chunked prefill over a dense or paged cache, any page size."""

    name = "blockwise_decode"
    op = "decode"

    def launch(self, inputs: DecodeInputs, config: Config) -> tuple[Tensor, Tensor | None]:
        q = inputs.q
        batch, seqlen_q = q.shape[:2]
        filled = cached_lengths(inputs)
        with cpu_threads(config.integer("threads")):
            q, new_k = _rotated(inputs, filled)
            added = 0
            if new_k is not None and inputs.v is not None:
                added = new_k.shape[1]
                for index, start in enumerate(filled):
                    _append(inputs, index, start, new_k[index], inputs.v[index])
            out = empty_out(inputs.q, inputs.v_cache.shape[3])
            lse = empty_lse(q) if inputs.need_lse else None
            alibi = alibi_of(inputs.alibi_slopes, batch, q.dtype)
            features = Features(
                inputs.band, inputs.scale, inputs.softcap, alibi, inputs.bias, inputs.mask, inputs.sinks
            )
            lengths = [start + added for start in filled]
            if _uniform(inputs, lengths):
                keys, values = (cache[:batch, : lengths[0]] for cache in (inputs.k_cache, inputs.v_cache))
                attend(q, keys, values, features, config, out, lse)
                return out, lse
            pads = [0] * batch if inputs.cache_leftpad is None else inputs.cache_leftpad.tolist()
            for index, (length, pad) in enumerate(zip(lengths, pads)):
                keys, values = (
                    _cached(inputs, cache, index, pad, length) for cache in (inputs.k_cache, inputs.v_cache)
                )
                part = features.segment(index, seqlen_q, keys.shape[1], pad)
                rows = slice(index, index + 1)
                attend(q[rows], keys, values, part, config, out[rows], None if lse is None else lse[rows])
        return out, lse


def cached_lengths(inputs: DecodeInputs) -> list[int]:
    """Keys in the cache of each sequence before this call."""
    if inputs.cache_seqlens is None:
        return [inputs.capacity] * inputs.q.shape[0]
    return [int(length) for length in inputs.cache_seqlens.tolist()]


def _rotated(inputs: DecodeInputs, filled: list[int]) -> tuple[Tensor, Tensor | None]:
    """q and the new keys, rotated at their absolute positions where rotary is on."""
    q, k = inputs.q, inputs.k
    if inputs.rotary_cos is None or inputs.rotary_sin is None:
        return q, k
    start = torch.tensor(filled, device=q.device)[:, None]

    def rotate(tensor: Tensor, positions: Tensor) -> Tensor:
        assert inputs.rotary_cos is not None and inputs.rotary_sin is not None
        return apply_rotary(tensor, inputs.rotary_cos, inputs.rotary_sin, positions, inputs.rotary_interleaved)

    # Only rows that see keys by position advance; those of a full call all stand at the cache's end.
    steps = torch.arange(q.shape[1], device=q.device)
    if inputs.band.full:
        steps = torch.zeros_like(steps)
    rotated_k = None if k is None else rotate(k, start + torch.arange(k.shape[1], device=q.device))
    return rotate(q, start + steps), rotated_k


def _append(inputs: DecodeInputs, index: int, start: int, k: Tensor, v: Tensor) -> None:
    """Write the new (new, Hk, D) keys and values of one sequence into its cache at ``start``."""
    positions = range(start, start + k.shape[0])
    if inputs.block_table is None:
        row = index if inputs.cache_batch_idx is None else int(inputs.cache_batch_idx[index])
        for cache, new in ((inputs.k_cache, k), (inputs.v_cache, v)):
            cache[row, positions.start : positions.stop] = new
        return
    page_size = inputs.k_cache.shape[1]
    where = torch.arange(positions.start, positions.stop, device=k.device)
    pages = inputs.block_table[index].long()[where // page_size]
    for cache, new in ((inputs.k_cache, k), (inputs.v_cache, v)):
        cache[pages, where % page_size] = new


def _cached(inputs: DecodeInputs, cache: Tensor, index: int, pad: int, length: int) -> Tensor:
    """Keys or values [pad, length) of one sequence, (1, length - pad, Hk, D)."""
    if inputs.block_table is None:
        row = index if inputs.cache_batch_idx is None else int(inputs.cache_batch_idx[index])
        return cache[row : row + 1, pad:length]
    page_size = cache.shape[1]
    pages = inputs.block_table[index, : -(-length // page_size)].long()
    return cache[pages].flatten(0, 1)[None, pad:length]


def _uniform(inputs: DecodeInputs, lengths: list[int]) -> bool:
    """Whether all sequences can be computed as one dense batch."""
    plain = inputs.block_table is None and inputs.cache_batch_idx is None and inputs.cache_leftpad is None
    return plain and len(set(lengths)) == 1
