"""The tensors and numbers of one call, as the operators hand them to a kernel's ``launch``.

Everything is validated and in one layout here: dense tensors are (batch, seq, heads, dim) and varlen ones
(total, heads, dim), with a contiguous last dim and any other strides.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from faops.problem import AttentionProblem, Band, broadcast_pattern, require_dtype


@dataclass(slots=True)
class AttentionInputs:
    """One forward call. ``launch`` returns (out, lse): out like q with the value head dim, contiguous; lse float32
    (float64 for float64 inputs) of shape (B, H, M), or (H, total_q) for varlen, or None when ``need_lse`` is False.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    alibi_slopes: Tensor | None  # float32 (H,) or (B, H)
    bias: Tensor | None  # broadcastable to (B, H, M, N), 4-D
    mask: Tensor | None  # bool, True is visible; broadcastable to (B, H, M, N), 4-D
    sinks: Tensor | None  # (H,)
    cu_seqlens_q: Tensor | None  # int32 (B + 1,)
    cu_seqlens_k: Tensor | None
    rng: Tensor | None  # int64 (2,): seed and offset of the dropout generator, on q's device
    max_seqlen_q: int
    max_seqlen_k: int
    window_left: int
    window_right: int  # 0 for causal
    scale: float
    softcap: float
    dropout_p: float
    deterministic: bool
    need_lse: bool
    backend: str
    q_descale: Tensor | None = None  # fp8 only: float32 (B, Hk)
    k_descale: Tensor | None = None
    v_descale: Tensor | None = None

    @property
    def band(self) -> Band:
        return Band(self.window_left, self.window_right)

    @property
    def batch(self) -> int:
        return self.q.shape[0] if self.cu_seqlens_q is None else self.cu_seqlens_q.shape[0] - 1

    def problem(self) -> AttentionProblem:
        """The call without its tensors."""
        q, k, v = self.q, self.k, self.v
        return AttentionProblem(
            op="forward",
            dtype=require_dtype("q", q.dtype),
            batch=self.batch,
            seqlen_q=self.max_seqlen_q,
            seqlen_k=self.max_seqlen_k,
            heads_q=q.shape[-2],
            heads_kv=k.shape[-2],
            head_dim=q.shape[-1],
            head_dim_v=v.shape[-1],
            layout="dense" if self.cu_seqlens_q is None else "varlen",
            band=self.band.simplify(self.max_seqlen_q, self.max_seqlen_k),
            softcap=self.softcap > 0,
            alibi=self.alibi_slopes is not None,
            bias=broadcast_pattern(None if self.bias is None else tuple(self.bias.shape)),
            mask=broadcast_pattern(None if self.mask is None else tuple(self.mask.shape)),
            sinks=self.sinks is not None,
            dropout=self.dropout_p > 0,
            need_lse=self.need_lse,
            fp8_descale=self.q_descale is not None,
        )


@dataclass(slots=True)
class BackwardInputs:
    """One backward call. ``launch`` returns (dq, dk, dv, dbias, dsinks), the last two None unless asked for."""

    dout: Tensor  # like out
    dlse: Tensor | None  # like lse; None when nothing depends on lse
    forward: AttentionInputs
    out: Tensor
    lse: Tensor
    bias_grad: bool
    sinks_grad: bool

    def problem(self) -> AttentionProblem:
        return replace(
            self.forward.problem(),
            op="backward",
            need_lse=True,
            lse_grad=self.dlse is not None,
            bias_grad=self.bias_grad,
            deterministic=self.forward.deterministic,
        )


@dataclass(slots=True)
class DecodeInputs:
    """One KV-cache call. New keys and values are written into the caches in place; ``launch`` returns (out, lse)."""

    q: Tensor  # (B, M, H, D)
    k_cache: Tensor  # (cache batch, capacity, Hk, D), or (pages, page size, Hk, D) with a block table
    v_cache: Tensor
    k: Tensor | None  # (B, new, Hk, D)
    v: Tensor | None
    cache_seqlens: Tensor | None  # int32 (B,): keys already in the cache; None: the cache is full
    cache_batch_idx: Tensor | None  # int32 (B,)
    cache_leftpad: Tensor | None  # int32 (B,)
    block_table: Tensor | None  # int32 (B, pages a sequence)
    rotary_cos: Tensor | None  # (positions, rotary_dim / 2)
    rotary_sin: Tensor | None
    alibi_slopes: Tensor | None
    bias: Tensor | None
    mask: Tensor | None
    sinks: Tensor | None
    window_left: int
    window_right: int
    scale: float
    softcap: float
    rotary_interleaved: bool
    num_splits: int
    need_lse: bool
    backend: str
    q_descale: Tensor | None = None
    k_descale: Tensor | None = None
    v_descale: Tensor | None = None

    @property
    def band(self) -> Band:
        return Band(self.window_left, self.window_right)

    @property
    def capacity(self) -> int:
        """Most keys a sequence can hold."""
        if self.block_table is None:
            return self.k_cache.shape[1]
        return self.block_table.shape[1] * self.k_cache.shape[1]

    def problem(self) -> AttentionProblem:
        q = self.q
        rotary = "" if self.rotary_cos is None else ("interleaved" if self.rotary_interleaved else "half")
        return AttentionProblem(
            op="decode",
            dtype=require_dtype("q", q.dtype),
            batch=q.shape[0],
            seqlen_q=q.shape[1],
            seqlen_k=self.capacity,
            heads_q=q.shape[2],
            heads_kv=self.k_cache.shape[2],
            head_dim=q.shape[3],
            head_dim_v=self.v_cache.shape[3],
            layout="dense" if self.block_table is None else "paged",
            band=self.band.simplify(q.shape[1], self.capacity),
            softcap=self.softcap > 0,
            alibi=self.alibi_slopes is not None,
            bias=broadcast_pattern(None if self.bias is None else tuple(self.bias.shape)),
            mask=broadcast_pattern(None if self.mask is None else tuple(self.mask.shape)),
            sinks=self.sinks is not None,
            need_lse=self.need_lse,
            fp8_descale=self.q_descale is not None,
            page_size=0 if self.block_table is None else self.k_cache.shape[1],
            append=self.k is not None,
            rotary=rotary,
            leftpad=self.cache_leftpad is not None,
            batch_index=self.cache_batch_idx is not None,
        )
