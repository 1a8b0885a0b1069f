"""The contract double's operators on caches, rotary embeddings and partial results, against plain PyTorch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from faops import rotary
from tests.npu import double
from tests.npu.double_calls import close, expected, lse_of, random_qkv


@pytest.fixture
def installed() -> Iterator[double.Handle]:
    with double.install() as handle:
        yield handle


# --- caches ----------------------------------------------------------------------------------------------------------


def caches(blocks: int = 3, size: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(blocks, size, 2, 8).half(), torch.randn(blocks, size, 2, 6).half()


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("mode", ["Norm", None])
def test_scatter_into_pages(installed: double.Handle, mode: str | None, dtype: torch.dtype) -> None:
    key_cache, value_cache = caches()
    key, value = torch.randn(5, 2, 8).half(), torch.randn(5, 2, 6).half()
    slots = torch.randperm(12)[:5].to(dtype)
    before = key_cache.clone(), value_cache.clone()
    assert torch.ops.npu.npu_scatter_pa_kv_cache(key, value, key_cache, value_cache, slots, cache_mode=mode) is None
    for cache, old, new in ((key_cache, before[0], key), (value_cache, before[1], value)):
        for slot in range(12):
            token = (slots == slot).nonzero()
            right = new[int(token)] if token.numel() else old[slot // 4, slot % 4]
            assert torch.equal(cache[slot // 4, slot % 4], right)


def test_scatter_into_pages_refuses(installed: double.Handle) -> None:
    scatter = torch.ops.npu.npu_scatter_pa_kv_cache
    key_cache, value_cache = caches()
    key, value, slots = torch.randn(2, 2, 8).half(), torch.randn(2, 2, 6).half(), torch.tensor([1, 2])
    with pytest.raises(RuntimeError, match="PA_NZ"):
        scatter(key, value, key_cache, value_cache, slots)
    for change, words in (
        ({"slot_mapping": torch.tensor([1, 1])}, "twice"),
        ({"slot_mapping": torch.tensor([1, 12])}, "leaves 0 to 11"),
        ({"slot_mapping": torch.tensor([1, -1])}, "leaves 0 to 11"),
        ({"slot_mapping": torch.tensor([1, 2, 3])}, "slot_mapping is"),
        ({"key": key.transpose(0, 1)}, "not contiguous"),
        ({"key_cache": key_cache.transpose(1, 2)}, "not contiguous"),
        ({"key": key.float()}, "dtype"),
        ({"key": torch.randn(2, 3, 8).half()}, "do not fit"),
    ):
        given = {"key": key, "value": value, "key_cache": key_cache, "value_cache": value_cache,
                 "slot_mapping": slots, **change}  # fmt: skip
        with pytest.raises(RuntimeError, match=words):
            scatter(**given, cache_mode="Norm")


def test_versions_without_a_cache_mode_know_the_other_format_alone() -> None:
    with double.install("2.6.0"):
        tokens = torch.randn(1, 2, 8).half(), torch.randn(1, 2, 6).half()
        with pytest.raises(RuntimeError, match="PA_NZ"):
            torch.ops.npu.npu_scatter_pa_kv_cache(*tokens, *caches(), torch.tensor([1]))
        with pytest.raises(RuntimeError, match="cache_mode"):  # from the schema
            torch.ops.npu.npu_scatter_pa_kv_cache(*tokens, *caches(), torch.tensor([1]), cache_mode="Norm")


@pytest.mark.parametrize("cumulative", [False, True])
def test_gather_from_pages(installed: double.Handle, cumulative: bool) -> None:
    key_cache, value_cache = caches(5)
    table = torch.tensor([[4, 0, 1], [2, 3, 0]], dtype=torch.int32)
    key, value = torch.empty(8, 2, 8).half(), torch.empty(8, 2, 6).half()
    lengths = torch.tensor([0, 5, 8] if cumulative else [5, 3], dtype=torch.int32)
    offset = torch.tensor([4, 0], dtype=torch.int32)
    torch.ops.npu.npu_gather_pa_kv_cache(key_cache, value_cache, table, lengths, key, value, seq_offset=offset,
                                         is_seq_lens_cumsum=cumulative)  # fmt: skip
    for cache, found in ((key_cache, key), (value_cache, value)):
        assert torch.equal(found[:5], cache[[0, 1]].flatten(0, 1)[:5])
        assert torch.equal(found[5:], cache[[2]].flatten(0, 1)[:3])
    with pytest.raises(RuntimeError, match="multiple of the block size"):
        torch.ops.npu.npu_gather_pa_kv_cache(key_cache, value_cache, table, lengths, key, value,
                                             seq_offset=offset + 1, is_seq_lens_cumsum=cumulative)  # fmt: skip


def test_scatter_by_indices(installed: double.Handle) -> None:
    target = torch.randn(4, 5, 6).half().transpose(0, 1)  # (5, 4, 6), of any strides
    right = target.clone()
    indices = torch.tensor([[0, 3], [4, 1]])
    updates = torch.randn(2, 6).half()
    right[0, 3], right[4, 1] = updates
    assert torch.ops.npu.npu_scatter_nd_update_(target, indices, updates) is target
    assert torch.equal(target, right)
    for change, words in (
        ({"indices": indices[0]}, "indices are"),
        ({"indices": indices + 1}, "leave the shape"),
        ({"updates": updates[:1]}, "updates have the shape"),
        ({"updates": updates.float()}, "dtypes"),
    ):
        with pytest.raises(RuntimeError, match=words):
            torch.ops.npu.npu_scatter_nd_update_(**{"input": target, "indices": indices, "updates": updates, **change})


# --- rotary ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("interleaved", [False, True])
def test_rotary_multiplication(installed: double.Handle, interleaved: bool, dtype: torch.dtype) -> None:
    x = torch.randn(7, 3, 16).to(dtype)
    angles = torch.rand(7, 8) * 6
    cos, sin = angles.cos(), angles.sin()
    wide = [t.repeat_interleave(2, -1) if interleaved else torch.cat([t, t], -1) for t in (cos, sin)]
    out = torch.ops.npu.npu_rotary_mul(
        x, *(t[:, None].to(dtype) for t in wide), "interleave" if interleaved else "half"
    )
    right = rotary.apply_rotary(x[None].double(), cos.to(dtype).double(), sin.to(dtype).double(),
                                torch.arange(7)[None], interleaved)[0]  # fmt: skip
    assert out.dtype == dtype and close(out, right)


def test_cosines_are_rounded_to_the_dtype_of_the_input(installed: double.Handle) -> None:
    x = torch.randn(7, 3, 16).bfloat16()
    cos = torch.rand(7, 1, 16)
    rotate = torch.ops.npu.npu_rotary_mul
    assert torch.equal(rotate(x, cos, cos), rotate(x, cos.bfloat16(), cos.bfloat16()))


def test_rotary_multiplication_has_gradients(installed: double.Handle) -> None:
    leaves = [t.requires_grad_() for t in (torch.randn(2, 5, 3, 8), torch.rand(1, 5, 1, 8), torch.rand(1, 5, 1, 8))]
    x, cos, sin = exact = [t.detach().double().requires_grad_() for t in leaves]
    turned = torch.cat([-x[..., 4:], x[..., :4]], -1)
    right = torch.autograd.grad((x * cos + turned * sin).square().sum(), exact)
    found = torch.autograd.grad(torch.ops.npu.npu_rotary_mul(*leaves).square().sum(), leaves)
    assert all(close(a, b) for a, b in zip(found, right))


@pytest.mark.parametrize(
    ("shape", "factors", "mode", "ok"),
    [
        ((2, 5, 3, 8), (1, 5, 1, 8), "half", True),
        ((2, 5, 3, 8), (2, 5, 1, 8), "half", True),
        ((2, 5, 3, 8), (2, 5, 1, 8), "interleave", False),
        ((2, 5, 3, 8), (1, 1, 1, 8), "half", False),
        ((5, 3, 8), (5, 1, 8), "interleave", True),
        ((5, 3, 8), (5, 3, 8), "interleave", False),
        ((5, 3, 8), (1, 3, 8), "half", False),
        ((5, 3, 7), (5, 1, 7), "half", False),
        ((5, 3, 8), (5, 1, 4), "half", False),
        ((0, 3, 8), (0, 1, 8), "half", False),
        ((5, 3, 8), (5, 1, 8), "quarter", False),
    ],
)
def test_rotary_shapes(
    installed: double.Handle, shape: tuple[int, ...], factors: tuple[int, ...], mode: str, ok: bool
) -> None:
    call = (torch.randn(shape), torch.rand(factors), torch.rand(factors), mode)
    if ok:
        torch.ops.npu.npu_rotary_mul(*call)
    else:
        with pytest.raises(RuntimeError):
            torch.ops.npu.npu_rotary_mul(*call)


def test_rotary_factors_are_at_most_1(installed: double.Handle) -> None:
    with pytest.raises(RuntimeError, match="from -1 to 1"):
        torch.ops.npu.npu_rotary_mul(torch.randn(5, 3, 8), torch.rand(5, 1, 8) + 1, torch.rand(5, 1, 8))


def test_rotary_in_place(installed: double.Handle) -> None:
    query, key = torch.randn(2, 5, 4, 64).half(), torch.randn(2, 5, 2, 64).half()
    cos, sin = torch.rand(2, 5, 1, 64).half(), torch.rand(2, 5, 1, 64).half()
    right = [torch.ops.npu.npu_rotary_mul(t.clone(), cos, sin) for t in (query, key)]
    outs = torch.ops.npu.npu_apply_rotary_pos_emb(query, key, cos, sin)
    assert outs[0] is query and torch.equal(query, right[0]) and torch.equal(key, right[1])
    with pytest.raises(RuntimeError, match="head dim 32"):
        torch.ops.npu.npu_apply_rotary_pos_emb(*(t[..., :32] for t in (query, key, cos, sin)))
    with pytest.raises(RuntimeError, match="rotary_mode"):
        torch.ops.npu.npu_apply_rotary_pos_emb(query, key, cos, sin, "BSND", "interleave")


# --- partial results -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [0, 1])
def test_update(installed: double.Handle, kind: int) -> None:
    q, k, v = random_qkv(batch=1)
    parts = [expected(q, k[:, part], v[:, part]) for part in (slice(0, 4), slice(4, 6), slice(6, 13))]
    lses = [lse[0].T.flatten().float() for _, lse in parts]
    outs = [out[0].flatten(0, 1).float() for out, _ in parts]
    out, lse = torch.ops.npu.npu_attention_update(lses, outs, kind)
    exact, right = expected(q, k, v)
    assert close(out, exact[0].flatten(0, 1))
    assert lse is None if kind == 0 else close(lse, right[0].T.flatten())


def test_update_follows_its_formula(installed: double.Handle) -> None:
    """A part without a visible key has no weight, but where no part has one the result is NaN."""
    lse = torch.tensor([0.5, -torch.inf])
    outs = [torch.ones(2, 8), torch.full((2, 8), 3.0)]
    out, merged = torch.ops.npu.npu_attention_update([lse, torch.full((2,), -torch.inf)], outs, 1)
    assert torch.equal(out[0], torch.ones(8)) and merged[0] == 0.5
    assert out[1].isnan().all() and merged[1].isnan()


def test_update_refuses(installed: double.Handle) -> None:
    lse, out = torch.randn(3), torch.randn(3, 8)
    update = torch.ops.npu.npu_attention_update
    for call, words in (
        (([lse] * 17, [out] * 17, 0), "1 to 16"),
        (([lse], [out, out], 0), "1 and 2 parts"),
        (([lse], [out], 2), "update_type 2"),
        (([lse.half()], [out], 0), "dtypes"),
        (([lse], [out[:, :4].contiguous()], 0), "head dim 4"),
        (([lse], [torch.randn(8, 3).T], 0), "not contiguous"),
        (([lse], [out[None]], 0), "shapes"),
    ):
        with pytest.raises(RuntimeError, match=words):
            update(*call)


def test_older_update_takes_float32_alone() -> None:
    lse, out = torch.randn(3), torch.randn(3, 8)
    with double.install(cann="8.3.RC1"):
        torch.ops.npu.npu_attention_update([lse], [out], 0)
        with pytest.raises(RuntimeError, match="dtypes"):
            torch.ops.npu.npu_attention_update([lse], [out.half()], 0)


@pytest.mark.parametrize("layout", ["SBH", "TND"])
def test_ring_update(installed: double.Handle, layout: str) -> None:
    q, k, v = random_qkv(dim=64, dim_v=64)
    first, second = (slice(0, 5), slice(5, 13))
    parts: list[Any] = []
    for part in (first, second):
        results = torch.ops.npu.npu_fusion_attention(q, k[:, part].contiguous(), v[:, part].contiguous(), 4, "BSND")
        out, most, total = results[:3]
        if layout == "SBH":
            parts += [out.flatten(2).transpose(0, 1).contiguous(), most, total]
        else:
            parts += [out.flatten(0, 1), *(t.transpose(1, 2).flatten(0, 1).contiguous() for t in (most, total))]
    options: dict[str, Any] = {}
    if layout == "TND":
        options = {"actual_seq_qlen": torch.tensor([9, 18]), "input_softmax_layout": "TND"}
    out, most, total = torch.ops.npu.npu_ring_attention_update(*parts, input_layout=layout, **options)
    exact, lse = expected(q, k, v, scale=1.0)
    assert close(out, exact.flatten(2).transpose(0, 1) if layout == "SBH" else exact.flatten(0, 1))
    merged = lse_of((out, most, total))
    assert close(merged, lse if layout == "SBH" else lse.transpose(1, 2).flatten(0, 1))
    if layout == "TND":
        with pytest.raises(RuntimeError, match="another layout"):
            torch.ops.npu.npu_ring_attention_update(
                *parts, input_layout="TND", actual_seq_qlen=options["actual_seq_qlen"]
            )
