"""Between padded batches (batch, seqlen, ...) and packed tokens (total, ...), as flash_attn.bert_padding does it.

All of it has gradients, and waits for the device where a size depends on a mask.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


class IndexFirstAxis(torch.autograd.Function):
    """``input[indices]``; backward knows that no index repeats."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, indices: Tensor) -> Tensor:
        ctx.save_for_backward(indices)
        ctx.rows = input.shape[0]
        return input.index_select(0, indices)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (indices,) = ctx.saved_tensors
        return gradient.new_zeros(ctx.rows, *gradient.shape[1:]).index_copy_(0, indices.long(), gradient), None


class IndexPutFirstAxis(torch.autograd.Function):
    """Zeros of ``first_axis_dim`` rows with ``values`` at ``indices``."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, indices: Tensor, first_axis_dim: int) -> Tensor:
        ctx.save_for_backward(indices)
        return values.new_zeros(first_axis_dim, *values.shape[1:]).index_copy_(0, indices.long(), values)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (indices,) = ctx.saved_tensors
        return gradient.index_select(0, indices), None, None


class IndexFirstAxisResidual(torch.autograd.Function):
    """``input[indices]`` and ``input`` itself, as a residual branch wants both."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(indices)
        return input.index_select(0, indices), input.detach()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, residual: Tensor) -> tuple[Tensor, None]:
        (indices,) = ctx.saved_tensors
        return residual.index_add(0, indices, gradient), None


def index_first_axis(input: Tensor, indices: Tensor) -> Tensor:
    """Rows ``indices`` (int32 or int64, no repeats) of ``input``."""
    return IndexFirstAxis.apply(input, indices)  # type: ignore[no-any-return,no-untyped-call]


def index_put_first_axis(values: Tensor, indices: Tensor, first_axis_dim: int) -> Tensor:
    """(first_axis_dim, ...) zeros with ``values`` in the rows ``indices`` (int32 or int64, no repeats)."""
    return IndexPutFirstAxis.apply(values, indices, first_axis_dim)  # type: ignore[no-any-return,no-untyped-call]


def index_first_axis_residual(input: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
    """Rows ``indices`` of ``input``, and ``input`` itself for a residual connection."""
    return IndexFirstAxisResidual.apply(input, indices)  # type: ignore[no-any-return,no-untyped-call]


def unpad_input(
    hidden_states: Tensor, attention_mask: Tensor, unused_mask: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, int, Tensor]:
    """The tokens that a mask selects, packed.

    Args:
        hidden_states: (batch, seqlen, ...).
        attention_mask: (batch, seqlen), bool or int; 1 is a valid token.
        unused_mask: (batch, seqlen), bool or int; 1 is a token that gets a place and is not used.

    Returns:
        The tokens of both masks (total, ...); their int64 places in the flattened batch; int32 cu_seqlens (batch + 1,);
        the longest length; and the int32 number of valid tokens of each sequence (batch,).
    """
    selected = attention_mask if unused_mask is None else attention_mask + unused_mask
    lengths = selected.sum(dim=-1, dtype=torch.int32)
    used = attention_mask.sum(dim=-1, dtype=torch.int32)
    indices = selected.flatten().nonzero().flatten()
    tokens = index_first_axis(hidden_states.flatten(0, 1), indices)
    return tokens, indices, _offsets(lengths), int(lengths.max()), used


def unpad_input_for_concatenated_sequences(
    hidden_states: Tensor, attention_mask_in_length: Tensor
) -> tuple[Tensor, Tensor, Tensor, int]:
    """As :func:`unpad_input`, for rows that each hold several sequences one behind the other.

    ``attention_mask_in_length`` is int (batch, seqlen): each row lists the lengths of its sequences, in order, and is
    0 elsewhere. Returns tokens, places, int32 cu_seqlens of all sequences, and the longest length.
    """
    filled = attention_mask_in_length.sum(dim=-1, keepdim=True)
    positions = torch.arange(attention_mask_in_length.shape[-1], device=filled.device)
    indices = (positions < filled).flatten().nonzero().flatten()
    lengths = attention_mask_in_length[attention_mask_in_length != 0]
    tokens = index_first_axis(hidden_states.flatten(0, 1), indices)
    return tokens, indices, _offsets(lengths), int(lengths.max())


def pad_input(hidden_states: Tensor, indices: Tensor, batch: int, seqlen: int) -> Tensor:
    """Packed tokens (total, ...) back at their places in (batch, seqlen, ...), zeros elsewhere."""
    return index_put_first_axis(hidden_states, indices, batch * seqlen).view(batch, seqlen, *hidden_states.shape[1:])


def _offsets(lengths: Tensor) -> Tensor:
    return functional.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0))
