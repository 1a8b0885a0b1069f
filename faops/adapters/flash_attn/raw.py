"""flash-attn's forward and backward one by one, as libraries with their own backward call them (ring attention).

Not part of its public interface, but in use. ``rng_state`` is the dropout state of faops, int64 (2,): it goes from a
forward to its backward and means nothing to another library. lse is flash-attn's, +inf on dead rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from faops import ops, validate
from faops.adapters.flash_attn import forward
from faops.adapters.flash_attn.conventions import (
    FlashAttnArgumentError,
    Options,
    call,
    last_contiguous,
    length,
)
from faops.adapters.flash_attn.lse import dense_shift, plain_lse, shifting_slopes, varlen_shift
from faops.adapters.flash_attn.probabilities import round_up
from faops.adapters.flash_attn.ragged import Places

Packing = tuple[Tensor, Tensor, int, int]  # cu_seqlens of queries and keys, longest of each


@torch.no_grad()
def _flash_attn_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout_p: float,
    softmax_scale: float,
    causal: bool,
    window_size_left: int,
    window_size_right: int,
    softcap: float,
    alibi_slopes: Tensor | None,
    return_softmax: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(out, softmax_lse, S_dmask, rng_state) of q (B, M, H, D) and k, v (B, N, Hk, D)."""
    window = (window_size_left, window_size_right)
    options = Options(dropout_p, softmax_scale, causal, window, softcap, alibi_slopes, False)
    q, k, v = last_contiguous(q), last_contiguous(k), last_contiguous(v)
    return forward.dense_with_state(q, k, v, options, return_softmax)


@torch.no_grad()
def _flash_attn_varlen_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float,
    softmax_scale: float,
    causal: bool,
    window_size_left: int = -1,
    window_size_right: int = -1,
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    return_softmax: bool = False,
    block_table: Tensor | None = None,
    leftpad_k: Tensor | None = None,
    seqused_k: Tensor | None = None,
    zero_tensors: bool = False,
    num_splits: int = 0,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(out, softmax_lse, S_dmask, rng_state) of q (total_q, H, D) and k, v (total_k, Hk, D), or in pages.

    ``seqused_k``, int32 (B,), is how many keys of each sequence count and ``leftpad_k`` where they begin; both read k
    and v as pages of one key, without a copy and without dropout. ``zero_tensors`` asks for what is so anyway: rows of
    no sequence come back as 0.
    """
    if num_splits > 1:
        raise FlashAttnArgumentError("num_splits", num_splits, "0 or 1: num_splits > 1 is not supported here")
    window = (window_size_left, window_size_right)
    options = Options(dropout_p, softmax_scale, causal, window, softcap, alibi_slopes, False)
    q, k, v = last_contiguous(q), last_contiguous(k), last_contiguous(v)
    max_seqlen_q, max_seqlen_k = length("max_seqlen_q", max_seqlen_q), length("max_seqlen_k", max_seqlen_k)
    if block_table is None and leftpad_k is None and seqused_k is None:
        packing = (cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
        return forward.varlen_with_state(q, k, v, packing, options, return_softmax)
    if block_table is None:
        block_table = _keys_as_pages(k, cu_seqlens_k, max_seqlen_k)
        k, v = k[:, None], v[:, None]
    lengths = cu_seqlens_k.diff() if seqused_k is None else seqused_k
    out, lse = forward.varlen_paged(q, k, v, cu_seqlens_q, lengths, max_seqlen_q, block_table, options, leftpad_k)
    return out, lse, q.new_empty(0), torch.zeros(2, dtype=torch.int64, device=q.device)


def _keys_as_pages(k: Tensor, cu_seqlens_k: Tensor, max_seqlen_k: int) -> Tensor:
    """The block table, int32 (B, max_seqlen_k), of packed keys seen as pages of one key."""
    places = cu_seqlens_k[:-1, None] + torch.arange(max_seqlen_k, dtype=torch.int32, device=k.device)
    return places.clamp(max=max(k.shape[0] - 1, 0))


@torch.no_grad()
def _flash_attn_backward(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    softmax_lse: Tensor,
    dq: Tensor | None,
    dk: Tensor | None,
    dv: Tensor | None,
    dropout_p: float,
    softmax_scale: float,
    causal: bool,
    window_size_left: int,
    window_size_right: int,
    softcap: float,
    alibi_slopes: Tensor | None,
    deterministic: bool,
    rng_state: Tensor | None = None,
) -> Tensor:
    """Write the gradients into ``dq``, ``dk`` and ``dv``; return sum(dout · out), float32 (B, H, M rounded to 128)."""
    window = (window_size_left, window_size_right)
    options = Options(dropout_p, softmax_scale, causal, window, softcap, alibi_slopes, deterministic)
    call(validate.check_dense, q, k, v)
    shift = dense_shift(shifting_slopes(options, k.shape[1]), q.shape[1], k.shape[1])
    lse = plain_lse(softmax_lse, shift)
    _backward(dout, q, k, v, out, lse, (dq, dk, dv), None, options, rng_state)
    delta = out.new_zeros(q.shape[0], q.shape[2], round_up(q.shape[1]), dtype=torch.float32)
    delta[:, :, : q.shape[1]] = (dout.float() * out.float()).sum(-1).transpose(1, 2)
    return delta


@torch.no_grad()
def _flash_attn_varlen_backward(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    softmax_lse: Tensor,
    dq: Tensor | None,
    dk: Tensor | None,
    dv: Tensor | None,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float,
    softmax_scale: float,
    causal: bool,
    window_size_left: int,
    window_size_right: int,
    softcap: float,
    alibi_slopes: Tensor | None,
    deterministic: bool,
    rng_state: Tensor | None = None,
    zero_tensors: bool = False,
) -> Tensor:
    """As :func:`_flash_attn_backward` for packed sequences; returns float32 (H, total_q + 128 · B).

    Row r of sequence b stands at r + 128 · b of the result.
    """
    window = (window_size_left, window_size_right)
    options = Options(dropout_p, softmax_scale, causal, window, softcap, alibi_slopes, deterministic)
    packing = (cu_seqlens_q, cu_seqlens_k, length("max_seqlen_q", max_seqlen_q), length("max_seqlen_k", max_seqlen_k))
    call(validate.check_varlen, q, k, v, *packing)
    slopes = shifting_slopes(options, packing[3])
    lse = plain_lse(softmax_lse, varlen_shift(slopes, q.shape[0], cu_seqlens_q, cu_seqlens_k.diff()))
    _backward(dout, q, k, v, out, lse, (dq, dk, dv), packing, options, rng_state)
    delta = out.new_zeros(q.shape[1], q.shape[0] + 128 * (cu_seqlens_q.shape[0] - 1), dtype=torch.float32)
    rows = torch.arange(q.shape[0], device=q.device) + 128 * Places.read(cu_seqlens_q, q.shape[0]).sequence
    delta[:, rows] = (dout.float() * out.float()).sum(-1).T
    return delta


def _backward(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    gradients: tuple[Tensor | None, Tensor | None, Tensor | None],
    packing: Packing | None,
    options: Options,
    rng_state: Tensor | None,
) -> None:
    """Compute the gradients and copy them into those tensors of ``gradients`` that are there."""
    if options.dropout_p > 0 and rng_state is None:
        raise FlashAttnArgumentError("rng_state", "None", "the rng_state of the forward call, whose dropout it repeats")
    offsets_q, offsets_k, longest_q, longest_k = packing or (None, None, q.shape[1], k.shape[1])
    left, right = call(validate.band_sides, options.causal, options.window)
    scale = call(validate.check_numbers, options.softmax_scale, options.softcap, options.dropout_p, q.shape[-1])
    inputs = (
        q, k, v, options.alibi_slopes, None, None, None, offsets_q, offsets_k,
        rng_state if options.dropout_p > 0 else None, longest_q, longest_k, left, right, scale, float(options.softcap),
        float(options.dropout_p), options.deterministic, True, "",
    )  # fmt: skip
    computed = ops.backward_op(last_contiguous(dout), None, out, lse, False, False, *inputs)
    for given, gradient in zip(gradients, computed):
        if given is not None:
            given.copy_(gradient)
