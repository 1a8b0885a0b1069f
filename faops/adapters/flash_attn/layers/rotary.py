"""flash_attn.layers.rotary: rotary embedding of q, k and their packed forms, with gradients, and the module around it.

Source: Su et al., "RoFormer" (2021); with ``scale_base`` xPos of Sun et al., "A length-extrapolatable transformer"
(2022).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from faops.adapters.flash_attn.conventions import FlashAttnArgumentError
from faops.adapters.flash_attn.ops.triton.rotary import apply_rotary
from faops.validate import describe

Offsets = int | Tensor


def rotate_half(x: Tensor, interleaved: bool = False) -> Tensor:
    """Every pair (a, b) of the last axis as (-b, a); pairs as in :func:`apply_rotary_emb`."""
    if interleaved:
        return torch.stack((-x[..., 1::2], x[..., 0::2]), dim=-1).flatten(-2)
    first, second = x.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)


def apply_rotary_emb_torch(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool = False) -> Tensor:
    """``x`` (B, S, H, D) rotated in its own dtype; cos and sin (S, R / 2) or (B, S, R / 2). A reference."""
    rotary_dim = 2 * cos.shape[-1]
    if rotary_dim > x.shape[-1]:
        raise FlashAttnArgumentError("cos", describe(cos), f"at most head_dim / 2 = {x.shape[-1] // 2} columns")

    def spread(table: Tensor) -> Tensor:
        """One angle a dim, and an axis for the heads."""
        full = table.repeat_interleave(2, dim=-1) if interleaved else torch.cat([table, table], dim=-1)
        return full.unsqueeze(-2)

    turned = x[..., :rotary_dim]
    turned = turned * spread(cos) + rotate_half(turned, interleaved) * spread(sin)
    return torch.cat([turned, x[..., rotary_dim:]], dim=-1)


class ApplyRotaryEmb(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        interleaved: bool = False,
        inplace: bool = False,
        seqlen_offsets: Offsets = 0,
        cu_seqlens: Tensor | None = None,
        max_seqlen: int | None = None,
    ) -> Tensor:
        out = apply_rotary(x, cos, sin, seqlen_offsets, cu_seqlens, max_seqlen, interleaved, inplace)
        _save(ctx, (cos, sin, cu_seqlens), seqlen_offsets)
        ctx.interleaved, ctx.max_seqlen = interleaved, max_seqlen
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        (cos, sin, cu_seqlens), offsets = _saved(ctx)
        dx = apply_rotary(gradient, cos, sin, offsets, cu_seqlens, ctx.max_seqlen, ctx.interleaved, conjugate=True)
        return dx, *[None] * 7


def apply_rotary_emb(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    interleaved: bool = False,
    inplace: bool = False,
    seqlen_offsets: Offsets = 0,
    cu_seqlens: Tensor | None = None,
    max_seqlen: int | None = None,
) -> Tensor:
    """``x`` (B, S, H, D), or (total, H, D) with ``cu_seqlens``, rotated by its positions.

    ``cos`` and ``sin`` are (positions, R / 2) with R <= D: the first R dims turn, in pairs of neighbours if
    ``interleaved``, else of the two halves. ``seqlen_offsets``, an int or int tensor (B,), shifts each sequence.
    ``inplace`` writes into ``x``. Computed in float32 and rounded once.
    """
    return ApplyRotaryEmb.apply(  # type: ignore[no-any-return,no-untyped-call]
        x, cos, sin, interleaved, inplace, seqlen_offsets, cu_seqlens, max_seqlen
    )


apply_rotary_emb_func = apply_rotary_emb


class ApplyRotaryEmbQKV_(torch.autograd.Function):  # noqa: N801 (flash-attn's name)
    @staticmethod
    def forward(
        ctx: Any,
        qkv: Tensor,
        cos: Tensor,
        sin: Tensor,
        cos_k: Tensor | None = None,
        sin_k: Tensor | None = None,
        interleaved: bool = False,
        seqlen_offsets: Offsets = 0,
        num_heads_q: int | None = None,
    ) -> Tensor:
        tables = (cos, sin, cos if cos_k is None else cos_k, sin if sin_k is None else sin_k)
        _rotate_packed(qkv, tables, interleaved, seqlen_offsets, num_heads_q)
        _save(ctx, tables, seqlen_offsets)
        ctx.interleaved, ctx.num_heads_q = interleaved, num_heads_q
        return qkv

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        tables, offsets = _saved(ctx)
        dqkv = gradient.clone()
        _rotate_packed(dqkv, tables, ctx.interleaved, offsets, ctx.num_heads_q, conjugate=True)
        return dqkv, *[None] * 7


def apply_rotary_emb_qkv_(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    cos_k: Tensor | None = None,
    sin_k: Tensor | None = None,
    interleaved: bool = False,
    seqlen_offsets: Offsets = 0,
    num_heads_q: int | None = None,
) -> Tensor:
    """q and k of ``qkv`` rotated in place; returns ``qkv``.

    ``qkv`` is (B, S, 3, H, D), or (B, S, H + 2 · Hk, D) with ``num_heads_q`` = H. ``cos_k`` and ``sin_k`` are tables
    for k alone. The rest as in :func:`apply_rotary_emb`.
    """
    return ApplyRotaryEmbQKV_.apply(  # type: ignore[no-any-return,no-untyped-call]
        qkv, cos, sin, cos_k, sin_k, interleaved, seqlen_offsets, num_heads_q
    )


class ApplyRotaryEmbKV_(torch.autograd.Function):  # noqa: N801 (flash-attn's name)
    @staticmethod
    def forward(
        ctx: Any, kv: Tensor, cos: Tensor, sin: Tensor, interleaved: bool = False, seqlen_offsets: Offsets = 0
    ) -> Tensor:
        if kv.dim() != 5 or kv.shape[2] != 2:
            raise FlashAttnArgumentError("kv", describe(kv), "a tensor of shape (batch, seqlen, 2, heads_kv, head_dim)")
        apply_rotary(kv[:, :, 0], cos, sin, seqlen_offsets, interleaved=interleaved, inplace=True)
        _save(ctx, (cos, sin), seqlen_offsets)
        ctx.interleaved = interleaved
        return kv

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        (cos, sin), offsets = _saved(ctx)
        dkv = gradient.clone()
        apply_rotary(dkv[:, :, 0], cos, sin, offsets, interleaved=ctx.interleaved, inplace=True, conjugate=True)
        return dkv, *[None] * 4


def apply_rotary_emb_kv_(
    kv: Tensor, cos: Tensor, sin: Tensor, interleaved: bool = False, seqlen_offsets: Offsets = 0
) -> Tensor:
    """k of ``kv`` (B, S, 2, Hk, D) rotated in place; returns ``kv``. The rest as in :func:`apply_rotary_emb`."""
    return ApplyRotaryEmbKV_.apply(kv, cos, sin, interleaved, seqlen_offsets)  # type: ignore[no-any-return,no-untyped-call]


def _rotate_packed(
    qkv: Tensor,
    tables: tuple[Tensor, ...],
    interleaved: bool,
    offsets: Offsets,
    num_heads_q: int | None,
    conjugate: bool = False,
) -> None:
    q, k = _query_key(qkv, num_heads_q)
    cos, sin, cos_k, sin_k = tables
    turned_q = apply_rotary(q, cos, sin, offsets, interleaved=interleaved, conjugate=conjugate)
    turned_k = apply_rotary(k, cos_k, sin_k, offsets, interleaved=interleaved, conjugate=conjugate)
    q.copy_(turned_q)  # after both have passed their checks
    k.copy_(turned_k)


def _query_key(qkv: Tensor, num_heads_q: int | None) -> tuple[Tensor, Tensor]:
    """Views of q and k in ``qkv``."""
    if qkv.dim() == 5 and qkv.shape[2] == 3:
        return qkv[:, :, 0], qkv[:, :, 1]
    if qkv.dim() != 4:
        expected = (
            "a tensor of shape (batch, seqlen, 3, heads, head_dim) or (batch, seqlen, heads + 2 * heads_kv, head_dim)"
        )
        raise FlashAttnArgumentError("qkv", describe(qkv), expected)
    rest = -1 if num_heads_q is None else qkv.shape[2] - num_heads_q
    if num_heads_q is None or rest < 2 or rest % 2:
        expected = f"the query heads among the {qkv.shape[2]} heads of qkv, which leave as many keys as values"
        raise FlashAttnArgumentError("num_heads_q", num_heads_q, expected)
    return qkv[:, :, :num_heads_q], qkv[:, :, num_heads_q : num_heads_q + rest // 2]


def _save(ctx: Any, tensors: tuple[Tensor | None, ...], offsets: Offsets) -> None:
    """Keep tensors and offsets for backward; only tensors may go into save_for_backward."""
    ctx.offsets = None if isinstance(offsets, Tensor) else offsets
    ctx.save_for_backward(*tensors, *([offsets] if isinstance(offsets, Tensor) else []))


def _saved(ctx: Any) -> tuple[tuple[Any, ...], Offsets]:
    if ctx.offsets is not None:
        return ctx.saved_tensors, ctx.offsets
    *tensors, offsets = ctx.saved_tensors
    return tuple(tensors), offsets


class RotaryEmbedding(nn.Module):
    """Rotary embedding of packed qkv, or of q and kv, with tables that grow as sequences do.

    ``dim`` is how many dims of a head turn, ``base`` the base of their frequencies. With ``scale_base`` (512 is usual)
    q is also scaled and k divided by powers of the buffer ``scale``, as xPos does. Buffers: ``inv_freq`` (dim / 2,) and
    ``scale`` (dim / 2,) or None, neither of them in the state dict.
    """

    inv_freq: Tensor
    scale: Tensor | None

    def __init__(
        self,
        dim: int,
        base: float = 10000.0,
        interleaved: bool = False,
        scale_base: float | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.dim = dim
        self.base = float(base)
        self.interleaved = interleaved
        self.scale_base = scale_base
        self.register_buffer("inv_freq", self._compute_inv_freq(device), persistent=False)
        steps = torch.arange(0, dim, 2, device=device, dtype=torch.float32)
        scale = None if scale_base is None else (steps + 0.4 * dim) / (1.4 * dim)
        self.register_buffer("scale", scale, persistent=False)
        self._seq_len_cached = 0
        self._cos_cached: Tensor | None = None
        self._sin_cached: Tensor | None = None
        self._cos_k_cached: Tensor | None = None
        self._sin_k_cached: Tensor | None = None

    def _compute_inv_freq(self, device: torch.device | str | None = None) -> Tensor:
        steps = torch.arange(0, self.dim, 2, device=device, dtype=torch.float32)
        return 1.0 / self.base ** (steps / self.dim)

    def _update_cos_sin_cache(
        self, seqlen: int, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> None:
        """Make the tables again where they are too short, of another device or dtype, or from inference mode."""
        cos = self._cos_cached
        fits = cos is not None and seqlen <= self._seq_len_cached and cos.device == device and cos.dtype == dtype
        if fits and not (self.training and cos is not None and cos.is_inference()):
            return
        self._seq_len_cached = seqlen
        # Angles in float32 whatever the model's dtype: 16 bits do not tell large positions apart.
        positions = torch.arange(seqlen, device=device, dtype=torch.float32)
        plain = self.inv_freq.dtype == torch.float32
        angles = torch.outer(positions, self.inv_freq if plain else self._compute_inv_freq(device))
        cos, sin = angles.cos(), angles.sin()
        if self.scale is None or self.scale_base is None:
            self._cos_cached, self._sin_cached = cos.to(dtype), sin.to(dtype)
            return
        power = (positions - seqlen // 2) / self.scale_base
        scale = self.scale.to(positions.device) ** power[:, None]
        self._cos_cached, self._sin_cached = (cos * scale).to(dtype), (sin * scale).to(dtype)
        self._cos_k_cached, self._sin_k_cached = (cos / scale).to(dtype), (sin / scale).to(dtype)

    def forward(
        self,
        qkv: Tensor,
        kv: Tensor | None = None,
        seqlen_offset: Offsets = 0,
        max_seqlen: int | None = None,
        num_heads_q: int | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Rotate in place: qkv (B, S, 3, H, D) or (B, S, H + 2 · Hk, D) with ``num_heads_q`` = H; or q (B, S, H, D)
        beside kv (B, S, 2, Hk, D).

        ``seqlen_offset`` is an int, or an int tensor (B,) with ``max_seqlen`` to size the tables. Returns qkv, or
        (q, kv).
        """
        if max_seqlen is not None:
            self._update_cos_sin_cache(max_seqlen, qkv.device, qkv.dtype)
        elif isinstance(seqlen_offset, int):
            self._update_cos_sin_cache(qkv.shape[1] + seqlen_offset, qkv.device, qkv.dtype)
        cos, sin = self._cos_cached, self._sin_cached
        if cos is None or sin is None:
            raise FlashAttnArgumentError("max_seqlen", "None", "the longest position, with a tensor for seqlen_offset")
        if self.scale is None:
            cos_k, sin_k = cos, sin
        else:
            cos_k, sin_k = self._cos_k_cached, self._sin_k_cached  # type: ignore[assignment]
        if kv is None:
            return apply_rotary_emb_qkv_(qkv, cos, sin, cos_k, sin_k, self.interleaved, seqlen_offset, num_heads_q)
        q = apply_rotary_emb(qkv, cos, sin, self.interleaved, inplace=True, seqlen_offsets=seqlen_offset)
        return q, apply_rotary_emb_kv_(kv, cos_k, sin_k, self.interleaved, seqlen_offset)
