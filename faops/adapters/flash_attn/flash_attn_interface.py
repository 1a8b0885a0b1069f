"""The calls of flash-attn 2, with its signatures and its return values, computed by faops.

Shapes: B sequences, H query heads and Hk key/value heads (Hk divides H), D the head dim. ``softmax_scale`` is
D ** -0.5 if None. ``causal`` and ``window_size`` (left, right), negative for unlimited, are aligned bottom-right;
``alibi_slopes`` is float32 (H,) or (B, H). With ``return_attn_probs`` a call returns (out, softmax_lse, S_dmask):
softmax_lse is float32, +inf on a row without a key; S_dmask is empty unless there is dropout, and else the
unnormalised probabilities, negative where dropped (:mod:`faops.adapters.flash_attn.probabilities`).

Wrong arguments raise :class:`faops.errors.ArgumentError`, which here is a RuntimeError too.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from faops.adapters.flash_attn import flash_attn_2_cuda, forward
from faops.adapters.flash_attn.conventions import FlashAttnArgumentError, Options, Window
from faops.adapters.flash_attn.kvcache import flash_attn_with_kvcache
from faops.adapters.flash_attn.raw import (
    _flash_attn_backward,
    _flash_attn_forward,
    _flash_attn_varlen_backward,
    _flash_attn_varlen_forward,
)
from faops.validate import describe

__all__ = [
    "flash_attn_func",
    "flash_attn_kvpacked_func",
    "flash_attn_qkvpacked_func",
    "flash_attn_varlen_func",
    "flash_attn_varlen_kvpacked_func",
    "flash_attn_varlen_qkvpacked_func",
    "flash_attn_with_kvcache",
]

flash_attn_gpu = flash_attn_2_cuda
USE_TRITON_ROCM = False  # flash-attn's own switch to its kernels for AMD cards

# flash-attn's names for its operators as torch.compile sees them.
_wrapped_flash_attn_forward = _flash_attn_forward
_wrapped_flash_attn_varlen_forward = _flash_attn_varlen_forward
_wrapped_flash_attn_backward = _flash_attn_backward
_wrapped_flash_attn_varlen_backward = _flash_attn_varlen_backward


def flash_attn_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: Window = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Any:
    """Attention of q (B, M, H, D) over k and v (B, N, Hk, D): out (B, M, H, D), lse (B, H, M)."""
    options = Options(dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes, deterministic)
    return forward.dense(q, k, v, options, return_attn_probs)


def flash_attn_kvpacked_func(
    q: Tensor,
    kv: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: Window = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Any:
    """As :func:`flash_attn_func`, with keys and values in one tensor, kv (B, N, 2, Hk, D)."""
    options = Options(dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes, deterministic)
    k, v = _unpack("kv", kv, 2, "(batch, seqlen_k, 2, heads_kv, head_dim)")
    return forward.dense(q, k, v, options, return_attn_probs, {"k": "kv", "v": "kv"})


def flash_attn_qkvpacked_func(
    qkv: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: Window = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Any:
    """As :func:`flash_attn_func`, with all three in one tensor, qkv (B, N, 3, H, D)."""
    options = Options(dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes, deterministic)
    q, k, v = _unpack("qkv", qkv, 3, "(batch, seqlen, 3, heads, head_dim)")
    return forward.dense(q, k, v, options, return_attn_probs, {"q": "qkv", "k": "qkv", "v": "qkv"})


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: Window = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    block_table: Tensor | None = None,
) -> Any:
    """Attention of packed sequences, q (total_q, H, D) and k, v (total_k, Hk, D): out like q, lse (H, total_q).

    With ``block_table``, int32 (B, pages a sequence), k and v are (pages, page size, Hk, D) of any page size, and
    ``cu_seqlens_k`` gives the lengths; such a call has neither dropout nor a gradient.
    """
    options = Options(dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes, deterministic)
    if block_table is None:
        packing = (cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
        return forward.varlen(q, k, v, *packing, options, return_attn_probs)
    if not isinstance(cu_seqlens_k, Tensor) or cu_seqlens_k.dtype != torch.int32 or cu_seqlens_k.dim() != 1:
        raise FlashAttnArgumentError("cu_seqlens_k", describe(cu_seqlens_k), "an int32 tensor of shape (batch + 1,)")
    lengths = cu_seqlens_k.diff()
    out, lse = forward.varlen_paged(q, k, v, cu_seqlens_q, lengths, max_seqlen_q, block_table, options)
    return (out, lse, q.new_empty(0)) if return_attn_probs else out


def flash_attn_varlen_kvpacked_func(
    q: Tensor,
    kv: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: Window = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Any:
    """As :func:`flash_attn_varlen_func`, with keys and values in one tensor, kv (total_k, 2, Hk, D)."""
    options = Options(dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes, deterministic)
    k, v = _unpack("kv", kv, 2, "(total_k, 2, heads_kv, head_dim)")
    packing = (cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
    return forward.varlen(q, k, v, *packing, options, return_attn_probs, {"k": "kv", "v": "kv"})


def flash_attn_varlen_qkvpacked_func(
    qkv: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: Window = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Any:
    """As :func:`flash_attn_varlen_func`, with all three in one tensor, qkv (total, 3, H, D)."""
    options = Options(dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes, deterministic)
    q, k, v = _unpack("qkv", qkv, 3, "(total, 3, heads, head_dim)")
    names = {**dict.fromkeys("qkv", "qkv"), "cu_seqlens_q": "cu_seqlens", "cu_seqlens_k": "cu_seqlens"}
    names.update(max_seqlen_q="max_seqlen", max_seqlen_k="max_seqlen")
    packing = (cu_seqlens, cu_seqlens, max_seqlen, max_seqlen)
    return forward.varlen(q, k, v, *packing, options, return_attn_probs, names)


def _unpack(name: str, packed: object, parts: int, meaning: str) -> tuple[Tensor, ...]:
    """The tensors on the third last axis; their gradient comes back as one tensor, stacked once."""
    axes = meaning.count(",") + 1
    if not isinstance(packed, Tensor) or packed.dim() != axes or packed.shape[-3] != parts:
        raise FlashAttnArgumentError(name, describe(packed), f"a tensor of shape {meaning}")
    return packed.unbind(-3)


def _get_block_size_n(device: Any, head_dim: int, is_dropout: bool, is_causal: bool) -> int:
    """Columns of S_dmask that share a scale: here all of them."""
    return 2**31 - 1
