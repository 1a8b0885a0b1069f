"""How biases are made, changed in place, moved and split, what is refused, and standing in for xFormers."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

import faops.adapters.xformers
import faops.adapters.xformers.ops as xops
from faops.adapters.xformers.ops.fmha import attn_bias as biases
from faops.errors import ArgumentError, FaopsError

BDM = biases.BlockDiagonalMask
PADDED = biases.BlockDiagonalCausalWithOffsetPaddedKeysMask
PAGED = biases.PagedBlockDiagonalCausalWithOffsetPaddedKeysMask


def tokens(count: int, heads: int = 2) -> Tensor:
    return torch.randn(1, count, heads, 8)


# --- lengths ----------------------------------------------------------------------------------------------------------


def test_the_lengths_of_sequences() -> None:
    info = biases._SeqLenInfo.from_seqlens([2, 0, 3], device="cpu")
    assert info.seqstart.tolist() == info.seqstart_py == [0, 2, 2, 5] and info.seqstart.dtype == torch.int32
    assert (info.min_seqlen, info.max_seqlen) == (0, 3)
    assert list(info.intervals()) == [(0, 2), (2, 2), (2, 5)]
    padded = biases._PaddedSeqLenInfo.from_seqlens_padded([2, 3, 2], 4, device="cpu")
    assert padded.seqstart.tolist() == [0, 4, 8, 12] and padded.seqlen.tolist() == padded.seqlen_py == [2, 3, 2]
    assert list(padded.intervals()) == [(0, 2), (4, 7), (8, 10)] and padded.padding == 4
    gappy = biases._GappySeqInfo.from_seqlens_gappy([0, 7, 12, 14], [6, 3, 1], False, device="cpu")
    assert list(gappy.intervals()) == [(0, 6), (7, 10), (12, 13)] and gappy.seqlen.tolist() == [6, 3, 1]
    paged = biases._GappySeqInfo.from_seqlens_gappy([1, 2], [6, 3], True, device="cpu")
    assert paged.seqstart.tolist() == [1, 2, -1] and paged.seqlen.tolist() == paged.seqlen_py == [7, 5]


def test_lengths_change_in_place() -> None:
    """Decoding keeps its tensors, as a CUDA graph wants, and attention follows them."""
    bias = PADDED.from_seqlens([1, 1], 8, [5, 3], device="cpu")
    where = bias.k_seqinfo.seqlen.data_ptr()
    q, k = tokens(2), tokens(16)
    before = xops.memory_efficient_attention(q, k, k, bias)
    bias.k_seqinfo.from_seqlens_padded_inplace([4, 5])
    assert bias.k_seqinfo.seqlen.data_ptr() == where and bias.k_seqinfo.seqlen.tolist() == [4, 5]
    fresh = PADDED.from_seqlens([1, 1], 8, [4, 5], device="cpu")
    after = xops.memory_efficient_attention(q, k, k, bias)
    assert torch.equal(after, xops.memory_efficient_attention(q, k, k, fresh)) and not torch.equal(after, before)
    assert torch.equal(bias.materialize((2, 16)), fresh.materialize((2, 16)))

    info = biases._SeqLenInfo.from_seqlens([2, 3], device="cpu")
    info.from_seqlens_inplace([3, 1])
    assert info.seqstart.tolist() == info.seqstart_py == [0, 3, 4]


def test_packing_and_splitting() -> None:
    parts = [torch.randn(2, 3, 4), torch.randn(1, 5, 4)]
    bias, packed = biases.BlockDiagonalCausalMask.from_tensor_list(parts)
    assert type(bias) is biases.BlockDiagonalCausalMask and packed.shape == (1, 11, 4)
    assert bias.q_seqinfo.seqstart_py == [0, 3, 6, 11]
    for whole in (bias.split(packed), bias.split_queries(packed), bias.split_kv(packed)):
        assert all(torch.equal(part, want) for part, want in zip(whole, parts, strict=True))
    keys = [torch.randn(2, 1, 4), torch.randn(1, 6, 4)]
    bias, q, k, v = BDM.from_tensor_lists_qkv(parts, keys, keys)  # type: ignore[assignment]
    assert q.shape == (1, 11, 4) and torch.equal(k, v) and k.shape == (1, 8, 4)
    assert [tuple(part.shape) for part in bias.split_kv(k)] == [(2, 1, 4), (1, 6, 4)]
    assert BDM.from_tensor_lists_qkv(parts, keys)[3] is None
    for causal in (bias.make_causal(), bias.make_local_attention(9)):
        assert [tuple(part.shape) for part in causal.split_queries(q)] == [(2, 3, 4), (1, 5, 4)]


def test_an_empty_batch() -> None:
    q = tokens(0)
    for bias in (BDM.from_seqlens([], device="cpu"), BDM.from_seqlens([0, 0], device="cpu").make_causal()):
        assert xops.memory_efficient_attention(q, q, q, bias).shape == q.shape
    padded = PADDED.from_seqlens([], 4, [], device="cpu")
    assert xops.memory_efficient_attention(q, q, q, padded).shape == q.shape


# --- pages ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "paged", "extra"),
    [
        (biases.BlockDiagonalPaddedKeysMask, biases.PagedBlockDiagonalPaddedKeysMask, ()),
        (PADDED, PAGED, ()),
        (
            biases.BlockDiagonalCausalLocalAttentionPaddedKeysMask,
            biases.PagedBlockDiagonalCausalLocalPaddedKeysMask,
            (2,),
        ),
    ],
)
def test_padded_keys_become_paged(kind: Any, paged: Any, extra: tuple[int, ...]) -> None:
    """The same keys in pages give the same result."""
    rows, keys, page_size = [2, 2], [7, 4], 4
    bias = kind.from_seqlens_local(rows, 8, keys, *extra) if extra else kind.from_seqlens(rows, 8, keys, device="cpu")
    table = torch.tensor([[2, 0], [3, 1]], dtype=torch.int32)
    there = bias.make_paged(table, page_size, paged)
    assert type(there) is paged and there.room == 8
    k = tokens(16)
    stored = torch.empty_like(k)
    for index, page in enumerate(table.flatten().tolist()):
        stored[:, page_size * page : page_size * (page + 1)] = k[:, page_size * index : page_size * (index + 1)]
    q = tokens(4)
    assert torch.allclose(
        xops.memory_efficient_attention(q, stored, stored, there), xops.memory_efficient_attention(q, k, k, bias)
    )


def test_gappy_keys_become_paged() -> None:
    kinds = biases.BlockDiagonalCausalWithOffsetGappyKeysMask, biases.PagedBlockDiagonalCausalWithOffsetGappyKeysMask
    bias = kinds[0].from_seqlens([2, 2], [1, 10, 16], [6, 4], device="cpu")
    table = torch.tensor([[0, 1], [2, 3]], dtype=torch.int32)
    there = bias.make_paged(table, 4, 8, kinds[1])
    assert there.used() == [(1, 7), (2, 6)]
    assert there.k_seqinfo.seqstart.tolist()[:2] == [1, 2] and there.k_seqinfo.seqlen.tolist() == [7, 6]
    q, k = tokens(4), tokens(16)
    out = xops.memory_efficient_attention(q, k, k, there)
    assert torch.allclose(out, xops.memory_efficient_attention(q, k, k, bias))


# --- moving -----------------------------------------------------------------------------------------------------------


def test_biases_move_with_all_their_tensors() -> None:
    table = torch.zeros(2, 2, dtype=torch.int32)
    kinds = (
        BDM.from_seqlens([2, 3], device="cpu").make_local_attention(4),
        PADDED.from_seqlens([1, 1], 8, [5, 3], device="cpu"),
        PAGED.from_seqlens([1, 1], [5, 3], table, 4, device="cpu"),
        biases.BlockDiagonalGappyKeysMask.from_seqlens([1, 1], [0, 3, 6], [2, 3], device="cpu"),
        biases.LocalAttentionFromBottomRightMask(1, 2),
        xops.LowerTriangularMask(),
        xops.LowerTriangularMask().add_bias(torch.zeros(1, 1, 2, 2)),
    )
    for bias in kinds:
        there = bias.to("meta")
        assert type(there) is type(bias)
        assert all(tensor.device.type == "meta" for tensor in tensors_in(there))
        assert len(list(tensors_in(there))) == len(list(tensors_in(bias)))
    local = kinds[0].to("meta")
    assert local._window_size == 4 and local.q_seqinfo.seqstart_py == [0, 2, 5]


def tensors_in(value: Any) -> Iterator[Tensor]:
    parts = (
        [getattr(value, field.name) for field in dataclasses.fields(value)] if dataclasses.is_dataclass(value) else []
    )
    for part in [*parts, getattr(value, "_bias", None)]:
        if isinstance(part, Tensor):
            yield part
        elif dataclasses.is_dataclass(part):
            yield from tensors_in(part)


# --- what is refused --------------------------------------------------------------------------------------------------


class Stranger(biases.LowerTriangularMask):
    """Could mean anything."""


def attend(bias: Any = None, *, q: Tensor | None = None, k: Tensor | None = None, **options: Any) -> Tensor:
    q, k = tokens(5) if q is None else q, tokens(9) if k is None else k
    return xops.memory_efficient_attention(q, k, k, bias, **options)


TABLE = torch.tensor([[0, 1]], dtype=torch.int32)
REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "a subclass": (lambda: attend(Stranger()), "attn_bias: got Stranger, expected None, a floating tensor, or exactly"),
    "an object": (lambda: attend("causal"), "attn_bias: got 'causal'"),
    "a bool mask": (lambda: attend(torch.ones(1, 2, 5, 9).bool()), "attn_bias: got bool tensor .* floating tensor"),
    "a bias of two axes": (lambda: attend(torch.ones(5, 9)), r"expected a floating tensor \(B, H, M, N\)"),
    "a bias of other size": (lambda: attend(torch.ones(1, 2, 5, 8)), "bias: got"),
    "a bias with causal": (lambda: attend(xops.LowerTriangularMask().add_bias(torch.ones(5, 9))), "attn_bias: got"),
    "two axes": (lambda: attend(q=torch.ones(5, 8)), "query: got"),
    "mixed axes": (lambda: attend(q=torch.ones(1, 5, 8)), "key: got .* as many axes as query"),
    "fewer heads": (lambda: attend(k=tokens(9, 1)), r"key: got heads \(1,\), expected those of query, \(2,\); expand"),
    "value of other length": (
        lambda: xops.memory_efficient_attention(tokens(5), tokens(9), tokens(8)),
        r"value: got shape \(1, 8, 2, 8\)",
    ),
    "dropout of 1": (lambda: attend(p=1.0), "p: got 1.0"),
    "dropout for lse": (
        lambda: xops.memory_efficient_attention_forward_requires_grad(tokens(5), tokens(9), tokens(9), p=0.5),
        "p: got 0.5, expected 0",
    ),
    "a batch of two": (
        lambda: attend(BDM.from_seqlens([5], [9], device="cpu"), q=torch.ones(2, 5, 2, 8), k=torch.ones(2, 9, 2, 8)),
        r"query: got shape \(2, 5, 2, 8\), expected a batch of 1 with BlockDiagonalMask",
    ),
    "other queries": (lambda: attend(BDM.from_seqlens([4], [9], device="cpu")), "query: got 5 tokens, .* attn_bias, 4"),
    "other keys": (lambda: attend(BDM.from_seqlens([5], [8], device="cpu")), "key: got 9 tokens, .* attn_bias, 8"),
    "another device": (
        lambda: attend(BDM.from_seqlens([5], [9], device="meta")),
        r"attn_bias: got BlockDiagonalMask on meta, .* use attn_bias\.to\(device\)",
    ),
    "half a page": (
        lambda: attend(PAGED.from_seqlens([5], [7], TABLE, 4, device="cpu")),
        "key: got 9 tokens, expected whole pages of 4",
    ),
    "half a page gathered": (
        lambda: attend(PAGED.from_seqlens([5], [7], TABLE, 4, device="cpu"), p=0.5),
        "key: got 9 tokens, expected whole pages of 4",
    ),
    "a page that is not there": (
        lambda: attend(PAGED.from_seqlens([5], [7], TABLE + 1, 4, device="cpu"), k=tokens(8)),
        "block_table",
    ),
    "a tensor of lengths": (lambda: BDM.from_seqlens(torch.ones(3)), "seqlens: got a tensor"),
    "a negative length": (lambda: BDM.from_seqlens([2, -1]), "seqlens: got -1"),
    "counts": (lambda: BDM.from_seqlens([2, 1], [3]), "kv_seqlen: got 1 sequences"),
    "no room": (
        lambda: PADDED.from_seqlens([1], 4, [5]),
        "kv_seqlen: got a length of 5, expected at most the padding, 4",
    ),
    "no room in pages": (lambda: PAGED.from_seqlens([1], [9], TABLE, 4), "kv_seqlen: got a length of 9"),
    "starts": (
        lambda: biases.BlockDiagonalGappyKeysMask.from_seqlens([1], [0], [2]),
        "seqstarts: got 1 for 1 lengths, expected one more",
    ),
    "fewer keys than rows": (
        lambda: BDM.from_seqlens([2, 5], [3, 4], device="cpu").make_causal_from_bottomright(),
        "kv_seqlen: got 4 keys of sequence 1, expected at least its queries, 5",
    ),
    "window too short": (
        lambda: BDM.from_seqlens([7], [3], device="cpu").make_local_attention(4),
        "window_size: got 4, expected more than 4: the last of 7 queries would see none of 3 keys",
    ),
    "window of 0": (lambda: BDM.from_seqlens([2], device="cpu").make_local_attention(0), "window_size: got 0"),
    "window below 0": (lambda: biases.LocalAttentionFromBottomRightMask(1, -1), "window_right: got -1"),
    "local bottom right": (lambda: biases.LowerTriangularFromBottomRightLocalAttentionMask(0), "window_size: got 0"),
    "more in place": (
        lambda: biases._SeqLenInfo.from_seqlens([2]).from_seqlens_inplace([1, 1]),
        "seqlens: got 2 lengths, expected 1",
    ),
    "longer in place": (
        lambda: biases._SeqLenInfo.from_seqlens([2]).from_seqlens_inplace([3]),
        "seqlens: got a length of 3, expected at most max_seqlen, 2",
    ),
    "split": (lambda: BDM.from_seqlens([2], [3], device="cpu").split(tokens(2)), "split_queries"),
    "split of other": (lambda: BDM.from_seqlens([2], device="cpu").split(tokens(3)), r"x: got shape \(1, 3, 2, 8\)"),
    "materialize": (lambda: BDM.from_seqlens([2], device="cpu").materialize((2, 3)), r"shape: got \(2, 3\)"),
    "materialize pages": (
        lambda: PAGED.from_seqlens([5], [7], TABLE, 4, device="cpu").materialize((5, 9)),
        r"shape: got \(5, 9\), expected \(..., 5, 8\)",
    ),
    "notional padding": (
        lambda: biases.BlockDiagonalGappyKeysMask.from_seqlens([1], [0, 6], [2], device="cpu").make_paged(
            TABLE, 4, 6, biases.PagedBlockDiagonalGappyKeysMask
        ),
        "notional_padding: got 6, expected a multiple of the page size, 4",
    ),
    "merge": (
        lambda: xops.fmha.merge_attentions([tokens(3)], [torch.ones(1, 2, 4)]),
        r"lse_split: got shape \(1, 1, 2, 4\), expected \(1, 1, 2, 3\)",
    ),
    "merge of nothing": (lambda: xops.fmha.merge_attentions([], []), "attn_split"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_named(name: str) -> None:
    call, message = REFUSED[name]
    with pytest.raises(ArgumentError, match=message):
        call()


# --- standing in ------------------------------------------------------------------------------------------------------


@pytest.fixture
def no_xformers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if importlib.util.find_spec("xformers") is not None:
        pytest.skip("xformers is installed")
    yield
    faops.adapters.xformers.uninstall()
    assert "xformers" not in sys.modules and "xformers.ops" not in sys.modules


def test_standing_in_for_xformers(no_xformers: None) -> None:
    faops.adapters.xformers.install()
    faops.adapters.xformers.install()
    assert importlib.import_module("xformers.ops") is xops
    assert importlib.import_module("xformers.ops.fmha.attn_bias") is biases
    assert importlib.import_module("xformers").ops is xops
    assert importlib.util.find_spec("xformers") is not None
    faops.adapters.xformers.uninstall()
    faops.adapters.xformers.uninstall()
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("xformers.ops")


def test_a_real_xformers_is_left_alone(no_xformers: None, monkeypatch: pytest.MonkeyPatch) -> None:
    real, inner = ModuleType("xformers"), ModuleType("xformers.other")
    real.__spec__ = importlib.util.spec_from_loader("xformers", None)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "xformers", real)
        patch.setitem(sys.modules, "xformers.other", inner)
        with pytest.raises(FaopsError, match="xformers is installed here"):
            faops.adapters.xformers.install()
        assert sys.modules["xformers"] is real
        faops.adapters.xformers.install(force=True)
        assert sys.modules["xformers.ops"] is xops and "xformers.other" not in sys.modules
        faops.adapters.xformers.uninstall()
        assert sys.modules["xformers"] is real and sys.modules["xformers.other"] is inner
