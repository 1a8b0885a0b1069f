"""The oracle: attention in float64, written to be obviously right. Every kernel is tested against it.

It builds the whole score matrix, so use it on small problems only. Gradients come from autograd.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from faops.philox import keep_tile
from faops.problem import UNLIMITED, Band
from faops.rotary import apply_rotary

NO_WINDOW = (UNLIMITED, UNLIMITED)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = False,
    window: tuple[int, int] = NO_WINDOW,
    scale: float | None = None,
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    sinks: Tensor | None = None,
    dropout_p: float = 0.0,
    rng: Tensor | None = None,
    layout: str = "bshd",
    dtype: torch.dtype = torch.float64,
    first_batch: int = 0,
) -> tuple[Tensor, Tensor]:
    """(out, lse) of dense attention, computed in ``dtype``; shapes and options as in :func:`faops.attention`.

    ``rng`` (int64 (2,): seed and offset) fixes the dropout mask; batch entry b is numbered ``first_batch + b`` in it.
    A row without a visible key has out 0, lse -inf (with a sink too) and gradients 0.
    """
    if layout == "bhsd":
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
    batch, M, heads, head_dim = q.shape
    N, group = k.shape[1], heads // k.shape[2]
    k, v = k.repeat_interleave(group, dim=2), v.repeat_interleave(group, dim=2)

    scores = torch.einsum("bihd,bjhd->bhij", q, k) * (head_dim**-0.5 if scale is None else scale)
    if softcap > 0:
        scores = softcap * torch.tanh(scores / softcap)
    rows, keys = torch.arange(M, device=q.device)[:, None], torch.arange(N, device=q.device)[None, :]
    offset = keys - (rows + N - M)  # how far right of the bottom-right aligned diagonal
    if alibi_slopes is not None:
        slopes = alibi_slopes.double().expand(batch, heads)[:, :, None, None]
        scores = scores - (slopes * offset.abs()).to(dtype)
    if bias is not None:
        scores = scores + bias.to(dtype)

    visible = in_band(offset, Band.of(causal, window)) & (scores != -torch.inf)
    if mask is not None:
        visible = visible & mask
    alive = visible.any(-1, keepdim=True)
    scores = scores.masked_fill(~visible, -torch.inf)
    scores = scores.masked_fill(~alive, 0.0)  # keeps NaN out of softmax and its gradient; undone below
    if sinks is not None:
        sink = sinks.to(dtype)[None, :, None, None].expand(batch, heads, M, 1)
        scores = torch.cat([scores, sink], dim=-1)
    probabilities = torch.softmax(scores, dim=-1)[..., :N].masked_fill(~alive, 0.0)
    lse = torch.logsumexp(scores, dim=-1).masked_fill(~alive.squeeze(-1), -torch.inf)

    if dropout_p > 0:
        assert rng is not None, "dropout needs rng"
        batch_heads = torch.arange(first_batch * heads, (first_batch + batch) * heads, device=q.device)
        keep = keep_tile(rng, (0, M), (0, N), batch_heads.view(batch, heads), dropout_p)
        probabilities = (probabilities / (1 - dropout_p)).masked_fill(~keep, 0.0)
    out = torch.einsum("bhij,bjhd->bihd", probabilities, v)
    return (out.transpose(1, 2) if layout == "bhsd" else out), lse


def in_band(offset: Tensor, band: Band) -> Tensor:
    """Which (row, key) pairs the band shows, given each pair's offset from the diagonal."""
    visible = torch.ones_like(offset, dtype=torch.bool)
    if band.left != UNLIMITED:
        visible &= offset >= -band.left
    if band.right != UNLIMITED:
        visible &= offset <= band.right
    return visible


def attention_varlen(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    *,
    alibi_slopes: Tensor | None = None,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    dtype: torch.dtype = torch.float64,
    **options: Any,
) -> tuple[Tensor, Tensor]:
    """(out (total_q, H, Dv), lse (H, total_q)) of packed sequences, one :func:`attention` call a sequence.

    ``bias`` and ``mask`` broadcast to (B, H, longest query, longest key) and are cut to each sequence's lengths.
    """
    ends_q, ends_k = cu_seqlens_q.tolist(), cu_seqlens_k.tolist()
    outs, lses = [], []
    for b in range(len(ends_q) - 1):
        rows, keys = slice(ends_q[b], ends_q[b + 1]), slice(ends_k[b], ends_k[b + 1])
        within = (slice(0, rows.stop - rows.start), slice(0, keys.stop - keys.start))
        out, lse = attention(
            q[rows][None],
            k[keys][None],
            v[keys][None],
            alibi_slopes=_of_sequence(alibi_slopes, b),
            bias=_cut(bias, b, *within),
            mask=_cut(mask, b, *within),
            dtype=dtype,
            first_batch=b,
            **options,
        )
        outs.append(out[0])
        lses.append(lse[0])
    if not outs:
        return q.new_zeros(0, q.shape[1], v.shape[2], dtype=dtype), q.new_zeros(q.shape[1], 0, dtype=dtype)
    return torch.cat(outs), torch.cat(lses, dim=1)


def attention_with_kvcache(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    k: Tensor | None = None,
    v: Tensor | None = None,
    *,
    cache_seqlens: Tensor | int | None = None,
    cache_batch_idx: Tensor | None = None,
    cache_leftpad: Tensor | None = None,
    block_table: Tensor | None = None,
    rotary_cos: Tensor | None = None,
    rotary_sin: Tensor | None = None,
    rotary_interleaved: bool = True,
    causal: bool = False,
    window: tuple[int, int] = NO_WINDOW,
    alibi_slopes: Tensor | None = None,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    layout: str = "bshd",
    dtype: torch.dtype = torch.float64,
    **options: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(out, lse, k_cache, v_cache) of :func:`faops.attention_with_kvcache`; the caches are new tensors.

    Sequence b sees the keys at cache positions [leftpad, cache_seqlens + new). Rotary embedding uses absolute cache
    positions: new key t is at cache_seqlens + t, and so is query row t of a causal or windowed call, while all rows
    of any other call are at cache_seqlens. ``bias`` and ``mask`` are indexed by absolute cache position.
    """
    if layout == "bhsd":
        out, lse, k_after, v_after = attention_with_kvcache(
            *(None if x is None else x.transpose(1, 2) for x in (q, k_cache, v_cache, k, v)),  # type: ignore[arg-type]
            cache_seqlens=cache_seqlens, cache_batch_idx=cache_batch_idx, cache_leftpad=cache_leftpad,
            block_table=block_table, rotary_cos=rotary_cos, rotary_sin=rotary_sin,
            rotary_interleaved=rotary_interleaved, causal=causal, window=window, alibi_slopes=alibi_slopes,
            bias=bias, mask=mask, dtype=dtype, **options,
        )  # fmt: skip
        return out.transpose(1, 2), lse, k_after.transpose(1, 2), v_after.transpose(1, 2)

    batch, M = q.shape[:2]
    k_cache, v_cache = k_cache.clone(), v_cache.clone()
    new = 0 if k is None else k.shape[1]
    page = k_cache.shape[1]
    capacity = page if block_table is None else page * block_table.shape[1]
    past = _per_sequence(cache_seqlens, batch, capacity)
    first = _per_sequence(cache_leftpad, batch, 0)
    entry = list(range(batch)) if cache_batch_idx is None else cache_batch_idx.tolist()

    if rotary_cos is not None and rotary_sin is not None:
        start = torch.tensor(past, device=q.device)[:, None]
        steps = torch.arange(max(M, new), device=q.device)[None, :]
        moving = not Band.of(causal, window).full
        q = apply_rotary(q, rotary_cos, rotary_sin, start + steps[:, :M] * moving, rotary_interleaved)
        if k is not None:
            k = apply_rotary(k, rotary_cos, rotary_sin, start + steps[:, :new], rotary_interleaved)

    outs, lses = [], []
    for b in range(batch):
        total = past[b] + new
        if block_table is None:
            places = [(entry[b], position) for position in range(total)]
        else:
            pages = block_table[b].tolist()
            places = [(pages[position // page], position % page) for position in range(total)]
        if k is not None and v is not None:
            for t in range(new):
                k_cache[places[past[b] + t]] = k[b, t].to(k_cache.dtype)
                v_cache[places[past[b] + t]] = v[b, t].to(v_cache.dtype)
        seen = places[first[b] :]
        out, lse = attention(
            q[b : b + 1],
            _gather(k_cache, seen),
            _gather(v_cache, seen),
            causal=causal,
            window=window,
            alibi_slopes=_of_sequence(alibi_slopes, b),
            bias=_cut(bias, b, slice(0, M), slice(first[b], total)),
            mask=_cut(mask, b, slice(0, M), slice(first[b], total)),
            dtype=dtype,
            **options,
        )
        outs.append(out)
        lses.append(lse)
    if not outs:
        empty = q.new_zeros(0, M, q.shape[2], v_cache.shape[3], dtype=dtype)
        return empty, q.new_zeros(0, q.shape[2], M, dtype=dtype), k_cache, v_cache
    return torch.cat(outs), torch.cat(lses), k_cache, v_cache


def unfused(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    """(out, lse) of PyTorch's own matmul and softmax in the dtype of ``q``: the yardstick of the accuracy rule."""
    return attention(q, k, v, dtype=q.dtype, **options)


def _per_sequence(values: Tensor | int | None, batch: int, default: int) -> list[int]:
    if values is None:
        return [default] * batch
    return [values] * batch if isinstance(values, int) else [int(value) for value in values]


def _of_sequence(slopes: Tensor | None, b: int) -> Tensor | None:
    """ALiBi slopes of one sequence, from (H,) or (B, H)."""
    return slopes if slopes is None or slopes.dim() == 1 else slopes[b : b + 1]


def _cut(matrix: Tensor | None, b: int, rows: slice, keys: slice) -> Tensor | None:
    """The part of a broadcastable (B, H, M, N) bias or mask that belongs to one sequence, still 4-D."""
    if matrix is None:
        return None
    full = matrix[(None,) * (4 - matrix.dim())]
    wanted: Sequence[slice] = (slice(b, b + 1), slice(None), rows, keys)
    return full[tuple(slice(None) if size == 1 else part for size, part in zip(full.shape, wanted))]


def _gather(cache: Tensor, places: list[tuple[int, int]]) -> Tensor:
    """Rows of a cache in order, as (1, len(places), Hk, D)."""
    rows = [cache[place] for place in places]
    return torch.stack(rows)[None] if rows else cache[:1, :0]
