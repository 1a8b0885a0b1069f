"""flash-attn's dense, varlen and paged varlen calls, over those of faops."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import faops
from faops.adapters.flash_attn import probabilities
from faops.adapters.flash_attn.conventions import (
    FlashAttnArgumentError,
    Options,
    call,
    last_contiguous,
    length,
    seeded,
)
from faops.adapters.flash_attn.lse import dense_shift, flash_lse, shifting_slopes, varlen_shift
from faops.adapters.flash_attn.ragged import Places, RightAligned, check_offsets
from faops.validate import check_tensor


def dense(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    options: Options,
    return_attn_probs: bool,
    renamed: dict[str, str] | None = None,
) -> Any:
    """out, or (out, lse, S_dmask), of q (B, M, H, D) and k, v (B, N, Hk, D)."""
    q, k, v = last_contiguous(q), last_contiguous(k), last_contiguous(v)
    if not return_attn_probs:
        return call(faops.attention, q, k, v, renamed=renamed, **options.keywords())
    return dense_with_state(q, k, v, options, renamed=renamed)[:3]


def dense_with_state(
    q: Tensor, k: Tensor, v: Tensor, options: Options, want_dmask: bool = True, renamed: dict[str, str] | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(out, lse, S_dmask, dropout state): S_dmask is empty without dropout, the state then 0."""
    generator, rng = _dropout_state(q, options)
    keywords = {**options.keywords(), "generator": generator}
    out, lse = call(faops.attention, q, k, v, return_lse=True, renamed=renamed, **keywords)
    slopes = shifting_slopes(options, k.shape[1])
    lse = flash_lse(lse, dense_shift(slopes, q.shape[1], k.shape[1]))
    dmask = q.new_empty(0)
    if want_dmask and options.dropout_p > 0:
        dmask = probabilities.dense(q.detach(), k.detach(), options, rng)
    return out, lse, dmask, rng


def varlen(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    options: Options,
    return_attn_probs: bool,
    renamed: dict[str, str] | None = None,
) -> Any:
    """out, or (out, lse, S_dmask), of q (total_q, H, D) and k, v (total_k, Hk, D)."""
    q, k, v = last_contiguous(q), last_contiguous(k), last_contiguous(v)
    max_seqlen_q, max_seqlen_k = length("max_seqlen_q", max_seqlen_q), length("max_seqlen_k", max_seqlen_k)
    packing = (cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
    if not return_attn_probs:
        return call(faops.attention_varlen, q, k, v, *packing, renamed=renamed, **options.keywords())
    return varlen_with_state(q, k, v, packing, options, renamed=renamed)[:3]


def varlen_with_state(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    packing: tuple[Tensor, Tensor, int, int],
    options: Options,
    want_dmask: bool = True,
    renamed: dict[str, str] | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(out, lse, S_dmask, dropout state); ``packing`` is both cu_seqlens and both longest lengths."""
    generator, rng = _dropout_state(q, options)
    keywords = {**options.keywords(), "generator": generator}
    out, lse = call(faops.attention_varlen, q, k, v, *packing, return_lse=True, renamed=renamed, **keywords)
    cu_seqlens_q, cu_seqlens_k, _, max_seqlen_k = packing
    slopes = shifting_slopes(options, max_seqlen_k)
    lse = flash_lse(lse, varlen_shift(slopes, q.shape[0], cu_seqlens_q, cu_seqlens_k.diff()))
    dmask = q.new_empty(0)
    if want_dmask and options.dropout_p > 0:
        dmask = probabilities.varlen(q.detach(), k.detach(), *packing, options, rng)
    return out, lse, dmask, rng


def _dropout_state(q: Tensor, options: Options) -> tuple[torch.Generator | None, Tensor]:
    dropout_p = options.dropout_p
    if isinstance(q, Tensor) and isinstance(dropout_p, float) and dropout_p > 0:
        return seeded(q.device)
    return None, torch.zeros(2, dtype=torch.int64, device=q.device if isinstance(q, Tensor) else None)


# --- keys in pages ----------------------------------------------------------------------------------------------------


def varlen_paged(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    lengths_k: Tensor,
    max_seqlen_q: int,
    block_table: Tensor,
    options: Options,
    leftpad_k: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(out (total_q, H, Dv), lse (H, total_q)) of packed queries over keys in pages; no gradient.

    ``k`` and ``v`` are (pages, page size, Hk, D), ``lengths_k`` is int32 (B,). The rows are moved into a rectangle
    (B, max_seqlen_q, H, D), each sequence at its end: masks are aligned bottom-right, so that a row keeps its distance
    to the last key. No key is copied and no length is waited for.
    """
    if options.dropout_p:
        raise FlashAttnArgumentError(
            "dropout_p", options.dropout_p, "0 with block_table: keys in pages have no dropout"
        )
    q, k, v = last_contiguous(q), last_contiguous(k), last_contiguous(v)
    max_seqlen_q = length("max_seqlen_q", max_seqlen_q)
    call(check_tensor, "q", q, 3, "(total_q, heads, head_dim)")
    call(check_offsets, "cu_seqlens_q", cu_seqlens_q, q, max_seqlen_q)
    rectangle = RightAligned(Places.read(cu_seqlens_q, q.shape[0]), max_seqlen_q)
    out, lse = call(
        faops.attention_with_kvcache,
        rectangle.spread(q),
        k,
        v,
        cache_seqlens=lengths_k,
        cache_leftpad=leftpad_k,
        block_table=block_table,
        return_lse=True,
        renamed={"k_cache": "k", "v_cache": "v", "cache_seqlens": "cu_seqlens_k", "cache_leftpad": "leftpad_k"},
        **options.cache_keywords(),
    )
    visible = lengths_k if leftpad_k is None else lengths_k - leftpad_k
    slopes = shifting_slopes(options, block_table.shape[1] * k.shape[1])
    shift = varlen_shift(slopes, q.shape[0], cu_seqlens_q, visible)
    lse = rectangle.gather(lse.transpose(1, 2), -torch.inf).T
    return rectangle.gather(out, 0.0), flash_lse(lse.contiguous(), shift)
