"""The contract double's npu_fusion_attention is right where the documents define it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from faops import reference
from tests.npu import double
from tests.npu.double_calls import COMPRESSED, close, expected, laid_back, laid_out, lse_of, off, random_qkv
from tests.support import cumulative

SCALE = 16**-0.5
UNLIMITED = 2147483647


@pytest.fixture
def installed() -> Iterator[double.Handle]:
    with double.install() as handle:
        yield handle


def attend(q: Tensor, k: Tensor, v: Tensor, layout: str = "BSND", operator: str = "", **options: Any) -> Any:
    """The results for (B, S, N, D) tensors, out in that layout again."""
    call = getattr(torch.ops.npu, f"npu_fusion_attention{operator}")
    tensors = [laid_out(t, layout) for t in (q, k, v)]
    out, *rest = call(*tensors, q.shape[2], layout, **{"scale": SCALE, **options})
    return (laid_back(out, layout, q.shape[2]), *rest)


def offsets(rows: int, keys: int) -> tuple[Tensor, Tensor]:
    """Distance of each pair from the diagonal at the top left and from that at the bottom right."""
    across, down = torch.arange(keys)[None, :], torch.arange(rows)[:, None]
    return across - down, across - (down + keys - rows)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("layout", ["BSND", "BNSD", "BSH", "SBH"])
@pytest.mark.parametrize("operator", ["", "_v2", "_v3"])
def test_dense(installed: double.Handle, operator: str, layout: str, dtype: torch.dtype) -> None:
    q, k, v = random_qkv(dtype=dtype)
    results = attend(q, k, v, layout, operator)
    out, lse = expected(q, k, v)
    assert results[0].dtype == dtype and close(results[0], out)
    assert results[1].shape == results[2].shape == (2, 4, 9, 8)
    assert close(lse_of(results), lse)
    assert torch.equal(results[1], results[1][..., :1].expand(2, 4, 9, 8))
    assert results[3].shape == (0,)
    assert len(results) == (6 if operator == "_v3" else 7)
    if operator != "_v3":
        assert results[6] == 2 * 4 * 9 * 13
    assert installed.count(f"npu_fusion_attention{operator}") == 1


@pytest.mark.parametrize("keys", [7, 9, 13])
@pytest.mark.parametrize("mode", [2, 3])
def test_causal_modes(installed: double.Handle, mode: int, keys: int) -> None:
    q, k, v = random_qkv(keys=keys)
    hidden = offsets(9, keys)[mode - 2] > 0
    results = attend(q, k, v, atten_mask=COMPRESSED, sparse_mode=mode, pre_tockens=1, next_tockens=1)
    out, lse = expected(q, k, v, hidden)
    alive = lse.isfinite()
    assert close(results[0], out)  # of mode 3 with more rows than keys too: the operator sees that itself
    assert close(lse_of(results)[alive], lse[alive])


@pytest.mark.parametrize(("before", "after"), [(3, 2), (0, 0), (5, -2), (-1, 4), (UNLIMITED, 1)])
def test_band(installed: double.Handle, before: int, after: int) -> None:
    q, k, v = random_qkv()
    offset = offsets(9, 13)[1]
    hidden = (offset < -before) | (offset > after)
    results = attend(q, k, v, atten_mask=COMPRESSED, sparse_mode=4, pre_tockens=before, next_tockens=after,
                     inner_precise=2)  # fmt: skip
    assert close(results[0], expected(q, k, v, hidden)[0])


@pytest.mark.parametrize("shape", [(2, 4, 9, 13), (2, 1, 9, 13), (1, 1, 9, 13), (9, 13)])
@pytest.mark.parametrize("mode", [0, 1])
@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8])
def test_full_masks(installed: double.Handle, dtype: torch.dtype, mode: int, shape: tuple[int, ...]) -> None:
    q, k, v = random_qkv()
    hidden = torch.rand(shape) < 0.5
    hidden[..., 0] = False
    results = attend(q, k, v, atten_mask=hidden.to(dtype), sparse_mode=mode)
    assert close(results[0], expected(q, k, v, hidden)[0])


def test_default_mode_counts_from_the_top_left(installed: double.Handle) -> None:
    q, k, v = random_qkv()
    offset = offsets(9, 13)[0]
    hidden = (offset < -2) | (offset > 3)
    results = attend(q, k, v, atten_mask=hidden, pre_tockens=2, next_tockens=3)
    assert close(results[0], expected(q, k, v, hidden)[0])


@pytest.mark.parametrize("mode", [5, 6])
def test_prefix(installed: double.Handle, mode: int) -> None:
    q, k, v = random_qkv()
    prefix = [6, 11]
    causal = offsets(9, 13)[1] > 0
    hidden = torch.stack([causal & (torch.arange(13) >= length) for length in prefix])[:, None]
    rectangle = (torch.arange(2048) >= 1024).expand(1024, 2048)
    mask = hidden if mode == 5 else torch.cat([COMPRESSED, rectangle])
    results = attend(q, k, v, atten_mask=mask, sparse_mode=mode, prefix=prefix)
    assert close(results[0], expected(q, k, v, hidden)[0])


def test_sink_joins_the_denominator(installed: double.Handle) -> None:
    q, k, v = random_qkv()
    sink = torch.randn(4) + 1
    largest = attend(q, k, v)[1]
    results = attend(q, k, v, sink=sink)
    assert torch.equal(results[1], torch.maximum(largest, sink[:, None, None]))
    out, lse = expected(q, k, v, sinks=sink)
    assert close(results[0], out) and close(lse_of(results), lse)


@pytest.mark.parametrize("shape", [(2, 4, 9, 13), (2, 4, 1, 13), (1, 4, 9, 13)])
@pytest.mark.parametrize("kind", [0, 1])
def test_position_encoding(installed: double.Handle, kind: int, shape: tuple[int, ...]) -> None:
    q, k, v = random_qkv()
    pse = torch.randn(shape)
    results = attend(q, k, v, operator="_v2", pse=pse, pse_type=kind)
    out, _ = expected(q, k, v, bias=pse * (SCALE if kind == 1 else 1))
    assert close(results[0], out)


@pytest.mark.parametrize("shape", [(4,), (2, 4)])
@pytest.mark.parametrize("kind", [2, 3])
def test_slopes(installed: double.Handle, kind: int, shape: tuple[int, ...]) -> None:
    q, k, v = random_qkv(keys=9)
    slopes = torch.rand(shape)
    distance = offsets(9, 9)[0].abs().double()
    bias = -slopes.double()[..., None, None] * (distance if kind == 2 else distance.sqrt())
    results = attend(q, k, v, operator="_v2", pse=slopes, pse_type=kind)
    assert close(results[0], expected(q, k, v, bias=bias if bias.dim() == 4 else bias[None])[0])


def test_compressed_position_encoding(installed: double.Handle) -> None:
    length = 1026
    q, k, v = random_qkv(batch=1, rows=length, keys=length, heads=2, heads_kv=1)
    slopes = torch.tensor([0.01, 0.1])
    full = -slopes[:, None, None] * offsets(length, length)[0].abs()
    results = attend(q, k, v, operator="_v2", pse=full[None, :, -1024:].contiguous(), pse_type=0,
                     atten_mask=COMPRESSED, sparse_mode=2)  # fmt: skip
    assert close(results[0], expected(q, k, v, bias=full[None], causal=True)[0])


# --- packed sequences ------------------------------------------------------------------------------------------------


def packed(lengths_q: list[int], lengths_k: list[int]) -> tuple[Tensor, Tensor, Tensor, dict[str, Any]]:
    """(T, N, D) tensors, and the cumulative lengths as the operators want them."""
    q, _, _ = random_qkv(batch=1, rows=sum(lengths_q))
    _, k, v = random_qkv(batch=1, keys=sum(lengths_k))
    ends = {
        "actual_seq_qlen": cumulative(lengths_q)[1:].tolist(),
        "actual_seq_kvlen": cumulative(lengths_k)[1:].tolist(),
    }
    return q[0], k[0], v[0], ends


@pytest.mark.parametrize("mode", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("operator", ["", "_v2", "_v3"])
def test_packed(installed: double.Handle, operator: str, mode: int) -> None:
    lengths_q, lengths_k = [3, 0, 5, 2], [4, 6, 5, 9]
    q, k, v, ends = packed(lengths_q, lengths_k)
    call = getattr(torch.ops.npu, f"npu_fusion_attention{operator}")
    sides = {} if operator == "_v2" else {"pre_tockens": 2, "next_tockens": 1}
    if operator == "_v2":
        sides = {"pre_tokens": 2, "next_tokens": 1}
    mask = COMPRESSED
    if mode in (0, 1):
        offset = offsets(5, 9)[0]
        mask = (offset < -2) | (offset > 1)
    given = {name: torch.tensor(value) for name, value in ends.items()} if operator == "_v3" else ends
    out, most, total, *_ = call(q, k, v, 4, "TND", scale=SCALE, atten_mask=mask, sparse_mode=mode,
                                softmax_layout="TND", **sides, **given)  # fmt: skip
    start_q = start_k = 0
    for rows, keys in zip(lengths_q, lengths_k):
        top, bottom = offsets(rows, keys)
        hidden = [(top < -2) | (top > 1), (top < -2) | (top > 1), top > 0, bottom > 0, (bottom < -2) | (bottom > 1)]
        span, keys_span = slice(start_q, start_q + rows), slice(start_k, start_k + keys)
        start_q, start_k = start_q + rows, start_k + keys
        if rows:
            exact, lse = expected(q[span][None], k[keys_span][None], v[keys_span][None], hidden[mode])
            assert close(out[span], exact[0])
            assert close((most + total.log())[span][..., 3].T, lse[0])


def test_packed_outer_splits(installed: double.Handle) -> None:
    lengths_q, lengths_k = [3, 2], [3, 6]
    q, k, v, ends = packed(lengths_q, lengths_k)
    call = torch.ops.npu.npu_fusion_attention
    out = call(q, k, v, 4, "TND", scale=SCALE, atten_mask=COMPRESSED, sparse_mode=7, pre_tockens=6, next_tockens=-2,
               **ends)[0]  # fmt: skip
    for span, keys, hidden in (
        (slice(0, 3), slice(0, 3), offsets(3, 3)[1] > 0),
        (slice(3, 5), slice(3, 9), offsets(2, 6)[1] > -2),
    ):
        assert close(out[span], expected(q[span][None], k[keys][None], v[keys][None], hidden)[0][0])
    q, k, v, ends = packed([3, 5, 4], [4, 5, 4])
    out = call(q, k, v, 4, "TND", scale=SCALE, atten_mask=COMPRESSED, sparse_mode=8, pre_tockens=4, next_tockens=1,
               **ends)[0]  # fmt: skip
    for span, keys, hidden in (
        (slice(0, 3), slice(0, 4), offsets(3, 4)[1] > 1),
        (slice(3, 8), slice(4, 9), offsets(5, 5)[0] > 0),
        (slice(8, 12), slice(9, 13), offsets(4, 4)[0] > 0),
    ):
        assert close(out[span], expected(q[span][None], k[keys][None], v[keys][None], hidden)[0][0])


def test_packed_position_encoding_is_flat(installed: double.Handle) -> None:
    q, k, v, ends = packed([3, 5], [4, 5])
    parts = [torch.randn(4, 3, 4), torch.randn(4, 5, 5)]
    out = torch.ops.npu.npu_fusion_attention_v2(q, k, v, 4, "TND", scale=SCALE, pse_type=0,
                                                pse=torch.cat([p.flatten() for p in parts]), **ends)[0]  # fmt: skip
    for span, keys, part in ((slice(0, 3), slice(0, 4), parts[0]), (slice(3, 8), slice(4, 9), parts[1])):
        assert close(out[span], expected(q[span][None], k[keys][None], v[keys][None], bias=part[None])[0][0])


# --- gradients -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["BSND", "SBH", "TND"])
@pytest.mark.parametrize("operator", ["", "_v2", "_v3"])
def test_gradients(installed: double.Handle, operator: str, layout: str) -> None:
    """Of query, key, value and sink, against autograd of the oracle; through the operator's own autograd."""
    packed_layout = layout == "TND"
    dtype = torch.float16 if packed_layout else torch.float32  # packed sequences with a sink are of 16 bits only
    q, k, v = random_qkv(batch=1, rows=9, keys=9, dtype=dtype)
    pse, sink = torch.randn(1, 4, 9, 9).to(dtype), torch.randn(4)
    if packed_layout:
        pse = pse.flatten()
    leaves = [t.requires_grad_() for t in (q, k, v, pse, sink)]
    exact = [t.detach().double().requires_grad_() for t in leaves]
    call = getattr(torch.ops.npu, f"npu_fusion_attention{operator}")
    ends: dict[str, Any] = {}
    if packed_layout:
        both = torch.tensor([9]) if operator == "_v3" else [9]
        ends = {"actual_seq_qlen": both, "actual_seq_kvlen": both}
    out = call(*(laid_out(t, layout) for t in (q, k, v)), 4, layout, pse=pse, sink=sink, scale=SCALE,
               atten_mask=COMPRESSED, sparse_mode=3, **ends)[0]  # fmt: skip
    bias = exact[3].view(1, 4, 9, 9) * SCALE
    wanted, _ = reference.attention(*exact[:3], causal=True, bias=bias, sinks=exact[4])
    weights = torch.randn_like(wanted)
    actual = torch.autograd.grad(out, leaves, laid_out(weights, layout).to(out.dtype))
    for name, found, right in zip(("q", "k", "v", "pse", "sink"), actual, torch.autograd.grad(wanted, exact, weights)):
        if name == "pse":
            assert found.shape == pse.shape and found.isnan().all()  # its gradient is reserved and not written
        else:
            assert off(found, right) < (1e-2 if packed_layout else 1e-5), name


def test_gradient_of_any_forward(installed: double.Handle) -> None:
    """lse as the largest score with a sum of 1 gives the same gradients; a large stand-in gives zeros."""
    q, k, v = random_qkv()
    out, lse = expected(q, k, v)
    dy = torch.randn(out.shape)
    most = lse.float()[..., None].repeat(1, 1, 1, 8)
    grad = torch.ops.npu.npu_fusion_attention_grad
    options = {"scale_value": SCALE, "attention_in": out.float(), "softmax_sum": torch.ones_like(most)}
    found = grad(q, k, v, dy, 4, "BSND", softmax_max=most, **options)
    exact = [t.double().requires_grad_() for t in (q, k, v)]
    right = torch.autograd.grad(expected(*exact)[0], exact, dy.double())
    assert all(off(a, b) < 1e-5 for a, b in zip(found, right))
    assert found[3] is None and found[4].shape == (0,)
    nothing = grad(q, k, v, dy, 4, "BSND", softmax_max=torch.full_like(most, 1e30), **options)
    assert all(not t.any() for t in nothing[:3])


def test_dropout_is_the_same_in_backward(installed: double.Handle) -> None:
    q, k, v = (t.requires_grad_() for t in random_qkv(heads=2))
    out, _, _, _, seed, _, numels = attend(q, k, v, keep_prob=0.6)
    assert seed != 0 and numels == 2 * 2 * 9 * 13
    assert not torch.equal(attend(q, k, v, keep_prob=0.6)[0], out)  # drawn anew
    dv = torch.autograd.grad(out.sum(), v)[0]
    # out is linear in v: its gradient, times v, sums to out.
    assert off((dv * v).sum(), out.sum()) < 1e-4


def test_dropout_mask_of_the_caller(installed: double.Handle) -> None:
    q, k, v = random_qkv(heads=2)
    kept = torch.rand(2, 2, 9, 13) < 0.7
    bits = torch.zeros(-(-kept.numel() // 128) * 128, dtype=torch.uint8)
    bits[: kept.numel()] = kept.flatten()
    packed_bits = (bits.view(-1, 8) << torch.arange(8, dtype=torch.uint8)).sum(-1, dtype=torch.uint8)
    out = attend(q, k, v, keep_prob=0.7, dropout_mask=packed_bits)[0]
    probabilities = torch.softmax(torch.einsum("bihd,bjhd->bhij", q, k).double() * SCALE, -1) * kept / 0.7
    assert close(out, torch.einsum("bhij,bjhd->bihd", probabilities, v.double()))
