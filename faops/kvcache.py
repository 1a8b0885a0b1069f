"""attention_with_kvcache: the public call for serving, with its validation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from faops import ops, repeat_kvcache, validate
from faops.errors import ArgumentError


def attention_with_kvcache(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    k: Tensor | None = None,
    v: Tensor | None = None,
    *,
    cache_seqlens: int | Tensor | None = None,
    cache_batch_idx: Tensor | None = None,
    cache_leftpad: Tensor | None = None,
    block_table: Tensor | None = None,
    rotary_cos: Tensor | None = None,
    rotary_sin: Tensor | None = None,
    rotary_interleaved: bool = True,
    num_splits: int = 0,
    causal: bool = False,
    window: tuple[int | None, int | None] = (-1, -1),
    scale: float | None = None,
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    sinks: Tensor | None = None,
    q_descale: Tensor | None = None,
    k_descale: Tensor | None = None,
    v_descale: Tensor | None = None,
    layout: str = "bshd",
    return_lse: bool = False,
    backend: str | None = None,
) -> Any:
    """Attention of new queries over a KV cache, after writing new keys and values into it, in place.

    Args:
        q: (B, M, H, D), the new tokens' queries.
        k_cache, v_cache: (cache batch, capacity, Hk, D or Dv); paged: (pages, page size, Hk, D or Dv), any page size.
        k, v: (B, new, Hk, D or Dv), written at cache_seqlens of each sequence; None appends nothing.
        cache_seqlens: keys already in the cache, an int or int32 (B,); not advanced by the call. None: the cache is
            full, which leaves no room for new keys.
        cache_batch_idx: int32 (B,), the cache row of each sequence; not with block_table. Sequences that append must
            have rows of their own.
        cache_leftpad: int32 (B,), the first valid key of each sequence; keys are [leftpad, length).
        block_table: int32 (B, pages a sequence), the pages of each sequence in order. Entries on which no visible or
            new key lies may hold anything. Sequences may share pages, but not a slot that two of them append to.
        rotary_cos, rotary_sin: (positions, rotary_dim / 2); rotate q and k at their absolute cache positions. A call
            that is neither causal nor windowed rotates every row of q at position cache_seqlens.
        rotary_interleaved: pairs are neighbours (GPT-J); False: the two halves (GPT-NeoX, Llama).
        num_splits: key splits of a split-KV kernel; 0 lets the kernel choose. A hint: it changes no result's meaning.
        bias, mask: broadcastable to (B, H, M, capacity), indexed by absolute cache position.

    With q on an NPU, cache_seqlens, cache_batch_idx, cache_leftpad and block_table may be on the CPU: its operators
    want lengths from there, and have to wait for the device to get those that are on it.

    Lengths count from the bottom right as in :func:`faops.attention`, N being the length with the new keys. The other
    arguments are those of that function. There is no gradient: asking for one raises.

    Returns:
        out (B, M, H, Dv), or (out, lse) with lse (B, H, M).

    Raises:
        ArgumentError: an argument is wrong; nothing has been written. Lengths, rows, pages and positions are read on
            the CPU, and elsewhere with FAOPS_CHECK_VALUES=1 only, since it would wait for the device.
        NoKernelError: nothing can run this; lists every kernel's reasons.
    """
    options = (causal, window, scale, softcap, rotary_interleaved, num_splits, layout, return_lse, backend)
    tensors = (
        q, k_cache, v_cache, k, v, cache_seqlens, cache_batch_idx, cache_leftpad, block_table, rotary_cos, rotary_sin,
        alibi_slopes, sinks,
    )  # fmt: skip
    key = None
    if bias is None and mask is None and q_descale is None and k_descale is None and v_descale is None:
        key = repeat_kvcache.key_of(tensors, options)
        run = repeat_kvcache.find(key)
        if run is not None:
            out, lse = run(*tensors[:5], _lengths(q, cache_seqlens), *tensors[6:])
            if layout == "bhsd":
                out = out.transpose(1, 2)
            return (out, lse) if return_lse else out
    _check_layout(layout, {"q": q, "k_cache": k_cache, "v_cache": v_cache, "k": k, "v": v})
    if layout == "bhsd":
        q, k_cache, v_cache = (tensor.transpose(1, 2) for tensor in (q, k_cache, v_cache))
        k, v = (None if tensor is None else tensor.transpose(1, 2) for tensor in (k, v))
    _check_cache(q, k_cache, v_cache, block_table, cache_batch_idx)
    _check_lengths(q, cache_seqlens)
    _check_new(q, k_cache, v_cache, k, v, cache_seqlens)
    if cache_leftpad is not None:
        validate.check_index("cache_leftpad", cache_leftpad, q, (q.shape[0],), "(batch,)")
    _check_rotary(q, rotary_cos, rotary_sin)
    if not isinstance(rotary_interleaved, bool):
        raise ArgumentError("rotary_interleaved", repr(rotary_interleaved), "True (neighbours) or False (halves)")
    if isinstance(num_splits, bool) or not isinstance(num_splits, int) or num_splits < 0:
        raise ArgumentError("num_splits", repr(num_splits), "an int of 0 (choose) or more")
    left, right = validate.band_sides(causal, window)
    scale = validate.check_numbers(scale, softcap, 0.0, q.shape[-1])
    capacity = k_cache.shape[1] if block_table is None else k_cache.shape[1] * block_table.shape[1]
    sizes = (q.shape[0], q.shape[2], q.shape[1], capacity)
    bias, mask = validate.check_score_features(q, sizes, alibi_slopes, bias, mask, sinks)
    descales = {"q_descale": q_descale, "k_descale": k_descale, "v_descale": v_descale}
    validate.check_descales(q, k_cache.shape[2], q.shape[0], descales)
    arguments = (
        q, k_cache, v_cache, k, v, _lengths(q, cache_seqlens), cache_batch_idx, cache_leftpad, block_table,
        rotary_cos, rotary_sin, alibi_slopes, bias, mask, sinks, left, right, scale, float(softcap),
        rotary_interleaved, num_splits, return_lse, backend or "", q_descale, k_descale, v_descale,
    )  # fmt: skip
    learnable = [
        tensor
        for tensor in (q, k_cache, v_cache, k, v, bias, sinks)
        if tensor is not None and tensor.requires_grad and torch.is_grad_enabled()
    ]
    with torch.no_grad():
        out, lse = ops.attention_with_kvcache(*arguments)
    if learnable:
        out = _NoGradient.apply(out, *learnable)  # type: ignore[no-untyped-call]
    else:
        repeat_kvcache.remember(key, arguments, layout == "bhsd")
    if layout == "bhsd":
        out = out.transpose(1, 2)
    return (out, lse) if return_lse else out


# --- what a call is checked for --------------------------------------------------------------------------------------


def _check_layout(layout: str, tensors: dict[str, Tensor | None]) -> None:
    validate.check_layout(layout)
    for name, tensor in tensors.items():
        if layout == "bhsd" and tensor is not None:
            validate.check_tensor(name, tensor, 4, "(batch, heads, seqlen, head_dim)")


class _NoGradient(torch.autograd.Function):
    """Passes ``out`` on and refuses to go backward, so that a missing gradient is never silent."""

    @staticmethod
    def forward(ctx: Any, out: Tensor, *learnable: Tensor) -> Tensor:
        return out.view_as(out)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        raise RuntimeError("attention_with_kvcache has no gradient; train with faops.attention or attention_varlen")


def _check_cache(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, block_table: Tensor | None, cache_batch_idx: Tensor | None
) -> None:
    validate.check_tensor("q", q, 4, "(batch, seqlen_q, heads, head_dim)")
    validate.check_tensor("k_cache", k_cache, 4, "(batch or pages, length, heads_kv, head_dim)")
    validate.check_tensor("v_cache", v_cache, 4, "(batch or pages, length, heads_kv, head_dim_v)")
    validate.check_same("k_cache", k_cache, q)
    validate.check_same("v_cache", v_cache, q)
    validate.check_heads(q, k_cache, v_cache, ("k_cache", "v_cache"))
    if v_cache.shape[:2] != k_cache.shape[:2]:
        raise ArgumentError(
            "v_cache", f"shape {tuple(v_cache.shape)}", f"first two axes {tuple(k_cache.shape[:2])}, as k_cache"
        )
    batch = q.shape[0]
    if block_table is not None:
        validate.check_index("block_table", block_table, q, (batch, None), "(batch, pages a sequence)")
        if cache_batch_idx is not None:
            raise ArgumentError("cache_batch_idx", validate.describe(cache_batch_idx), "None beside block_table")
        if k_cache.shape[1] < 1:
            raise ArgumentError("k_cache", validate.describe(k_cache), "a page size of at least 1")
    elif cache_batch_idx is not None:
        validate.check_index("cache_batch_idx", cache_batch_idx, q, (batch,), "(batch,)")
    elif k_cache.shape[0] < batch:
        expected = f"at least q's batch, {batch}, or a cache_batch_idx"
        raise ArgumentError("k_cache", f"batch {k_cache.shape[0]}", expected)


def _check_lengths(q: Tensor, cache_seqlens: object) -> None:
    is_int = isinstance(cache_seqlens, int | torch.SymInt) and not isinstance(cache_seqlens, bool)
    if cache_seqlens is not None and not is_int:
        validate.check_index("cache_seqlens", cache_seqlens, q, (q.shape[0],), "(batch,), or an int")


def _lengths(q: Tensor, cache_seqlens: int | Tensor | None) -> Tensor | None:
    """cache_seqlens as int32 (B,); a number stays on the host where that is where a kernel wants it."""
    if cache_seqlens is None:
        return None
    if isinstance(cache_seqlens, Tensor):
        return cache_seqlens
    validate.check_length("cache_seqlens", cache_seqlens)
    where = validate.CPU if q.device.type in validate.HOST_LENGTHS else q.device
    return torch.full((q.shape[0],), cache_seqlens, dtype=torch.int32, device=where)


def _check_new(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, k: Tensor | None, v: Tensor | None, lengths: int | Tensor | None
) -> None:
    if k is None and v is None:
        return
    if k is None or v is None:
        raise ArgumentError("k" if k is None else "v", "None", "new keys and new values together")
    for name, new, cache in (("k", k, k_cache), ("v", v, v_cache)):
        validate.check_tensor(name, new, 4, "(batch, new, heads_kv, head_dim)")
        validate.check_same(name, new, q)
        want = (q.shape[0], k.shape[1], *cache.shape[2:])
        if tuple(new.shape) != want:
            raise ArgumentError(name, f"shape {tuple(new.shape)}", f"{want}, to fit q and the cache")
    for name, cache in (("k_cache", k_cache), ("v_cache", v_cache)):
        if cache.requires_grad and torch.is_grad_enabled():
            raise ArgumentError(name, "a tensor that requires grad", "a cache without gradient: it is written in place")
    if lengths is None:
        raise ArgumentError("cache_seqlens", "None", "where to write the new keys: an int or an int32 tensor (batch,)")


def _check_rotary(q: Tensor, cos: Tensor | None, sin: Tensor | None) -> None:
    if cos is None and sin is None:
        return
    if cos is None or sin is None:
        raise ArgumentError("rotary_cos" if cos is None else "rotary_sin", "None", "rotary_cos and rotary_sin together")
    for name, table in (("rotary_cos", cos), ("rotary_sin", sin)):
        validate.check_tensor(name, table, 2, "(positions, rotary_dim / 2)")
        validate.check_device(name, table, q)
        if 2 * table.shape[1] > q.shape[-1]:
            raise ArgumentError(name, validate.describe(table), f"at most head_dim / 2 = {q.shape[-1] // 2} columns")
    if sin.shape != cos.shape:
        raise ArgumentError("rotary_sin", f"shape {tuple(sin.shape)}", f"the shape of rotary_cos, {tuple(cos.shape)}")
    if sin.dtype != cos.dtype:
        raise ArgumentError("rotary_sin", f"dtype {sin.dtype}", f"the dtype of rotary_cos, {cos.dtype}")
