"""flash_attn.bert_padding: tokens out of a padded batch and back, with gradients."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from faops.adapters.flash_attn import bert_padding


@given(
    lengths=st.lists(st.integers(0, 7), min_size=1, max_size=4).filter(any),
    axes=st.lists(st.integers(1, 3), min_size=1, max_size=3),
    side=st.sampled_from(["left", "right", "holes"]),
    dtype=st.sampled_from([torch.bool, torch.int32, torch.int64]),
    as_int=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_unpad_then_pad(lengths: list[int], axes: list[int], side: str, dtype: torch.dtype, as_int: bool) -> None:
    batch, seqlen = len(lengths), 7
    mask = torch.zeros(batch, seqlen, dtype=torch.bool)
    for row, length in zip(mask, lengths):
        places = {
            "left": range(seqlen - length, seqlen),
            "right": range(length),
            "holes": torch.randperm(seqlen)[:length],
        }
        row[torch.as_tensor(list(places[side]), dtype=torch.int64)] = True
    x = torch.randn(batch, seqlen, *axes, dtype=torch.float64, requires_grad=True)
    tokens, indices, cu_seqlens, longest, used = bert_padding.unpad_input(x, mask.to(dtype))
    assert torch.equal(tokens, x[mask])
    assert torch.equal(indices, mask.flatten().nonzero().flatten()) and indices.dtype == torch.int64
    assert cu_seqlens.tolist() == [sum(lengths[:i]) for i in range(batch + 1)] and cu_seqlens.dtype == torch.int32
    assert longest == max(lengths) and isinstance(longest, int)
    assert used.tolist() == lengths and used.dtype == torch.int32
    index = indices.int() if as_int else indices
    padded = bert_padding.pad_input(tokens, index, batch, seqlen)
    seen = mask.view(batch, seqlen, *[1] * len(axes))
    assert torch.equal(padded, x * seen)
    weight = torch.randn_like(padded)
    (gradient,) = torch.autograd.grad(padded, x, weight)
    assert torch.equal(gradient, weight * seen)


def test_places_without_use() -> None:
    mask = torch.tensor([[1, 1, 0, 0], [1, 0, 0, 0]])
    unused = torch.tensor([[0, 0, 1, 0], [0, 1, 1, 0]])
    x = torch.randn(2, 4, 3)
    tokens, indices, cu_seqlens, longest, used = bert_padding.unpad_input(x, mask, unused)
    assert indices.tolist() == [0, 1, 2, 4, 5, 6]
    assert torch.equal(tokens, x.flatten(0, 1)[indices])
    assert cu_seqlens.tolist() == [0, 3, 6] and longest == 3 and used.tolist() == [2, 1]


def test_several_sequences_in_a_row() -> None:
    in_length = torch.tensor([[2, 3, 0, 0, 0, 0], [3, 2, 0, 0, 0, 0], [6, 0, 0, 0, 0, 0]])
    x = torch.randn(3, 6, 2, 5, requires_grad=True)
    tokens, indices, cu_seqlens, longest = bert_padding.unpad_input_for_concatenated_sequences(x, in_length)
    assert indices.tolist() == [0, 1, 2, 3, 4, 6, 7, 8, 9, 10, *range(12, 18)]
    assert torch.equal(tokens, x.flatten(0, 1)[indices])
    assert cu_seqlens.tolist() == [0, 2, 5, 8, 10, 16] and cu_seqlens.dtype == torch.int32 and longest == 6
    tokens.sum().backward()
    assert x.grad is not None and x.grad.sum() == 16 * 10


def test_index_first_axis_and_its_residual() -> None:
    indices = torch.tensor([4, 0, 3])
    x = torch.randn(6, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: bert_padding.index_first_axis(x, indices), x)
    assert torch.autograd.gradcheck(lambda x: bert_padding.index_first_axis_residual(x, indices), x)
    rows = torch.randn(3, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda rows: bert_padding.index_put_first_axis(rows, indices, 6), rows)
    picked, residual = bert_padding.index_first_axis_residual(x, indices)
    assert torch.equal(picked, x[indices]) and torch.equal(residual, x)
