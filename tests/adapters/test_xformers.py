"""xFormers' attention through faops: every bias against an unfused computation with the bias as a tensor."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

import faops
import faops.adapters.xformers.ops as xops
from faops.adapters.xformers.ops import fmha
from faops.adapters.xformers.ops.fmha import attn_bias as biases
from faops.adapters.xformers.route import SUPPORTED
from tests.adapters.models import close

Sees = Callable[[int, int, int, int], bool]  # of row i and key j among rows and keys

# What xFormers says about each pattern, in its own coordinates.
EVERY: Sees = lambda i, j, rows, keys: True  # noqa: E731
TOP_LEFT: Sees = lambda i, j, rows, keys: j <= i  # noqa: E731
BOTTOM_RIGHT: Sees = lambda i, j, rows, keys: keys - j >= rows - i  # noqa: E731


def local_top_left(size: int) -> Sees:
    return lambda i, j, rows, keys: i - size < j <= i


def local_bottom_right(size: int) -> Sees:
    return lambda i, j, rows, keys: 0 <= (keys - j) - (rows - i) < size


def both_sides(left: int, right: int) -> Sees:
    return lambda i, j, rows, keys: -right <= (keys - j) - (rows - i) <= left


@dataclass
class Case:
    """A bias with what each of its sequences may see. ``places`` are where the keys of each sequence lie."""

    bias: Any
    sees: Sees
    rows: list[int]
    places: list[list[int]]
    tokens: int

    def visible(self) -> Tensor:
        found = torch.zeros(sum(self.rows), self.tokens, dtype=torch.bool)
        first = 0
        for rows, places in zip(self.rows, self.places):
            for i in range(rows):
                for j, place in enumerate(places):
                    found[first + i, place] = self.sees(i, j, rows, len(places))
            first += rows
        return found


def lengths(count: int, longest: int = 9, least: int = 0) -> list[int]:
    return [random.randint(least, longest) for _ in range(count)]


def row_counts(equal: bool) -> list[int]:
    first, second = lengths(2, 5, least=1)
    return [first] * 3 if equal else random.choice(([first, second, second + 1], [0, second, 0]))


def dense(bias: Any, sees: Sees, rows: int, keys: int) -> Case:
    return Case(bias, sees, [rows], [list(range(keys))], keys)


def consecutive(keys: list[int]) -> list[list[int]]:
    starts = [sum(keys[:index]) for index in range(len(keys))]
    return [list(range(start, start + length)) for start, length in zip(starts, keys)]


def block(make: Callable[[Any], Any], sees: Sees, *, wide: bool = False, same: bool = False) -> Case:
    """``wide``: at least as many keys as queries everywhere; ``same``: exactly as many."""
    rows = lengths(4, 7)
    keys = rows if same else [length + random.randint(0, 5) for length in rows] if wide else lengths(4, 7)
    bias = make(biases.BlockDiagonalMask.from_seqlens(rows, keys, device="cpu"))
    return Case(bias, sees, rows, consecutive(keys), sum(keys))


def padded(make: Callable[..., Any], sees: Sees, equal: bool) -> Case:
    rows, keys, padding = row_counts(equal), lengths(3), 11
    places = [list(range(padding * index, padding * index + length)) for index, length in enumerate(keys)]
    return Case(make(rows, padding, keys), sees, rows, places, 3 * padding)


def gappy(make: Callable[..., Any], sees: Sees, equal: bool) -> Case:
    rows, keys = row_counts(equal), lengths(3, 6, least=1)
    starts = [random.randint(0, 3), random.randint(9, 12), random.randint(18, 20), 27]
    places = [list(range(start, start + length)) for start, length in zip(starts, keys)]
    return Case(make(rows, starts, keys, device="cpu"), sees, rows, places, 27)


def paged(make: Callable[..., Any], sees: Sees, equal: bool, page_size: int, starts: list[int] | None = None) -> Case:
    rows = row_counts(equal)
    pages = -(-14 // page_size)
    table = torch.randperm(3 * pages).to(torch.int32).view(3, pages)
    first = starts or [0, 0, 0]
    keys = [random.randint(1, 13 - start) for start in first]
    places = [
        [int(table[index, j // page_size]) * page_size + j % page_size for j in range(start, start + length)]
        for index, (start, length) in enumerate(zip(first, keys))
    ]
    options = (rows, keys) if starts is None else (rows, starts, keys)
    return Case(make(*options, table, page_size), sees, rows, places, 3 * pages * page_size)


def shifted(kind: Any, sees: Sees, equal: bool, page_size: int) -> Case:
    return paged(kind.from_seqlens, sees, equal, page_size, [random.randint(0, 3) for _ in range(3)])


BDM = biases.BlockDiagonalMask
WINDOW = 3
DENSE: dict[str, Callable[[], Case]] = {
    f"{name} {rows}x{keys}": lambda make=make, sees=sees, rows=rows, keys=keys: dense(make(), sees, rows, keys)  # type: ignore[misc]
    for name, make, sees in (
        ("LowerTriangularMask", xops.LowerTriangularMask, TOP_LEFT),
        ("BottomRight", biases.LowerTriangularFromBottomRightMask, BOTTOM_RIGHT),
        (
            "BottomRightLocal",
            lambda: biases.LowerTriangularFromBottomRightMask().make_local_attention(WINDOW),
            local_bottom_right(WINDOW),
        ),
        ("Local", lambda: biases.LocalAttentionFromBottomRightMask(1, 2), both_sides(1, 2)),
    )
    for rows, keys in ((7, 7), (4, 9), (9, 4))
}
BLOCKS: dict[str, Callable[[], Case]] = {
    "Block": lambda: block(lambda bias: bias, EVERY),
    "Causal": lambda: block(BDM.make_causal, TOP_LEFT),
    "CausalSame": lambda: block(BDM.make_causal, TOP_LEFT, same=True),
    "CausalBottomRight": lambda: block(BDM.make_causal_from_bottomright, BOTTOM_RIGHT, wide=True),
    "CausalLocal": lambda: block(lambda bias: bias.make_local_attention(WINDOW), local_top_left(WINDOW), wide=True),
    "CausalLocalLong": lambda: block(lambda bias: bias.make_local_attention(8), local_top_left(8)),
    "CausalLocalShort": lambda: Case(  # one sequence has more queries than keys, and its window still hides some
        BDM.from_seqlens([7, 6], [4, 6], device="cpu").make_local_attention(5),
        local_top_left(5),
        [7, 6],
        consecutive([4, 6]),
        10,
    ),
    "CausalLocalBottomRight": lambda: block(
        lambda bias: bias.make_local_attention_from_bottomright(WINDOW), local_bottom_right(WINDOW), wide=True
    ),
}


def cached(equal: bool) -> dict[str, Callable[[], Case]]:
    causal_padded = biases.BlockDiagonalCausalWithOffsetPaddedKeysMask
    local_padded = biases.BlockDiagonalCausalLocalAttentionPaddedKeysMask
    local_gappy = biases.BlockDiagonalLocalAttentionFromBottomRightGappyKeysMask
    local_paged = biases.PagedBlockDiagonalCausalLocalPaddedKeysMask
    size = random.choice((1, 2, 3, 7))
    return {
        "Padded": lambda: padded(biases.BlockDiagonalPaddedKeysMask.from_seqlens, EVERY, equal),
        "CausalPadded": lambda: padded(causal_padded.from_seqlens, BOTTOM_RIGHT, equal),
        "LocalPadded": lambda: padded(
            lambda *sizes: biases.BlockDiagonalPaddedKeysMask.from_seqlens(*sizes).make_local_attention(2, 1),
            both_sides(2, 1), equal,
        ),
        "CausalLocalPadded": lambda: padded(
            lambda *sizes: local_padded.from_seqlens_local(*sizes, WINDOW), local_bottom_right(WINDOW), equal
        ),
        "Gappy": lambda: gappy(biases.BlockDiagonalGappyKeysMask.from_seqlens, EVERY, equal),
        "CausalGappy": lambda: gappy(
            biases.BlockDiagonalCausalWithOffsetGappyKeysMask.from_seqlens, BOTTOM_RIGHT, equal
        ),
        "LocalGappy": lambda: gappy(
            lambda *sizes, device: local_gappy.from_seqlens_local_gappy(*sizes, 2, 1, device), both_sides(2, 1), equal
        ),
        "Paged": lambda: paged(biases.PagedBlockDiagonalPaddedKeysMask.from_seqlens, EVERY, equal, size),
        "CausalPaged": lambda: paged(
            biases.PagedBlockDiagonalCausalWithOffsetPaddedKeysMask.from_seqlens, BOTTOM_RIGHT, equal, size
        ),
        "CausalLocalPaged": lambda: paged(
            lambda *sizes: local_paged.from_seqlens_local(*sizes, WINDOW), local_bottom_right(WINDOW), equal, size
        ),
        "GappyPaged": lambda: shifted(biases.PagedBlockDiagonalGappyKeysMask, EVERY, equal, size),
        "CausalGappyPaged": lambda: shifted(
            biases.PagedBlockDiagonalCausalWithOffsetGappyKeysMask, BOTTOM_RIGHT, equal, size
        ),
    }  # fmt: skip


def unfused(q: Tensor, k: Tensor, v: Tensor, added: Tensor, scale: float | None = None) -> tuple[Tensor, Tensor]:
    """out and lse of (B, M, H, D) tensors in float64; ``added`` broadcasts to (B, H, M, N)."""
    q, k, v = (tensor.double().transpose(1, 2) for tensor in (q, k, v))
    scores = q @ k.transpose(-1, -2) * (q.shape[-1] ** -0.5 if scale is None else scale) + added.double()
    alive = (scores > -torch.inf).any(-1, keepdim=True)
    scores = torch.where(alive, scores, 0.0)  # where all is hidden, softmax would be NaN
    lse = torch.where(alive.squeeze(-1), scores.logsumexp(-1), -torch.inf)
    return (scores.softmax(-1) * alive @ v).transpose(1, 2), lse


def tensors(rows: int, keys: int, batch: int = 1, heads: int = 2) -> list[Tensor]:
    return [
        torch.randn(batch, length, heads, dim, dtype=torch.float64) for length, dim in ((rows, 8), (keys, 8), (keys, 6))
    ]


def expected_shape(case: Case) -> tuple[int, int]:
    room = getattr(case.bias, "room", None)
    return sum(case.rows), case.tokens if room is None else len(case.rows) * room


def check(case: Case, *, gradients: bool, batch: int = 1) -> None:
    """The bias materialises to what it means, and attention with it is attention with that tensor."""
    q, k, v = tensors(sum(case.rows), case.tokens, batch)
    visible = case.visible()
    added = torch.zeros(visible.shape, dtype=torch.float64).masked_fill(~visible, -torch.inf)
    made = case.bias.materialize((1, 2, *expected_shape(case)), dtype=torch.float64)
    assert torch.equal(made[0, 1], added[:, : made.shape[-1]]) and not visible[:, made.shape[-1] :].any()

    leaves = [tensor.requires_grad_(gradients) for tensor in (q, k, v)]
    scale = random.choice((None, 0.7))
    exact, exact_lse = unfused(q, k, v, added, scale)
    out, lse = fmha.memory_efficient_attention_forward_requires_grad(q, k, v, case.bias, scale=scale)
    assert torch.equal(xops.memory_efficient_attention(q, k, v, case.bias, scale=scale), out)
    assert not exact.numel() or (out - exact).abs().max() < 1e-12
    assert torch.equal(lse == -torch.inf, exact_lse == -torch.inf)
    torch.testing.assert_close(lse, exact_lse, atol=1e-12, rtol=0)
    if gradients:
        dout = torch.randn_like(exact)
        mine, theirs = (torch.autograd.grad(result, leaves, dout) for result in (out, exact))
        for gradient, want in zip(mine, theirs):
            assert (gradient - want).abs().max() < 1e-11


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("name", DENSE)
def test_dense_biases(name: str, gradients: bool) -> None:
    check(DENSE[name](), gradients=gradients, batch=2)


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("name", BLOCKS)
def test_block_diagonal_biases(name: str, gradients: bool) -> None:
    check(BLOCKS[name](), gradients=gradients)


@pytest.mark.parametrize("equal", [True, False], ids=["equal rows", "any rows"])
@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("name", cached(True))
def test_biases_with_unused_keys(
    name: str, gradients: bool, equal: bool, calls: list[tuple[str, dict[str, object]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache_calls = []
    real = faops.attention_with_kvcache
    monkeypatch.setattr(faops, "attention_with_kvcache", lambda *t, **o: (cache_calls.append(o), real(*t, **o))[1])
    check(cached(equal)[name](), gradients=gradients)
    used_cache = equal and not gradients
    assert (len(cache_calls), len(calls)) == ((2, 0) if used_cache else (0, 2))


def test_every_bias_is_tested() -> None:
    kinds = {type(make().bias) for make in (*DENSE.values(), *BLOCKS.values(), *cached(True).values())}
    assert kinds | {biases.LowerTriangularMaskWithTensorBias} == set(SUPPORTED)
    public = {getattr(biases, name) for name in biases.__all__ if name.endswith(("Mask", "Bias"))}
    assert public - {biases.AttentionBias} == set(SUPPORTED)


# --- tensors as biases ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("sizes", [(2, 3, 5, 9), (1, 3, 9, 5), (2, 1, 1, 9), (1, 1, 9, 1)])
def test_a_tensor_as_bias_has_a_gradient(sizes: tuple[int, ...], causal: bool) -> None:
    rows, keys = (9, 5) if sizes[2] == 9 else (5, 9)
    q, k, v = tensors(rows, keys, batch=2, heads=3)
    bias = torch.randn(sizes, dtype=torch.float64, requires_grad=True)
    sees = torch.ones(rows, keys, dtype=torch.bool).tril() if causal else torch.ones(rows, keys, dtype=torch.bool)
    exact, _ = unfused(q, k, v, bias + torch.zeros(rows, keys).masked_fill(~sees, -torch.inf))
    given = xops.LowerTriangularMask().add_bias(bias) if causal else bias
    out = xops.memory_efficient_attention(q, k, v, given)
    dout = torch.randn_like(out)
    assert (out - exact).abs().max() < 1e-12
    (mine,), (theirs,) = (torch.autograd.grad(result, [bias], dout) for result in (out, exact))
    assert (mine - theirs).abs().max() < 1e-11


def test_materialized_with_a_tensor() -> None:
    bias = torch.randn(2, 3, 4, 5)
    made = xops.LowerTriangularMask().add_bias(bias).materialize((2, 3, 4, 5))
    assert torch.equal(made, torch.where(torch.ones(4, 5).tril() > 0, bias, -torch.inf))


# --- shapes -----------------------------------------------------------------------------------------------------------


def test_three_axes_are_one_head() -> None:
    q, k, v = (tensor.squeeze(2) for tensor in tensors(5, 9, batch=3, heads=1))
    bias = torch.randn(3, 5, 9, dtype=torch.float64)
    out, lse = fmha.memory_efficient_attention_forward_requires_grad(q, k, v, bias)
    exact, exact_lse = unfused(*(tensor.unsqueeze(2) for tensor in (q, k, v)), bias.unsqueeze(1))
    assert out.shape == (3, 5, 6) and lse.shape == (3, 1, 5)
    assert (out - exact.squeeze(2)).abs().max() < 1e-12 and (lse - exact_lse).abs().max() < 1e-12


@pytest.mark.parametrize("expanded", [True, False])
def test_five_axes_are_groups_of_heads(expanded: bool, calls: list[tuple[str, dict[str, object]]]) -> None:
    q = torch.randn(2, 5, 3, 4, 8, dtype=torch.float64, requires_grad=True)
    heads = 1 if expanded else 4
    k, v = (torch.randn(2, 9, 3, heads, dim, dtype=torch.float64, requires_grad=True) for dim in (8, 6))
    bias = torch.randn(2, 3, 4, 5, 9, dtype=torch.float64)
    wide = [tensor.expand(2, 9, 3, 4, -1) for tensor in (k, v)]
    out, lse = fmha.memory_efficient_attention_forward_requires_grad(q, *wide, bias)
    exact, exact_lse = unfused(*(tensor.flatten(2, 3) for tensor in (q, *wide)), bias.flatten(1, 2))
    assert out.shape == (2, 5, 3, 4, 6) and lse.shape == (2, 3, 4, 5)
    assert (out.flatten(2, 3) - exact).abs().max() < 1e-12 and (lse.flatten(1, 2) - exact_lse).abs().max() < 1e-12
    dout = torch.randn_like(out)
    mine = torch.autograd.grad(out, [q, k, v], dout)
    for gradient, want in zip(mine, torch.autograd.grad(exact, [q, k, v], dout.flatten(2, 3))):
        assert (gradient - want).abs().max() < 1e-11


def test_expanded_keys_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    real = faops.attention
    monkeypatch.setattr(
        faops, "attention", lambda q, k, v, **o: (seen.append((k.shape[2], v.shape[2])), real(q, k, v, **o))[1]
    )
    q, k = torch.randn(1, 5, 4, 8), torch.randn(1, 9, 1, 8).expand(1, 9, 4, 8)
    out = xops.memory_efficient_attention(q, k, k)
    close(out, xops.memory_efficient_attention(q, k.contiguous(), k.contiguous()))
    xops.memory_efficient_attention(q, k, k.contiguous())
    grouped = k.reshape(1, 9, 2, 2, 8)[:, :, :, :1].expand(1, 9, 2, 2, 8)
    xops.memory_efficient_attention(q.view(1, 5, 2, 2, 8), grouped, grouped)
    assert seen == [(1, 1), (4, 4), (4, 4), (2, 2)]


def test_output_dtype_dropout_and_what_means_nothing() -> None:
    q, k, v = (tensor.half() for tensor in tensors(40, 50))
    out = xops.memory_efficient_attention(q, k, v, op=object(), output_dtype=torch.float32)
    assert out.dtype == torch.float32
    assert fmha.memory_efficient_attention_forward(q.requires_grad_(), k, v).grad_fn is None
    ones = torch.ones_like(v)
    dropped = [xops.memory_efficient_attention(q, k, ones, p=0.4) for _ in range(2)]
    assert not torch.equal(*dropped) and dropped[0].mean().item() == pytest.approx(1.0, abs=0.1)
    lengths_bias = biases.BlockDiagonalPaddedKeysMask.from_seqlens([20, 20], 25, [25, 20])
    assert xops.memory_efficient_attention(q.detach(), k, ones, lengths_bias, p=0.4).std() > 0.01


@pytest.mark.parametrize("stacked", [True, False])
def test_attentions_over_parts_merge_into_the_whole(stacked: bool) -> None:
    q, k, v = tensors(5, 12, batch=2)
    q, k, v = q.float(), k.float(), v.float()
    parts = [slice(0, 3), slice(3, 12)]
    mask = torch.zeros(2, 2, 5, 12)
    mask[:, :, 1, :3] = -torch.inf  # a row that sees nothing of the first part
    mask[:, :, 2] = -torch.inf  # and one that sees nothing at all
    pieces = [fmha.memory_efficient_attention_partial(q, k[:, at], v[:, at], mask[..., at]) for at in parts]
    outs, lses = ([piece[index] for piece in pieces] for index in (0, 1))
    out, lse = fmha.merge_attentions(*((torch.stack(outs), torch.stack(lses)) if stacked else (outs, lses)))
    exact, exact_lse = unfused(q, k, v, mask)
    assert lse is not None and (out - exact).abs().max() < 1e-5
    torch.testing.assert_close(lse.double(), exact_lse, atol=1e-5, rtol=0)
    assert fmha.merge_attentions(outs, lses, write_lse=False)[1] is None
    half = fmha.memory_efficient_attention_partial(q.half(), k.half(), v.half())
    assert half[0].dtype == half[1].dtype == torch.float32
