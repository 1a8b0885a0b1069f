"""flash_attn_with_kvcache."""

from __future__ import annotations

from typing import Any

from torch import Tensor

import faops
from faops.adapters.flash_attn.conventions import (
    FlashAttnArgumentError,
    Options,
    Window,
    call,
    last_contiguous,
)
from faops.adapters.flash_attn.lse import dense_shift, flash_lse, shifting_slopes


def flash_attn_with_kvcache(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    k: Tensor | None = None,
    v: Tensor | None = None,
    rotary_cos: Tensor | None = None,
    rotary_sin: Tensor | None = None,
    cache_seqlens: int | Tensor | None = None,
    cache_batch_idx: Tensor | None = None,
    cache_leftpad: Tensor | None = None,
    block_table: Tensor | None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: Window = (-1, -1),
    softcap: float = 0.0,
    rotary_interleaved: bool = True,
    alibi_slopes: Tensor | None = None,
    num_splits: int = 0,
    return_softmax_lse: bool = False,
) -> Any:
    """Attention of new queries over a KV cache, into which new keys and values are written first, in place.

    Every argument means what it means in :func:`faops.attention_with_kvcache`: q (B, M, H, D); k_cache and v_cache
    (cache batch, capacity, Hk, D), or (pages, page size, Hk, D) with ``block_table``, where any page size goes; k and
    v (B, new, Hk, D). There is no gradient.

    Returns out (B, M, H, D), or (out, softmax_lse) with softmax_lse (B, H, M) as flash-attn gives it.
    """
    options = Options(0.0, softmax_scale, causal, window_size, softcap, alibi_slopes, False)
    try:
        result = call(
            faops.attention_with_kvcache,
            last_contiguous(q),
            k_cache,
            v_cache,
            last_contiguous(k),
            last_contiguous(v),
            cache_seqlens=cache_seqlens,
            cache_batch_idx=cache_batch_idx,
            cache_leftpad=cache_leftpad,
            block_table=block_table,
            rotary_cos=rotary_cos,
            rotary_sin=rotary_sin,
            rotary_interleaved=rotary_interleaved,
            num_splits=num_splits,
            return_lse=return_softmax_lse,
            **options.cache_keywords(),
        )
    except FlashAttnArgumentError as error:
        raise _naming_pages(error, k_cache, block_table) from None
    if not return_softmax_lse:
        return result
    out, lse = result
    capacity = k_cache.shape[1] if block_table is None else k_cache.shape[1] * block_table.shape[1]
    slopes = shifting_slopes(options, capacity)
    if slopes is None:
        return out, flash_lse(lse, None)
    visible = _visible_keys(q, capacity, k, cache_seqlens, cache_leftpad)
    return out, flash_lse(lse, dense_shift(slopes, q.shape[1], visible))


def _visible_keys(
    q: Tensor, capacity: int, k: Tensor | None, cache_seqlens: int | Tensor | None, cache_leftpad: Tensor | None
) -> int | Tensor:
    """Keys of each sequence behind its left padding: an int, or int32 (B,)."""
    keys = capacity if cache_seqlens is None else cache_seqlens + (0 if k is None else k.shape[1])
    return keys if cache_leftpad is None else keys - cache_leftpad


def _naming_pages(error: FlashAttnArgumentError, k_cache: Tensor, block_table: Tensor | None) -> FlashAttnArgumentError:
    """The error; where a sequence is too long for its pages, one that says how many block_table gives it."""
    if error.argument != "cache_seqlens" or not isinstance(block_table, Tensor) or block_table.dim() != 2:
        return error
    pages = f"block_table gives a sequence {block_table.shape[1]} pages of {k_cache.shape[1]} keys"
    return FlashAttnArgumentError(error.argument, error.value, f"{error.expected}: {pages}")
