"""The names of flash-attn 3 (its directory ``hopper/``), with their signatures and conventions, on faops.

:func:`faops.adapters.flash_attn.install` makes ``import flash_attn_interface`` find this module. Notation: B batch, M
and N query and key length, H and Hk query and key/value heads, D and Dv head dims.

What differs from version 2: lse is -inf on a row without a key; ``window_size`` sides below 0 are unlimited;
no dropout and no ALiBi; v may have a head dim of its own. Arguments that all calls share:

    softmax_scale       factor of the scores; None: D ** -0.5, or (D + Dv) ** -0.5 with qv
    causal, window_size, softcap, deterministic
                        as in faops.attention
    qv                  like q with head dim Dv: scores become q · k + qv · v. Costs copies of q and k with D + Dv dims
    attention_chunk     > 0: keys fall into chunks of that size from a sequence's first key on, and a row sees the chunk
                        of its own position i + N - M only. Costs a bool mask of queries × keys, a batch entry each
                        where lengths differ
    q_descale, k_descale, v_descale
                        float32 (B, Hk), the factors of fp8 tensors; with others they have no effect, as upstream
    num_splits, pack_gqa, sm_margin
                        hints for upstream's kernel that change no result: checked for their type, and but for
                        num_splits of the KV cache not used

Everything but the descales of fp8, for which there is no kernel yet, works with all faops backends that take the
problem behind it, gradients included, also those of ``qv`` and ``attention_chunk`` that upstream has not. A wrong
argument raises FlashAttnArgumentError, which is an ArgumentError, a ValueError and, as upstream, a RuntimeError.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import faops
from faops.adapters.flash_attn import chunk, hopper_cache
from faops.adapters.flash_attn.conventions import FlashAttnArgumentError, last_contiguous, length, plain_window
from faops.adapters.flash_attn.conventions import call as call_faops
from faops.adapters.flash_attn.hopper_arguments import check_chunk, check_hints, descales, scale_of, with_qv
from faops.adapters.flash_attn.hopper_combine import flash_attn_combine
from faops.adapters.flash_attn.ragged import check_used, used_first
from faops.validate import check_index, check_length, describe

__all__ = [
    "flash_attn_combine",
    "flash_attn_func",
    "flash_attn_qkvpacked_func",
    "flash_attn_varlen_func",
    "flash_attn_with_kvcache",
    "get_scheduler_metadata",
]


def flash_attn_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    softmax_scale: float | None = None,
    causal: bool = False,
    qv: Tensor | None = None,
    q_descale: Tensor | None = None,
    k_descale: Tensor | None = None,
    v_descale: Tensor | None = None,
    window_size: Any = (-1, -1),
    attention_chunk: int = 0,
    softcap: float = 0.0,
    num_splits: int = 1,
    pack_gqa: bool | None = None,
    deterministic: bool = False,
    sm_margin: int = 0,
    return_attn_probs: bool = False,
) -> Any:
    """Attention of q (B, M, H, D) over k (B, N, Hk, D) and v (B, N, Hk, Dv).

    Returns:
        out (B, M, H, Dv); with ``return_attn_probs`` (out, lse), lse float32 (B, H, M).
    """
    check_hints(num_splits, pack_gqa, sm_margin)
    check_chunk(attention_chunk)
    return call_faops(
        _dense, *map(last_contiguous, (q, k, v, qv)), attention_chunk, return_attn_probs,
        softmax_scale=softmax_scale, causal=causal, window=plain_window(window_size), softcap=softcap,
        deterministic=deterministic, **descales(q, q_descale, k_descale, v_descale),
    )  # fmt: skip


def _dense(
    q: Tensor, k: Tensor, v: Tensor, qv: Tensor | None, attention_chunk: int, return_lse: bool, **options: Any
) -> Any:
    scale, causal = scale_of(q, qv, options.pop("softmax_scale")), options["causal"]
    mask = None
    if chunk.hides(attention_chunk, k.shape[1], causal):
        rows, columns = q.shape[1], k.shape[1]
        mask = chunk.visible(attention_chunk, torch.full((1,), columns - rows, device=q.device), rows, columns)
    q, k = with_qv(q, k, v, qv)
    return faops.attention(q, k, v, scale=scale, mask=mask, return_lse=return_lse, **options)


def flash_attn_qkvpacked_func(
    qkv: Tensor,
    softmax_scale: float | None = None,
    causal: bool = False,
    q_descale: Tensor | None = None,
    k_descale: Tensor | None = None,
    v_descale: Tensor | None = None,
    window_size: Any = (-1, -1),
    attention_chunk: int = 0,
    softcap: float = 0.0,
    deterministic: bool = False,
    num_heads_q: int | None = None,
    sm_margin: int = 0,
    return_attn_probs: bool = False,
) -> Any:
    """:func:`flash_attn_func` of q, k and v in one tensor, (B, N, 3, H, D); or (B, N, H + 2 Hk, D), whose first
    ``num_heads_q`` = H heads are those of q.
    """
    q, k, v = _unpacked(qkv, num_heads_q)
    return flash_attn_func(
        q, k, v, softmax_scale, causal, None, q_descale, k_descale, v_descale, window_size, attention_chunk, softcap,
        deterministic=deterministic, sm_margin=sm_margin, return_attn_probs=return_attn_probs,
    )  # fmt: skip


def _unpacked(qkv: Any, num_heads_q: int | None) -> tuple[Tensor, Tensor, Tensor]:
    if isinstance(qkv, Tensor) and qkv.dim() == 5 and qkv.shape[2] == 3:
        q, k, v = qkv.unbind(2)
        return q, k, v
    if not isinstance(qkv, Tensor) or qkv.dim() != 4:
        raise FlashAttnArgumentError("qkv", describe(qkv), "shape (B, N, 3, H, D), or (B, N, H + 2 Hk, D)")
    heads = qkv.shape[2]
    if not isinstance(num_heads_q, int) or not 0 < num_heads_q < heads or (heads - num_heads_q) % 2:
        expected = f"the query heads among the {heads} of qkv, an even number of others left"
        raise FlashAttnArgumentError("num_heads_q", repr(num_heads_q), expected)
    first_v = (heads + num_heads_q) // 2
    return qkv[:, :, :num_heads_q], qkv[:, :, num_heads_q:first_v], qkv[:, :, first_v:]


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    seqused_q: Tensor | None = None,
    seqused_k: Tensor | None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    qv: Tensor | None = None,
    q_descale: Tensor | None = None,
    k_descale: Tensor | None = None,
    v_descale: Tensor | None = None,
    window_size: Any = (-1, -1),
    attention_chunk: int = 0,
    softcap: float = 0.0,
    num_splits: int = 1,
    pack_gqa: bool | None = None,
    deterministic: bool = False,
    sm_margin: int = 0,
    return_attn_probs: bool = False,
) -> Any:
    """Attention of packed sequences: q (total_q, H, D), k (total_k, Hk, D), v (total_k, Hk, Dv).

    Args:
        cu_seqlens_q, cu_seqlens_k: int32 (B + 1,), offsets of the sequences.
        max_seqlen_q, max_seqlen_k: at least the longest sequence.
        seqused_q, seqused_k: int32 (B,), how many of a sequence's tokens count; all if None. Tokens that do not are
            moved behind the others first, which costs a copy of their tensors; theirs is an out of 0 and lse of -inf.

    Returns:
        out (total_q, H, Dv); with ``return_attn_probs`` (out, lse), lse float32 (H, total_q).
    """
    check_hints(num_splits, pack_gqa, sm_margin)
    check_chunk(attention_chunk)
    offsets = (cu_seqlens_q, cu_seqlens_k, seqused_q, seqused_k)
    longest = length("max_seqlen_q", max_seqlen_q), length("max_seqlen_k", max_seqlen_k)
    return call_faops(
        _varlen, *map(last_contiguous, (q, k, v, qv)), offsets, longest, attention_chunk, return_attn_probs,
        softmax_scale=softmax_scale, causal=causal, window=plain_window(window_size), softcap=softcap,
        deterministic=deterministic, **descales(q, q_descale, k_descale, v_descale),
    )  # fmt: skip


def _varlen(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    qv: Tensor | None,
    offsets: tuple[Tensor, Tensor, Tensor | None, Tensor | None],
    longest: tuple[int, int],
    attention_chunk: int,
    return_lse: bool,
    **options: Any,
) -> Any:
    cu_q, cu_k, used_q, used_k = offsets
    scale = scale_of(q, qv, options.pop("softmax_scale"))
    q, k = with_qv(q, k, v, qv)
    order_q = None
    if used_q is not None:
        check_used("seqused_q", used_q, cu_q)
        order_q, cu_q = used_first(cu_q, used_q, q.shape[0])
        q = q[order_q]
    if used_k is not None:
        check_used("seqused_k", used_k, cu_k)
        order_k, cu_k = used_first(cu_k, used_k, k.shape[0])
        k, v = k[order_k], v[order_k]
    mask = None
    if chunk.hides(attention_chunk, longest[1], options["causal"]):
        mask = chunk.visible(attention_chunk, cu_k.diff().long() - cu_q.diff(), *longest)
    out, lse = faops.attention_varlen(q, k, v, cu_q, cu_k, *longest, scale=scale, mask=mask, return_lse=True, **options)
    if order_q is not None:
        back = torch.argsort(order_q)
        out, lse = out[back], lse[:, back]
    return (out, lse) if return_lse else out


def flash_attn_with_kvcache(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    k: Tensor | None = None,
    v: Tensor | None = None,
    qv: Tensor | None = None,
    rotary_cos: Tensor | None = None,
    rotary_sin: Tensor | None = None,
    cache_seqlens: int | Tensor | None = None,
    cache_batch_idx: Tensor | None = None,
    cache_leftpad: Tensor | None = None,
    page_table: Tensor | None = None,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_k_new: Tensor | None = None,
    max_seqlen_q: int | None = None,
    rotary_seqlens: Tensor | None = None,
    q_descale: Tensor | None = None,
    k_descale: Tensor | None = None,
    v_descale: Tensor | None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: Any = (-1, -1),
    attention_chunk: int = 0,
    softcap: float = 0.0,
    rotary_interleaved: bool = True,
    scheduler_metadata: Tensor | None = None,
    num_splits: int = 0,
    pack_gqa: bool | None = None,
    sm_margin: int = 0,
    return_softmax_lse: bool = False,
) -> Any:
    """Write new keys and values into a cache, in place, then let q attend to what it holds. There is no gradient.

    Args:
        q: (B, M, H, D), or packed (total_q, H, D) with ``cu_seqlens_q`` int32 (B + 1,) and ``max_seqlen_q``.
        k_cache, v_cache: (rows, capacity, Hk, D or Dv); with ``page_table`` (pages, page size, Hk, D or Dv).
        k, v: (B, new, Hk, D or Dv), or packed (total_new, Hk, D or Dv) with ``cu_seqlens_k_new`` int32 (B + 1,).
        rotary_cos, rotary_sin: (positions, rotary_dim / 2), to rotate q and k; ``rotary_interleaved`` as in faops.
        rotary_seqlens: int32 (B,), the position of each sequence's first new token where it is not ``cache_seqlens``.
        cache_seqlens: an int or int32 (B,), keys that the cache holds; None: it is full.
        cache_batch_idx: int32 (B,), each sequence's row of the cache, or of ``page_table``.
        cache_leftpad: int32 (B,), the first valid key of each sequence.
        page_table: int32 (B or more, pages a sequence); pages of any size.
        scheduler_metadata: what :func:`get_scheduler_metadata` gave, or None; not used.

    Packed q or k, ``qv``, ``attention_chunk`` and ``rotary_seqlens`` each cost a pass of their own: see
    :mod:`faops.adapters.flash_attn.hopper_cache`.

    Returns:
        out like q with head dim Dv; with ``return_softmax_lse`` (out, lse, out_accum, lse_accum): lse float32 (B, H, M)
        or (H, total_q), and two empty tensors where upstream returns the parts of a split.
    """
    check_hints(num_splits, pack_gqa, sm_margin)
    check_chunk(attention_chunk)
    _check_metadata(scheduler_metadata)
    q, qv, k, v, rotary_cos, rotary_sin = map(last_contiguous, (q, qv, k, v, rotary_cos, rotary_sin))
    options = {
        "causal": causal, "window": plain_window(window_size), "softcap": softcap, "num_splits": num_splits,
        "scale": scale_of(q, qv, softmax_scale), **descales(q, q_descale, k_descale, v_descale),
    }  # fmt: skip
    rotary = _rotary(rotary_cos, rotary_sin, rotary_interleaved, rotary_seqlens, cache_seqlens)
    batch, longest = _batch_of(q, cu_seqlens_q, max_seqlen_q)
    lengths = _lengths(cache_seqlens, batch, k_cache)
    cache = hopper_cache.Cache(k_cache, v_cache, lengths, cache_leftpad, cache_batch_idx, page_table)
    call = hopper_cache.Call(
        q, k, v, qv, cache, rotary, cu_seqlens_q, cu_seqlens_k_new, longest, attention_chunk, options
    )
    out, lse = call_faops(hopper_cache.attend, call, renamed={"block_table": "page_table"})
    return (out, lse, out.new_empty(0), lse.new_empty(0)) if return_softmax_lse else out


def _batch_of(q: Tensor, cu_seqlens_q: Tensor | None, max_seqlen_q: int | None) -> tuple[int, int]:
    """How many sequences, and of how many query rows the longest is."""
    if cu_seqlens_q is None:
        return q.shape[0], q.shape[1]
    if max_seqlen_q is None:
        raise FlashAttnArgumentError("max_seqlen_q", "None", "the longest query sequence, beside cu_seqlens_q")
    longest = length("max_seqlen_q", max_seqlen_q)
    check_length("max_seqlen_q", longest)
    check_index("cu_seqlens_q", cu_seqlens_q, q, (None,), "(batch + 1,)")
    return cu_seqlens_q.shape[0] - 1, longest


def _lengths(cache_seqlens: int | Tensor | None, batch: int, k_cache: Tensor) -> Tensor | None:
    if cache_seqlens is None or isinstance(cache_seqlens, Tensor):
        return cache_seqlens
    check_length("cache_seqlens", cache_seqlens)
    return torch.full((batch,), cache_seqlens, dtype=torch.int32, device=k_cache.device)


def _rotary(
    cos: Tensor | None, sin: Tensor | None, interleaved: bool, starts: Tensor | None, cache_seqlens: int | Tensor | None
) -> hopper_cache.Rotary | None:
    """None without tables. Starts that are the cache's lengths need no pass of their own."""
    if cos is None and sin is None:
        return None
    if cos is None or sin is None:
        raise FlashAttnArgumentError("rotary_cos" if cos is None else "rotary_sin", "None", "both of them, or neither")
    return hopper_cache.Rotary(cos, sin, interleaved, None if starts is cache_seqlens else starts)


def _check_metadata(metadata: Any) -> None:
    if metadata is not None and not isinstance(metadata, Tensor):
        raise FlashAttnArgumentError("scheduler_metadata", repr(metadata), "a tensor of get_scheduler_metadata or None")


def get_scheduler_metadata(
    batch_size: int,
    max_seqlen_q: int,
    max_seqlen_k: int,
    num_heads_q: int,
    num_heads_kv: int,
    headdim: int,
    cache_seqlens: Tensor,
    qkv_dtype: torch.dtype = torch.bfloat16,
    headdim_v: int | None = None,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_k_new: Tensor | None = None,
    cache_leftpad: Tensor | None = None,
    page_size: int | None = None,
    max_seqlen_k_new: int = 0,
    causal: bool = False,
    window_size: Any = (-1, -1),
    attention_chunk: int = 0,
    has_softcap: bool = False,
    num_splits: int = 0,
    pack_gqa: bool | None = None,
    sm_margin: int = 0,
) -> Tensor:
    """An empty int32 tensor on the device of ``cache_seqlens``: faops plans a call from its shapes, and keeps nothing
    between calls that depends on the lengths. :func:`flash_attn_with_kvcache` takes it.
    """
    check_hints(num_splits, pack_gqa, sm_margin)
    check_chunk(attention_chunk)
    check_index("cache_seqlens", cache_seqlens, cache_seqlens, (batch_size,), "(batch_size,)")
    return cache_seqlens.new_empty(0)
