"""MultiheadAttention: self-attention as a layer of a model, for training and for generating with a cache."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import faops
from faops import validate
from faops.errors import ArgumentError
from faops.nn.counts import check_size
from faops.nn.rotary import RotaryEmbedding
from faops.nn.step import Step


class MultiheadAttention(nn.Module):
    """Self-attention with one projection for queries, keys and values, and one for the output.

    Args:
        embed_dim: E, of the input and the output.
        num_heads: H query heads. num_kv_heads: Hk key and value heads, dividing H; H if None.
        head_dim: D; embed_dim / num_heads if None.
        bias: of the input projection. out_bias: of the output projection; as ``bias`` if None.
        dropout: on the probabilities, in training.
        causal, window, scale, softcap: as in :func:`faops.attention`.
        alibi: adds the linear biases of Press et al. 2021 (arXiv 2108.12409), see :func:`alibi_slopes`.
        qk_norm: normalises queries and keys of each head (RMS, learnable weights, this epsilon) before they rotate; off
            if None.
        rotary: rotates queries and keys; usually one module for all layers.
        layer: which layer of a cache this is.
        device, dtype: of the parameters.

    Parameters are named as in flash-attn's MHA. ``Wqkv.weight`` is ((H + 2 Hk) · D, E): the rows of all query heads,
    then those of the key heads, then those of the value heads. ``out_proj.weight`` is (E, H · D).
    :mod:`faops.nn.convert` renames and joins the parameters of other modules.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        num_kv_heads: int | None = None,
        head_dim: int | None = None,
        *,
        bias: bool = True,
        out_bias: bool | None = None,
        dropout: float = 0.0,
        causal: bool = False,
        window: tuple[int | None, int | None] = (-1, -1),
        scale: float | None = None,
        softcap: float = 0.0,
        alibi: bool = False,
        qk_norm: float | None = None,
        rotary: RotaryEmbedding | None = None,
        layer: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        for name, size in (("embed_dim", embed_dim), ("num_heads", num_heads), ("num_kv_heads", num_kv_heads)):
            check_size(name, size)
        if num_heads % num_kv_heads:
            raise ArgumentError("num_kv_heads", num_kv_heads, f"a number that divides num_heads, {num_heads}")
        if head_dim is None:
            if embed_dim % num_heads:
                raise ArgumentError("embed_dim", embed_dim, f"a multiple of num_heads, {num_heads}, or a head_dim")
            head_dim = embed_dim // num_heads
        check_size("head_dim", head_dim)
        if rotary is not None and rotary.dim > head_dim:
            raise ArgumentError("rotary", f"one of {rotary.dim} dims", f"at most head_dim, {head_dim}")
        validate.band_sides(causal, window)
        validate.check_numbers(scale, softcap, dropout, head_dim)
        self.embed_dim, self.num_heads, self.num_kv_heads, self.head_dim = embed_dim, num_heads, num_kv_heads, head_dim
        self.dropout, self.causal, self.window, self.scale, self.softcap = dropout, causal, window, scale, softcap
        self.alibi, self.rotary, self.layer = alibi, rotary, layer
        self._slopes_made: dict[torch.device, Tensor] = {}
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        self.Wqkv = nn.Linear(embed_dim, (num_heads + 2 * num_kv_heads) * head_dim, bias, **made)
        self.out_proj = nn.Linear(num_heads * head_dim, embed_dim, bias if out_bias is None else out_bias, **made)
        self.q_norm = None if qk_norm is None else nn.RMSNorm(head_dim, qk_norm, **made)
        self.k_norm = None if qk_norm is None else nn.RMSNorm(head_dim, qk_norm, **made)

    def reset_parameters(self) -> None:
        """Draw new weights, as nn.Linear does, and forget what norms have learnt."""
        for module in (self.Wqkv, self.out_proj, self.q_norm, self.k_norm):
            if module is not None:
                module.reset_parameters()

    def forward(
        self,
        x: Tensor,
        *,
        step: Step | None = None,
        cu_seqlens: Tensor | None = None,
        max_seqlen: int | None = None,
        key_padding_mask: Tensor | None = None,
    ) -> Tensor:
        """Attention of ``x`` to itself and, with a step, to what a cache holds. Returns a tensor of the same shape.

        Args:
            x: (B, S, E); or packed (total, E), with ``cu_seqlens`` or ``step``.
            step: what the ``append`` of a cache returned. Needs ``causal``; dropout does not apply.
            cu_seqlens: int32 (B + 1,), where each sequence of a packed ``x`` begins and the last one ends.
            max_seqlen: at least the longest of these sequences.
            key_padding_mask: bool (B, S), True where there is a token, for x (B, S, E). What comes out elsewhere has no
                meaning.

        Raises:
            ArgumentError: an argument is wrong, or two that exclude each other are given.
        """
        self._check(x, step, cu_seqlens, max_seqlen, key_padding_mask)
        q, k, v = self._project(x)
        how: dict[str, Any] = {
            "window": self.window, "scale": self.scale, "softcap": self.softcap, "alibi_slopes": self._slopes(x.device),
        }  # fmt: skip
        if step is not None:
            out = step.attend(self.layer, q, k, v, rotary=self.rotary, **how)
            return self._join(out)
        how |= {"causal": self.causal, "dropout_p": self.dropout if self.training else 0.0}
        if cu_seqlens is not None and max_seqlen is not None:
            q, k = self._rotate(q, k, _positions(cu_seqlens, x.shape[0], max_seqlen), max_seqlen)
            out = faops.attention_varlen(q, k, v, cu_seqlens, cu_seqlens, max_seqlen, max_seqlen, **how)
        else:
            q, k = self._rotate(q, k, None, None)
            mask = None if key_padding_mask is None else key_padding_mask[:, None, None, :]
            out = faops.attention(q, k, v, mask=mask, **how)
        return self._join(out)

    def _project(self, x: Tensor) -> list[Tensor]:
        """q (..., H, D), k and v (..., Hk, D), views of one tensor."""
        heads = self.Wqkv(x).view(*x.shape[:-1], self.num_heads + 2 * self.num_kv_heads, self.head_dim)
        q, k, v = heads.split([self.num_heads, self.num_kv_heads, self.num_kv_heads], dim=-2)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        return [q, k, v]

    def _rotate(self, q: Tensor, k: Tensor, positions: Tensor | None, length: int | None) -> tuple[Tensor, Tensor]:
        if self.rotary is None:
            return q, k
        return self.rotary(q, positions, length=length), self.rotary(k, positions, length=length)

    def _join(self, out: Tensor) -> Tensor:
        joined: Tensor = self.out_proj(out.flatten(-2))
        return joined

    def _slopes(self, device: torch.device) -> Tensor | None:
        """The slopes, float32 whatever the module is cast to, and made once for each device."""
        if not self.alibi:
            return None
        if torch.compiler.is_compiling():
            return torch.tensor(alibi_slopes(self.num_heads), dtype=torch.float32, device=device)
        if device not in self._slopes_made:
            with torch.inference_mode(False):
                self._slopes_made[device] = torch.tensor(
                    alibi_slopes(self.num_heads), dtype=torch.float32, device=device
                )
        return self._slopes_made[device]

    def _check(
        self,
        x: Tensor,
        step: Step | None,
        cu_seqlens: Tensor | None,
        max_seqlen: int | None,
        key_padding_mask: Tensor | None,
    ) -> None:
        packed = cu_seqlens is not None
        if x.dim() not in (2, 3) or x.shape[-1] != self.embed_dim:
            raise ArgumentError(
                "x", validate.describe(x), f"shape (batch, seq, {self.embed_dim}) or (total, {self.embed_dim})"
            )
        if sum((step is not None, packed, key_padding_mask is not None)) > 1:
            raise ArgumentError("step, cu_seqlens, key_padding_mask", "more than one", "at most one of them")
        if step is not None and not self.causal:
            raise ArgumentError("step", "a step", "None: this module is not causal, and a cache is read causally")
        if packed != (max_seqlen is not None):
            raise ArgumentError("max_seqlen", max_seqlen, "the longest sequence with cu_seqlens, None without")
        if packed and x.dim() != 2:
            raise ArgumentError("x", validate.describe(x), "(total, embed_dim) with cu_seqlens")
        if x.dim() == 2 and not packed and step is None:
            raise ArgumentError("x", validate.describe(x), "(batch, seq, embed_dim), or cu_seqlens or a step")
        if key_padding_mask is not None and (
            key_padding_mask.dtype != torch.bool or key_padding_mask.shape != x.shape[:2]
        ):
            expected = f"a bool tensor of shape {tuple(x.shape[:2])}"
            raise ArgumentError("key_padding_mask", validate.describe(key_padding_mask), expected)

    def extra_repr(self) -> str:
        heads = f"{self.num_heads}" if self.num_heads == self.num_kv_heads else f"{self.num_heads}/{self.num_kv_heads}"
        parts = [f"{self.embed_dim}, heads={heads}, head_dim={self.head_dim}, layer={self.layer}"]
        usual = {"causal": False, "window": (-1, -1), "scale": None, "softcap": 0.0, "alibi": False, "dropout": 0.0}
        parts += [f"{name}={getattr(self, name)}" for name, value in usual.items() if getattr(self, name) != value]
        return ", ".join(parts)


def alibi_slopes(heads: int) -> list[float]:
    """The slope of each head: 2^(-8 / n), 2^(-16 / n), ... for a power of two n; for other numbers those of the next
    smaller power of two n, and then every other one of 2 n, as in the paper's code.
    """
    n = 1 << (heads.bit_length() - 1)
    slopes = [2.0 ** (-8 * (head + 1) / n) for head in range(n)]
    return slopes + [2.0 ** (-8 * (head + 1) / (2 * n)) for head in range(0, 2 * (heads - n), 2)]


def _positions(cu_seqlens: Tensor, total: int, max_seqlen: int) -> Tensor:
    """Position of each packed token in its sequence, without a look at the values on the host. Tokens behind the last
    sequence get any position below max_seqlen.
    """
    tokens = torch.arange(total, device=cu_seqlens.device)
    owners = torch.searchsorted(cu_seqlens[1:].contiguous(), tokens, right=True, out_int32=True)
    positions = tokens - cu_seqlens[owners.clamp(max=cu_seqlens.shape[0] - 2)]
    return positions.clamp(0, max(max_seqlen - 1, 0))
