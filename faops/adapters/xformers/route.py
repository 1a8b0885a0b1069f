"""From a bias to the call of faops that means it.

q is (B, M, H, D) here, k and v (B, N, Hk, D or Dv); out is (B, M, H, Dv) and lse (B, H, M), or None unless asked for.

Keys with unused room go to :func:`faops.attention_with_kvcache`, which reads the lengths on the device and copies
nothing; that needs equally many queries a sequence, and has neither gradient nor dropout. Where it cannot serve, the
used keys are gathered, which copies them, and go to :func:`faops.attention_varlen`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import faops
from faops.adapters.xformers.blocks import (
    BlockDiagonalCausalFromBottomRightMask,
    BlockDiagonalCausalLocalAttentionFromBottomRightMask,
    BlockDiagonalCausalLocalAttentionMask,
    BlockDiagonalCausalMask,
    BlockDiagonalMask,
    SequenceBias,
)
from faops.adapters.xformers.dense import (
    EVERYTHING,
    AttentionBias,
    LocalAttentionFromBottomRightMask,
    LowerTriangularFromBottomRightLocalAttentionMask,
    LowerTriangularFromBottomRightMask,
    LowerTriangularMask,
    LowerTriangularMaskWithTensorBias,
    Pattern,
    PatternBias,
)
from faops.adapters.xformers.padded import (
    BlockDiagonalCausalLocalAttentionPaddedKeysMask,
    BlockDiagonalCausalWithOffsetGappyKeysMask,
    BlockDiagonalCausalWithOffsetPaddedKeysMask,
    BlockDiagonalGappyKeysMask,
    BlockDiagonalLocalAttentionFromBottomRightGappyKeysMask,
    BlockDiagonalLocalAttentionPaddedKeysMask,
    BlockDiagonalPaddedKeysMask,
)
from faops.adapters.xformers.paged import (
    PagedBias,
    PagedBlockDiagonalCausalLocalPaddedKeysMask,
    PagedBlockDiagonalCausalWithOffsetGappyKeysMask,
    PagedBlockDiagonalCausalWithOffsetPaddedKeysMask,
    PagedBlockDiagonalGappyKeysMask,
    PagedBlockDiagonalPaddedKeysMask,
)
from faops.adapters.xformers.seqlens import _GappySeqInfo
from faops.errors import ArgumentError
from faops.problem import UNLIMITED

Result = tuple[Tensor, Tensor | None]

# A subclass may mean anything, so it is the exact type that counts.
DENSE = (
    LowerTriangularMask, LowerTriangularFromBottomRightMask, LowerTriangularFromBottomRightLocalAttentionMask,
    LocalAttentionFromBottomRightMask, LowerTriangularMaskWithTensorBias,
)  # fmt: skip
BLOCKS = (
    BlockDiagonalMask, BlockDiagonalCausalMask, BlockDiagonalCausalFromBottomRightMask,
    BlockDiagonalCausalLocalAttentionMask, BlockDiagonalCausalLocalAttentionFromBottomRightMask,
)  # fmt: skip
PADDED = (
    BlockDiagonalPaddedKeysMask, BlockDiagonalCausalWithOffsetPaddedKeysMask, BlockDiagonalLocalAttentionPaddedKeysMask,
    BlockDiagonalCausalLocalAttentionPaddedKeysMask,
)  # fmt: skip
GAPPY = (
    BlockDiagonalGappyKeysMask, BlockDiagonalCausalWithOffsetGappyKeysMask,
    BlockDiagonalLocalAttentionFromBottomRightGappyKeysMask,
)  # fmt: skip
PAGED = (
    PagedBlockDiagonalPaddedKeysMask, PagedBlockDiagonalCausalWithOffsetPaddedKeysMask,
    PagedBlockDiagonalCausalLocalPaddedKeysMask, PagedBlockDiagonalGappyKeysMask,
    PagedBlockDiagonalCausalWithOffsetGappyKeysMask,
)  # fmt: skip
SUPPORTED = (*DENSE, *BLOCKS, *PADDED, *GAPPY, *PAGED)


@dataclass
class Call:
    """The tensors of a call and its numbers."""

    q: Tensor
    k: Tensor
    v: Tensor
    dropout_p: float
    scale: float | None
    return_lse: bool

    @property
    def options(self) -> dict[str, Any]:
        return {"dropout_p": self.dropout_p, "scale": self.scale, "return_lse": self.return_lse}

    def result(self, found: Any) -> Result:
        """(out, lse) from what faops returns."""
        return found if self.return_lse else (found, None)

    @property
    def learns(self) -> bool:
        return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (self.q, self.k, self.v))


def attend(call: Call, bias: AttentionBias | Tensor | None) -> Result:
    """(out, lse) of a call. Raises ArgumentError for a bias that faops does not know or that does not fit."""
    if bias is None or isinstance(bias, Tensor):
        return _dense(call, EVERYTHING, bias)
    if type(bias) in DENSE:
        assert isinstance(bias, PatternBias)
        return _dense(call, bias.pattern, getattr(bias, "_bias", None))
    if type(bias) not in SUPPORTED:
        known = ", ".join(kind.__name__ for kind in SUPPORTED)
        raise ArgumentError("attn_bias", type(bias).__name__, f"None, a floating tensor, or exactly one of {known}")
    assert isinstance(bias, SequenceBias)
    _check_sequences(call, bias)
    if type(bias) in BLOCKS:
        return _blocks(call, bias)
    return _cached(call, bias)


# --- dense ------------------------------------------------------------------------------------------------------------


def _dense(call: Call, pattern: Pattern, bias: Tensor | None) -> Result:
    left, right, keys = from_bottom_right(pattern, call.q.shape[1], call.k.shape[1])
    if bias is not None and bias.shape[-1] > 1:
        bias = bias[..., :keys]
    k, v = call.k[:, :keys], call.v[:, :keys]
    return call.result(faops.attention(call.q, k, v, window=(left, right), bias=bias, **call.options))


def from_bottom_right(pattern: Pattern, rows: int, keys: int) -> tuple[int, int, int]:
    """The sides of faops' window, which counts from the bottom right, and how many of the keys take part."""
    left, right = pattern.left, pattern.right
    if not pattern.top_left:
        return left, right, keys
    # Causal from the top left: no row sees a key behind its own place, so keys from the M-th on are seen by none. With
    # fewer keys than rows, row i stands at key i - (M - N) for faops, which is that much too far to the left.
    keys = min(keys, rows)
    shift = rows - keys
    return (left if left == UNLIMITED else left - shift), right + shift, keys


# --- packed sequences -------------------------------------------------------------------------------------------------


def _check_sequences(call: Call, bias: SequenceBias) -> None:
    name = type(bias).__name__
    for side, tensor in (("query", call.q), ("key", call.k)):
        if tensor.shape[0] != 1:
            raise ArgumentError(side, f"shape {tuple(tensor.shape)}", f"a batch of 1 with {name}: (1, tokens, ...)")
    rows = bias.q_seqinfo.seqstart_py[-1]
    if call.q.shape[1] != rows:
        raise ArgumentError("query", f"{call.q.shape[1]} tokens", f"those of attn_bias, {rows}")
    if bias.q_seqinfo.seqstart.device != call.q.device:
        expected = f"one on query's device, {call.q.device}; use attn_bias.to(device)"
        raise ArgumentError("attn_bias", f"{name} on {bias.q_seqinfo.seqstart.device}", expected)
    if not isinstance(bias, PagedBias) and call.k.shape[1] != bias.k_seqinfo.seqstart_py[-1]:
        raise ArgumentError("key", f"{call.k.shape[1]} tokens", f"those of attn_bias, {bias.k_seqinfo.seqstart_py[-1]}")


def _blocks(call: Call, bias: SequenceBias) -> Result:
    lengths_q, lengths_k = bias.q_seqinfo.lengths(), bias.k_seqinfo.lengths()
    if bias.pattern.top_left and lengths_q != lengths_k:
        return _one_by_one(call, bias)
    return _varlen(call, bias, call.k, call.v, bias.k_seqinfo.seqstart, bias.k_seqinfo.max_seqlen)


def _one_by_one(call: Call, bias: SequenceBias) -> Result:
    """A call for each sequence: from the top left, the windows of sequences with other lengths differ for faops."""
    results = []
    for (first, last), (start, end) in zip(bias.q_seqinfo.intervals(), bias.k_seqinfo.intervals()):
        tensors = (call.q[:, first:last], call.k[:, start:end], call.v[:, start:end])
        results.append(_dense(Call(*tensors, call.dropout_p, call.scale, call.return_lse), bias.pattern, None))
    out = torch.cat([out for out, _ in results], dim=1)
    return out, torch.cat([lse for _, lse in results if lse is not None], dim=2) if call.return_lse else None


def _varlen(call: Call, bias: SequenceBias, k: Tensor, v: Tensor, seqstart: Tensor, longest: int) -> Result:
    left, right, _ = bias.pattern
    queries = bias.q_seqinfo
    found = faops.attention_varlen(
        call.q[0], k[0], v[0], queries.seqstart, seqstart, max(queries.max_seqlen, 0), max(longest, 0),
        window=(left, right), **call.options,
    )  # fmt: skip
    out, lse = call.result(found)
    return out[None], None if lse is None else lse[None]


# --- keys with unused room --------------------------------------------------------------------------------------------


def _cached(call: Call, bias: SequenceBias) -> Result:
    lengths = bias.q_seqinfo.lengths()
    if not lengths or len(set(lengths)) > 1 or lengths[0] == 0 or call.learns or call.dropout_p > 0:
        return _gathered(call, bias)
    batch, rows = len(lengths), lengths[0]
    k_cache, v_cache, options = _cache(call, bias)
    left, right, _ = bias.pattern
    queries = call.q[0].view(batch, rows, *call.q.shape[2:])
    options = {**options, "scale": call.scale, "return_lse": call.return_lse, "window": (left, right)}
    out, lse = call.result(faops.attention_with_kvcache(queries, k_cache, v_cache, **options))
    return out.flatten(0, 1)[None], None if lse is None else lse.transpose(0, 1).flatten(1, 2)[None]


def _cache(call: Call, bias: Any) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """k and v as a cache, and what says where its keys are."""
    k, v, info = call.k[0], call.v[0], bias.k_seqinfo
    options: dict[str, Any] = {"cache_seqlens": info.seqlen}
    if isinstance(bias, PagedBias):
        options["block_table"] = bias.block_tables
        if isinstance(info, _GappySeqInfo):
            options["cache_leftpad"] = info.seqstart[:-1].contiguous()
        shape = (_pages(k, bias), bias.page_size)
    elif isinstance(info, _GappySeqInfo):  # pages of one key each
        behind = torch.arange(info.max_seqlen, dtype=torch.int32, device=k.device)
        options["block_table"] = (info.seqstart[:-1, None] + behind).clamp_(max=k.shape[0] - 1)
        shape = (k.shape[0], 1)
    else:
        shape = (len(info.seqlen_py), info.padding)
    return k.view(*shape, *k.shape[1:]), v.view(*shape, *v.shape[1:]), options


def _pages(k: Tensor, bias: PagedBias) -> int:
    if k.shape[0] % bias.page_size:
        raise ArgumentError("key", f"{k.shape[0]} tokens", f"whole pages of {bias.page_size}")
    return k.shape[0] // bias.page_size


def _gathered(call: Call, bias: Any) -> Result:
    device = call.q.device
    if isinstance(bias, PagedBias):
        _pages(call.k[0], bias)
        used = bias.used()
        places = [bias.tokens(index, first, end, device) for index, (first, end) in enumerate(used)]
    else:
        used = list(bias.k_seqinfo.intervals())
        places = [torch.arange(first, end, device=device) for first, end in used]
    lengths = [end - first for first, end in used]
    indices = torch.cat(places) if places else torch.empty(0, dtype=torch.int64, device=device)
    starts = torch.tensor([0, *lengths], dtype=torch.int32, device=device).cumsum(0, dtype=torch.int32)
    k, v = call.k.index_select(1, indices), call.v.index_select(1, indices)
    return _varlen(call, bias, k, v, starts, max(lengths, default=0))
