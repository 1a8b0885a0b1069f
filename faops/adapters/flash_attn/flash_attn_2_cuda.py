"""flash_attn_2_cuda: the compiled extension of flash-attn, which some libraries call past its Python.

Its arguments come in the extension's order and go on to :mod:`faops.adapters.flash_attn.raw`. ``out`` is filled too
where it is given. ``generator`` is a slot that flash-attn keeps empty and so must be None.
"""

from __future__ import annotations

from torch import Tensor

from faops.adapters.flash_attn import raw
from faops.adapters.flash_attn.conventions import FlashAttnArgumentError
from faops.adapters.flash_attn.kvcache import flash_attn_with_kvcache


def fwd(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor | None,
    alibi_slopes: Tensor | None,
    dropout_p: float,
    softmax_scale: float,
    causal: bool,
    window_size_left: int,
    window_size_right: int,
    softcap: float,
    return_softmax: bool,
    generator: None,
) -> list[Tensor]:
    """[out, softmax_lse, S_dmask, rng_state] of q (B, M, H, D) and k, v (B, N, Hk, D)."""
    _check_generator(generator)
    results = raw._flash_attn_forward(
        q, k, v, dropout_p, softmax_scale, causal, window_size_left, window_size_right, softcap,
        alibi_slopes, return_softmax,
    )  # fmt: skip
    return _filling(out, results)


def varlen_fwd(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor | None,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    seqused_k: Tensor | None,
    leftpad_k: Tensor | None,
    block_table: Tensor | None,
    alibi_slopes: Tensor | None,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float,
    softmax_scale: float,
    zero_tensors: bool,
    causal: bool,
    window_size_left: int,
    window_size_right: int,
    softcap: float,
    return_softmax: bool,
    generator: None,
    num_splits: int = 0,
) -> list[Tensor]:
    """The same of q (total_q, H, D) and k, v (total_k, Hk, D), or in pages."""
    _check_generator(generator)
    results = raw._flash_attn_varlen_forward(
        q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p, softmax_scale, causal,
        window_size_left, window_size_right, softcap, alibi_slopes, return_softmax, block_table, leftpad_k, seqused_k,
        zero_tensors, num_splits,
    )  # fmt: skip
    return _filling(out, results)


def bwd(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    softmax_lse: Tensor,
    dq: Tensor | None,
    dk: Tensor | None,
    dv: Tensor | None,
    alibi_slopes: Tensor | None,
    dropout_p: float,
    softmax_scale: float,
    causal: bool,
    window_size_left: int,
    window_size_right: int,
    softcap: float,
    deterministic: bool,
    generator: None,
    rng_state: Tensor | None,
) -> list[Tensor]:
    """[dq, dk, dv, sum(dout · out)], the first three in the tensors given, or in new ones."""
    _check_generator(generator)
    dq, dk, dv = _or_new(dq, q), _or_new(dk, k), _or_new(dv, v)
    delta = raw._flash_attn_backward(
        dout, q, k, v, out, softmax_lse, dq, dk, dv, dropout_p, softmax_scale, causal, window_size_left,
        window_size_right, softcap, alibi_slopes, deterministic, rng_state,
    )  # fmt: skip
    return [dq, dk, dv, delta]


def varlen_bwd(
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
    alibi_slopes: Tensor | None,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float,
    softmax_scale: float,
    zero_tensors: bool,
    causal: bool,
    window_size_left: int,
    window_size_right: int,
    softcap: float,
    deterministic: bool,
    generator: None,
    rng_state: Tensor | None,
) -> list[Tensor]:
    """The same for packed sequences."""
    _check_generator(generator)
    dq, dk, dv = _or_new(dq, q), _or_new(dk, k), _or_new(dv, v)
    delta = raw._flash_attn_varlen_backward(
        dout, q, k, v, out, softmax_lse, dq, dk, dv, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p,
        softmax_scale, causal, window_size_left, window_size_right, softcap, alibi_slopes, deterministic, rng_state,
        zero_tensors,
    )  # fmt: skip
    return [dq, dk, dv, delta]


def fwd_kvcache(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    k: Tensor | None,
    v: Tensor | None,
    cache_seqlens: Tensor | None,
    rotary_cos: Tensor | None,
    rotary_sin: Tensor | None,
    cache_batch_idx: Tensor | None,
    cache_leftpad: Tensor | None,
    block_table: Tensor | None,
    alibi_slopes: Tensor | None,
    out: Tensor | None,
    softmax_scale: float,
    causal: bool,
    window_size_left: int,
    window_size_right: int,
    softcap: float,
    rotary_interleaved: bool,
    num_splits: int,
) -> list[Tensor]:
    """[out, softmax_lse] of :func:`faops.adapters.flash_attn.flash_attn_with_kvcache`."""
    window = (window_size_left, window_size_right)
    results = flash_attn_with_kvcache(
        q, k_cache, v_cache, k, v, rotary_cos, rotary_sin, cache_seqlens, cache_batch_idx, cache_leftpad, block_table,
        softmax_scale, causal, window, softcap, rotary_interleaved, alibi_slopes, num_splits, return_softmax_lse=True,
    )  # fmt: skip
    return _filling(out, results)


def _check_generator(generator: object) -> None:
    if generator is not None:
        raise FlashAttnArgumentError(
            "generator", repr(generator), "None: a `generator` argument is no longer supported"
        )


def _or_new(given: Tensor | None, like: Tensor) -> Tensor:
    return like.new_empty(like.shape) if given is None else given


def _filling(out: Tensor | None, results: tuple[Tensor, ...]) -> list[Tensor]:
    """The results, the first of them in ``out`` where that is given."""
    return list(results) if out is None else [out.copy_(results[0]), *results[1:]]
