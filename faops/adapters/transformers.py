"""``attn_implementation="faops"`` for Hugging Face transformers, 4.53 or newer.

>>> import faops.adapters.transformers
>>> faops.adapters.transformers.register()
>>> model = AutoModelForCausalLM.from_pretrained(path, attn_implementation="faops")

transformers asks two things of an attention implementation: a mask function, called once a forward pass, and an
attention function, called by every layer. The first is in :mod:`faops.adapters.transformers_masks`, the second here.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import faops
from faops.adapters import masks
from faops.adapters.transformers_masks import make_mask
from faops.errors import ArgumentError, FaopsError
from faops.problem import Band

NAME = "faops"
OLDEST = "4.53"

# Arguments of some models that change the result and that no faops kernel takes.
UNSUPPORTED = {
    "head_mask": "use attn_implementation='eager'",
    "indices": "sparse attention over chosen keys is not supported",
    "block_indices": "sparse attention over chosen blocks is not supported",
    "sinks": "a sink for each token is not supported",
    "cache": "continuous batching with a paged cache is not supported",
}


def register(name: str = NAME) -> None:
    """Make ``attn_implementation=name`` known to transformers. May be called more than once.

    Raises FaopsError if transformers is missing or older than 4.53.
    """
    try:
        from transformers import AttentionInterface
        from transformers.masking_utils import AttentionMaskInterface
    except ImportError as error:
        raise FaopsError(
            f"transformers {OLDEST} or newer is needed ({error}); install it with: pip install 'faops[transformers]'"
        ) from None
    AttentionInterface.register(name, attention_forward)
    AttentionMaskInterface.register(name, make_mask)


def attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    dropout: float = 0.0,
    scaling: float | None = None,
    softcap: float | None = None,
    is_causal: bool | None = None,
    position_bias: Tensor | None = None,
    s_aux: Tensor | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """The attention function of transformers' interface.

    ``query`` is (batch, heads, M, dim), ``key`` and ``value`` (batch, kv heads, N, dim). ``attention_mask`` is None,
    a key mask, a bool mask or an additive mask broadcastable to (batch, heads, M, N). ``s_aux`` is the sink of each
    head, ``position_bias`` is added to the scores, dropout applies as given. Returns the output,
    (batch, M, heads, dim) and contiguous, and None in place of the weights. Raises ArgumentError.
    """
    _refuse(others)
    q, k, v = (tensor.transpose(1, 2) for tensor in (query, key, value))
    options: dict[str, Any] = {
        "scale": scaling,
        "softcap": softcap or 0.0,
        "sinks": s_aux,
        "dropout_p": dropout,
    }
    if attention_mask is None:
        causal = bool(is_causal if is_causal is not None else getattr(module, "is_causal", True))
        if others.get("cu_seq_lens_q") is not None and position_bias is None and q.shape[0] == 1:
            out = _flattened(q, k, v, causal, others, options)
        else:
            out = faops.attention(q, k, v, causal=causal, bias=_bias(position_bias, k), **options)
    elif masks.is_key_mask(attention_mask):
        out = _with_key_mask(q, k, v, attention_mask, position_bias, options)
    else:
        out = _with_full_mask(q, k, v, attention_mask, position_bias, options)
    return out.contiguous(), None


def _with_key_mask(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor, bias: Tensor | None, options: dict[str, Any]
) -> Tensor:
    keys = mask.shape[-1]
    if keys > k.shape[1] or mask.shape[0] not in (1, q.shape[0]):
        expected = f"at most {k.shape[1]} keys and a batch of {q.shape[0]}"
        raise ArgumentError("attention_mask", f"a mask of shape {tuple(mask.shape)}", expected)
    k, v = k[:, :keys], v[:, :keys]  # a static cache is longer than what it holds
    bias = _bias(bias, k)
    limits: dict[str, Any]
    if torch.compiler.is_compiling():
        limits = {"mask": masks.expand(mask, q.shape[1])}
    else:
        known = masks.decode(mask)
        band, packing = known.band, known.packing
        if packing is not None and q.shape[1] == keys and mask.shape[0] == q.shape[0] and bias is None:
            return _packed(q, k, v, packing, band, options)
        if known.packed:  # but with a bias, which varlen would read by position in the sequence
            limits = {"mask": masks.expand(mask, q.shape[1])}
        else:
            visible = None if known.visible is None else known.visible[:, None, None, :]
            limits = {"causal": band.right == 0, "window": (band.left, band.right), "mask": visible}
    out: Tensor = faops.attention(q, k, v, bias=bias, **limits, **options)
    return out


def _packed(q: Tensor, k: Tensor, v: Tensor, packing: masks.Packing, band: Band, options: dict[str, Any]) -> Tensor:
    """Attention over the visible tokens only; hidden positions come out as 0."""
    packed_q, packed_k, packed_v = (tensor.flatten(0, 1).index_select(0, packing.indices) for tensor in (q, k, v))
    lengths, longest = packing.cu_seqlens, packing.max_seqlen
    window = (band.left, band.right)
    out: Tensor = faops.attention_varlen(
        packed_q, packed_k, packed_v, lengths, lengths, longest, longest,
        causal=band.right == 0, window=window, **options,
    )  # fmt: skip
    rows = q.shape[0] * q.shape[1]
    if packing.indices.numel() < rows:
        out = out.new_zeros(rows, *out.shape[1:]).index_copy(0, packing.indices, out)
    return out.view(*q.shape[:2], *out.shape[1:])


def _flattened(
    q: Tensor, k: Tensor, v: Tensor, causal: bool, others: dict[str, Any], options: dict[str, Any]
) -> Tensor:
    """Sequences that the caller flattened into one row, with their cumulative lengths given."""
    cu_q, cu_k = (others[f"cu_seq_lens_{side}"].to(torch.int32) for side in "qk")
    longest_q, longest_k = (int(cumulative.diff().max()) for cumulative in (cu_q, cu_k))
    out: Tensor = faops.attention_varlen(q[0], k[0], v[0], cu_q, cu_k, longest_q, longest_k, causal=causal, **options)
    return out[None]


def _with_full_mask(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor, bias: Tensor | None, options: dict[str, Any]
) -> Tensor:
    """A mask with its full meaning: no causality is added. Keys past those that exist are ignored."""
    if mask.dim() != 4:
        raise ArgumentError("attention_mask", f"a mask of shape {tuple(mask.shape)}", "4 dimensions")
    if mask.shape[-1] != 1:
        mask = mask[..., : k.shape[1]]
    bias = _bias(bias, k)
    added: dict[str, Any] = (
        {"mask": mask, "bias": bias} if mask.dtype == torch.bool else {"bias": mask if bias is None else bias + mask}
    )
    out: Tensor = faops.attention(q, k, v, **added, **options)
    return out


def _bias(bias: Tensor | None, k: Tensor) -> Tensor | None:
    """``bias`` for the keys that are attended to."""
    if bias is None or bias.shape[-1] == 1:
        return bias
    return bias[..., : k.shape[1]]


def _refuse(others: dict[str, Any]) -> None:
    for name, why in UNSUPPORTED.items():
        if others.get(name) is not None:
            raise ArgumentError(name, type(others[name]).__name__, f"None: {why}")
    if others.get("output_attentions"):
        from transformers.utils import logging

        logging.get_logger(__name__).warning_once(
            "`faops` attention does not return attention weights (`output_attentions=True`); "
            "set `attn_implementation='eager'` to get them."
        )
