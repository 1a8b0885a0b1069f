"""The oracle against attention written out in Python loops, and against PyTorch where their meanings coincide."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from faops import reference
from faops.philox import keep_tile
from faops.rotary import apply_rotary


def by_hand(q, k, v, *, visible, scale, softcap=0.0, slopes=None, bias=None, sinks=None, factor=None):  # type: ignore[no-untyped-def]
    """One head in plain Python: q (M, D), k (N, D), v (N, Dv), ``visible(i, j)``; returns (out, lse) as lists."""
    M, N = len(q), len(k)
    outs, lses = [], []
    for i in range(M):
        scores = {}
        for j in range(N):
            if not visible(i, j):
                continue
            s = scale * sum(a * b for a, b in zip(q[i], k[j]))
            if softcap:
                s = softcap * math.tanh(s / softcap)
            if slopes is not None:
                s -= slopes * abs(i + N - M - j)
            if bias is not None:
                s += bias[i][j]
            scores[j] = s
        total = sum(math.exp(s) for s in scores.values())
        if scores and sinks is not None:
            total += math.exp(sinks)
        row = [0.0] * len(v[0])
        for j, s in scores.items():
            weight = math.exp(s) / total * (1.0 if factor is None else factor[i][j])
            row = [x + weight * y for x, y in zip(row, v[j])]
        outs.append(row)
        lses.append(math.log(total) if scores else -math.inf)
    return outs, lses


@pytest.mark.parametrize(
    ("causal", "window", "limits"),
    [
        (False, (-1, -1), (None, None)),
        (True, (-1, -1), (None, 0)),
        (True, (2, 5), (2, 0)),
        (False, (1, 2), (1, 2)),
        (False, (-1, 1), (None, 1)),
        (False, (2, -1), (2, None)),
        (False, (0, 0), (0, 0)),
    ],
)
@pytest.mark.parametrize(("M", "N"), [(5, 7), (7, 5), (6, 6), (1, 4), (4, 1)])
def test_every_feature_at_once_matches_loops(causal, window, limits, M, N) -> None:  # type: ignore[no-untyped-def]
    B, H, Hk, D, Dv, p = 2, 4, 2, 3, 5, 0.4
    q, k, v = torch.randn(B, M, H, D), torch.randn(B, N, Hk, D), torch.randn(B, N, Hk, Dv)
    slopes, sinks, bias = torch.rand(B, H), torch.randn(H), torch.randn(B, 1, M, N)
    mask = torch.rand(B, H, 1, N) < 0.8
    rng = torch.randint(-(2**63), 2**63 - 1, (2,))
    keep = keep_tile(rng, (0, M), (0, N), torch.arange(B * H).view(B, H), p).double() / (1 - p)
    out, lse = reference.attention(
        q, k, v, causal=causal, window=window, scale=0.7, softcap=1.5, alibi_slopes=slopes, bias=bias, mask=mask,
        sinks=sinks, dropout_p=p, rng=rng,
    )  # fmt: skip
    left, right = limits
    for b in range(B):
        for h in range(H):

            def visible(i, j, b=b, h=h):  # type: ignore[no-untyped-def]
                diagonal = i + N - M
                inside = (left is None or j >= diagonal - left) and (right is None or j <= diagonal + right)
                return inside and bool(mask[b, h, 0, j])

            g = h // (H // Hk)
            expected_out, expected_lse = by_hand(
                q[b, :, h].tolist(), k[b, :, g].tolist(), v[b, :, g].tolist(), visible=visible, scale=0.7, softcap=1.5,
                slopes=float(slopes[b, h]), bias=bias[b, 0].tolist(), sinks=float(sinks[h]), factor=keep[b, h].tolist(),
            )  # fmt: skip
            torch.testing.assert_close(
                out[b, :, h], torch.tensor(expected_out, dtype=torch.float64), rtol=1e-12, atol=1e-12
            )
            torch.testing.assert_close(
                lse[b, h], torch.tensor(expected_lse, dtype=torch.float64), rtol=1e-12, atol=1e-12
            )


def test_agrees_with_pytorch() -> None:
    q, k, v = torch.randn(2, 9, 4, 8).double(), torch.randn(2, 9, 2, 8).double(), torch.randn(2, 9, 2, 8).double()
    expected = F.scaled_dot_product_attention(
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=True, enable_gqa=True
    )
    torch.testing.assert_close(reference.attention(q, k, v, causal=True)[0], expected.transpose(1, 2))
    transposed, _ = reference.attention(
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), causal=True, layout="bhsd"
    )
    torch.testing.assert_close(transposed, expected)


def test_gradients_pass_gradcheck() -> None:
    q, k, v = (torch.randn(1, n, 2, 3).double().requires_grad_() for n in (5, 4, 4))
    bias, sinks = torch.randn(1, 1, 5, 4).double().requires_grad_(), torch.randn(2).double().requires_grad_()

    def call(*inputs):  # type: ignore[no-untyped-def]
        q, k, v, bias, sinks = inputs
        out, lse = reference.attention(q, k, v, causal=True, softcap=2.0, bias=bias, sinks=sinks)
        return out, lse[..., 1:]  # row 0 is dead: its lse is infinite

    assert torch.autograd.gradcheck(call, (q, k, v, bias, sinks))


@pytest.mark.parametrize("with_sinks", [False, True])
def test_dead_rows_give_zero_and_no_gradient(with_sinks: bool) -> None:
    q, k, v = (torch.randn(2, n, 2, 4).requires_grad_() for n in (6, 3, 3))
    sinks = torch.randn(2).requires_grad_()
    out, lse = reference.attention(q, k, v, causal=True, sinks=sinks if with_sinks else None)
    assert torch.equal(out[:, :3], torch.zeros_like(out[:, :3]))
    assert torch.equal(lse[..., :3], torch.full_like(lse[..., :3], -math.inf))
    assert lse[..., 3:].isfinite().all()
    leaves = [q, k, v, sinks] if with_sinks else [q, k, v]
    found = torch.autograd.grad((out, lse), leaves, (torch.randn_like(out), torch.randn_like(lse)))
    assert all(gradient.isfinite().all() for gradient in found)
    assert torch.equal(found[0][:, :3], torch.zeros_like(q[:, :3]))
    assert (found[0][:, 3:] != 0).any()


def test_only_dead_rows_leave_the_sink_without_gradient() -> None:
    q, k, v = (torch.randn(1, 3, 2, 4) for _ in range(3))
    sinks = torch.randn(2).requires_grad_()
    out, lse = reference.attention(q, k, v, sinks=sinks, mask=torch.zeros(1, 1, 1, 3, dtype=torch.bool))
    (found,) = torch.autograd.grad((out, lse), [sinks], (torch.randn_like(out), torch.randn_like(lse)))
    assert torch.equal(found, torch.zeros(2))


def test_infinite_bias_hides_like_a_mask() -> None:
    q, k, v = (torch.randn(1, 4, 2, 4).requires_grad_() for _ in range(3))
    mask = torch.rand(1, 1, 4, 4) < 0.5
    mask[..., 2, :] = False
    hidden = torch.zeros(1, 1, 4, 4).masked_fill(~mask, -math.inf)
    for by_mask, by_bias in zip(reference.attention(q, k, v, mask=mask), reference.attention(q, k, v, bias=hidden)):
        assert torch.equal(by_mask, by_bias)


@pytest.mark.parametrize(("batch", "M", "N"), [(0, 3, 4), (2, 0, 4), (2, 3, 0), (2, 0, 0)])
def test_empty_sizes(batch: int, M: int, N: int) -> None:
    out, lse = reference.attention(
        torch.randn(batch, M, 2, 4), torch.randn(batch, N, 1, 4), torch.randn(batch, N, 1, 6), causal=True
    )
    assert out.shape == (batch, M, 2, 6)
    assert lse.shape == (batch, 2, M)
    assert (out == 0).all()
    assert (lse == -math.inf).all()


def test_varlen_is_each_sequence_alone() -> None:
    q, k, v = torch.randn(9, 4, 3), torch.randn(11, 2, 3), torch.randn(11, 2, 3)
    cu_q, cu_k = torch.tensor([0, 4, 4, 9]), torch.tensor([0, 3, 8, 11])
    slopes = torch.rand(3, 4)
    bias = torch.randn(3, 1, 5, 5)
    out, lse = reference.attention_varlen(q, k, v, cu_q, cu_k, causal=True, alibi_slopes=slopes, bias=bias)
    assert out.shape == (9, 4, 3)
    assert lse.shape == (4, 9)
    last, last_lse = reference.attention(
        q[None, 4:9], k[None, 8:11], v[None, 8:11], causal=True, alibi_slopes=slopes[2:], bias=bias[2:, :, :5, :3]
    )
    assert torch.equal(out[4:9], last[0])
    assert torch.equal(lse[:, 4:9], last_lse[0])


@pytest.mark.parametrize("interleaved", [False, True])
def test_rotary_turns_pairs_by_their_angle(interleaved: bool) -> None:
    """Each pair, seen as a complex number, is multiplied by exp(i · angle)."""
    x, angles = torch.randn(2, 3, 2, 10).double(), torch.rand(7, 3).double() * 6
    positions = torch.tensor([[0, 1, 6], [5, 5, 2]])
    turned = apply_rotary(x, angles.cos(), angles.sin(), positions, interleaved)
    assert torch.equal(turned[..., 6:], x[..., 6:])
    for pair in range(3):
        a, b = (2 * pair, 2 * pair + 1) if interleaved else (pair, pair + 3)
        before = torch.complex(x[..., a], x[..., b])
        after = before * torch.polar(torch.ones(2, 3).double(), angles[positions][..., pair])[..., None]
        torch.testing.assert_close(torch.complex(turned[..., a], turned[..., b]), after)


def test_rotary_products_depend_on_distance_only() -> None:
    q, k = torch.randn(1, 1, 1, 8).double(), torch.randn(1, 1, 1, 8).double()
    angles = torch.arange(50)[:, None].double() * torch.tensor([1.0, 0.3, 0.1, 0.01]).double()

    def product(i: int, j: int) -> float:
        turned = [apply_rotary(x, angles.cos(), angles.sin(), torch.tensor([[at]]), True) for x, at in ((q, i), (k, j))]
        return float((turned[0] * turned[1]).sum())

    assert product(7, 3) == pytest.approx(product(40, 36), abs=1e-12)
    assert product(7, 3) != pytest.approx(product(7, 4), abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rotary_rounds_once(dtype: torch.dtype) -> None:
    x, angles = torch.randn(1, 4, 2, 8).to(dtype), torch.rand(4, 4)
    positions = torch.arange(4)[None]
    turned = apply_rotary(x, angles.cos(), angles.sin(), positions, False)
    assert turned.dtype == dtype
    assert torch.equal(turned, apply_rotary(x.float(), angles.cos(), angles.sin(), positions, False).to(dtype))


def test_kvcache_appends_and_sees_keys_from_leftpad() -> None:
    B, capacity, new, M = 2, 9, 2, 2
    q = torch.randn(B, M, 4, 6)
    k_cache, v_cache = torch.randn(3, capacity, 2, 6), torch.randn(3, capacity, 2, 6)
    k, v = torch.randn(B, new, 2, 6), torch.randn(B, new, 2, 6)
    seqlens, leftpad, entry = torch.tensor([4, 6]), torch.tensor([1, 3]), torch.tensor([2, 0])
    slopes = torch.rand(4)
    out, lse, k_after, v_after = reference.attention_with_kvcache(
        q, k_cache, v_cache, k, v, cache_seqlens=seqlens, cache_leftpad=leftpad, cache_batch_idx=entry, causal=True,
        alibi_slopes=slopes,
    )  # fmt: skip
    for b, (past, first, row) in enumerate(zip((4, 6), (1, 3), (2, 0))):
        keys = torch.cat([k_cache[row, first:past], k[b]])[None]
        values = torch.cat([v_cache[row, first:past], v[b]])[None]
        expected, expected_lse = reference.attention(q[b : b + 1], keys, values, causal=True, alibi_slopes=slopes)
        assert torch.equal(out[b], expected[0])
        assert torch.equal(lse[b], expected_lse[0])
        assert torch.equal(k_after[row, past : past + new], k[b])
        assert torch.equal(v_after[row, past : past + new], v[b])
        assert torch.equal(k_after[row, :past], k_cache[row, :past])
        assert torch.equal(k_after[row, past + new :], k_cache[row, past + new :])
    assert torch.equal(k_after[1], k_cache[1])


@pytest.mark.parametrize("page", [1, 3, 4])
def test_paged_cache_is_the_dense_one_shuffled(page: int) -> None:
    B, M, new = 2, 3, 3
    pages = 4
    capacity = page * pages
    seqlens = torch.tensor([0, capacity - new])
    table = torch.randperm(B * pages + 2)[: B * pages].view(B, pages).int()
    k_pages, v_pages = torch.randn(B * pages + 2, page, 1, 4), torch.randn(B * pages + 2, page, 1, 4)
    k, v, q = torch.randn(B, new, 1, 4), torch.randn(B, new, 1, 4), torch.randn(B, M, 2, 4)
    angles = torch.rand(capacity, 2) * 6
    options = {"cache_seqlens": seqlens, "rotary_cos": angles.cos(), "rotary_sin": angles.sin(), "causal": True}

    def dense(paged: torch.Tensor) -> torch.Tensor:
        return paged[table.long()].flatten(1, 2)

    out, lse, k_after, v_after = reference.attention_with_kvcache(
        q, k_pages, v_pages, k, v, block_table=table, **options
    )
    expected = reference.attention_with_kvcache(q, dense(k_pages), dense(v_pages), k, v, **options)
    assert all(torch.equal(*pair) for pair in zip((out, lse, dense(k_after), dense(v_after)), expected))
    turned = apply_rotary(k, angles.cos(), angles.sin(), seqlens[:, None] + torch.arange(new), True)
    assert torch.equal(dense(k_after)[1, -new:], turned[1])


def test_query_positions_of_rotary() -> None:
    """Rows of a full call all turn by the angle of cache_seqlens; rows of a causal or windowed one advance."""
    q, caches = torch.randn(1, 3, 1, 4), (torch.randn(1, 8, 1, 4), torch.randn(1, 8, 1, 4))
    k, v = torch.randn(1, 3, 1, 4), torch.randn(1, 3, 1, 4)
    angles = torch.rand(8, 2) * 6
    rotary = {"rotary_cos": angles.cos(), "rotary_sin": angles.sin()}

    def turned(positions: list[int]) -> torch.Tensor:
        return apply_rotary(q, angles.cos(), angles.sin(), torch.tensor([positions]), True)

    for options, positions in (({}, [5, 5, 5]), ({"causal": True}, [5, 6, 7]), ({"window": (3, -1)}, [5, 6, 7])):
        out, _, k_after, v_after = reference.attention_with_kvcache(
            q, *caches, k, v, cache_seqlens=5, **rotary, **options
        )
        expected, _ = reference.attention(turned(positions), k_after, v_after, **options)
        assert torch.equal(out, expected), options


def test_unfused_computes_in_the_dtype_of_q() -> None:
    q, k, v = (torch.randn(1, 33, 2, 16).to(torch.bfloat16) for _ in range(3))
    out, _ = reference.unfused(q, k, v, causal=True)
    exact, _ = reference.attention(q, k, v, causal=True)
    assert out.dtype == torch.bfloat16
    assert exact.dtype == torch.float64
    error = float((out.double() - exact).abs().max())
    assert 0 < error < 0.1
