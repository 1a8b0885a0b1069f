"""flash_attn.ops.triton.rotary.apply_rotary, in torch operations."""

from __future__ import annotations

import torch
from torch import Tensor

from faops.adapters.flash_attn.conventions import FlashAttnArgumentError, length, may_read
from faops.adapters.flash_attn.ragged import Places
from faops.rotary import apply_rotary as rotate
from faops.validate import describe


def apply_rotary(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    seqlen_offsets: int | Tensor = 0,
    cu_seqlens: Tensor | None = None,
    max_seqlen: int | None = None,
    interleaved: bool = False,
    inplace: bool = False,
    conjugate: bool = False,
) -> Tensor:
    """``x`` with its first R dims rotated by the angles of its positions; no gradient of its own.

    Args:
        x: (B, S, H, D), or (total, H, D) with ``cu_seqlens``.
        cos, sin: (P, R / 2) with R <= D.
        seqlen_offsets: the position of each sequence's first token, an int or an integer tensor (B,).
        cu_seqlens: int32 (B + 1,), offsets of packed sequences; tokens behind the last keep their values.
        max_seqlen: the longest packed sequence; needed with ``cu_seqlens``.
        interleaved: pairs are neighbours; else the two halves of the R dims.
        inplace: write into ``x`` and return it.
        conjugate: rotate backwards, as the gradient needs it.

    A position past the table is an error, raised where values may be read: on the CPU, and elsewhere with
    ``FAOPS_CHECK_VALUES=1``. Otherwise its token stays as it is, as in flash-attn.
    """
    _check(x, cos, sin, cu_seqlens, max_seqlen)
    positions, moves = _positions(x, seqlen_offsets, cu_seqlens)
    seqlen = x.shape[1] if cu_seqlens is None else length("max_seqlen", max_seqlen)
    _check_reach(cos, seqlen, seqlen_offsets, positions, moves)
    known = positions < cos.shape[0]
    if moves is not None:
        known &= moves
    rows = x if cu_seqlens is None else x[None]
    rotated = rotate(rows, cos, -sin if conjugate else sin, positions.where(known, 0), interleaved)
    result = torch.where(known[..., None, None], rotated, rows).view_as(x)
    return x.copy_(result) if inplace else result


def _check(x: Tensor, cos: Tensor, sin: Tensor, cu_seqlens: Tensor | None, max_seqlen: int | None) -> None:
    axes, meaning = (4, "(batch, seqlen, heads, head_dim)") if cu_seqlens is None else (3, "(total, heads, head_dim)")
    if not isinstance(x, Tensor) or x.dim() != axes:
        raise FlashAttnArgumentError("x", describe(x), f"a tensor of shape {meaning}")
    if not isinstance(cos, Tensor) or cos.dim() != 2:
        raise FlashAttnArgumentError("cos", describe(cos), "a tensor of shape (positions, rotary_dim / 2)")
    if not isinstance(sin, Tensor) or sin.shape != cos.shape:
        raise FlashAttnArgumentError("sin", describe(sin), f"the shape of cos, {tuple(cos.shape)}")
    if 2 * cos.shape[1] > x.shape[-1]:
        raise FlashAttnArgumentError("cos", describe(cos), f"at most head_dim / 2 = {x.shape[-1] // 2} columns")
    if cu_seqlens is not None and max_seqlen is None:
        raise FlashAttnArgumentError("max_seqlen", "None", "the longest sequence, with cu_seqlens")


def _positions(x: Tensor, offsets: int | Tensor, cu_seqlens: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The position of each token, int64 (B, S), or (1, total) for packed ones with whether it is in a sequence."""
    batch = x.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    if isinstance(offsets, Tensor):
        if offsets.shape != (batch,) or offsets.dtype not in (torch.int32, torch.int64):
            expected = f"an int, or an int32 or int64 tensor of shape ({batch},)"
            raise FlashAttnArgumentError("seqlen_offsets", describe(offsets), expected)
        starts = offsets.long()
    else:
        starts = torch.full((batch,), offsets, device=x.device)
    if cu_seqlens is None:
        return starts[:, None] + torch.arange(x.shape[1], device=x.device), None
    places = Places.read(cu_seqlens, x.shape[0])
    return (starts[places.sequence] + places.row)[None], places.valid[None]


def _check_reach(cos: Tensor, seqlen: int, offsets: int | Tensor, positions: Tensor, moves: Tensor | None) -> None:
    """That the table holds every position."""
    if not isinstance(offsets, Tensor):
        needed = offsets + seqlen
    elif may_read(positions) and not torch.compiler.is_compiling():
        used = positions if moves is None else positions[moves]
        needed = int(used.max()) + 1 if used.numel() else 0
    else:
        return
    if cos.shape[0] < needed:
        expected = f"at least {needed}, the last position with seqlen_offsets and the longest sequence"
        raise FlashAttnArgumentError("cos", f"{cos.shape[0]} positions", expected)
