"""The names of flash-attn 3: their signatures, and what they compute, against an oracle that goes key by key."""

from __future__ import annotations

import inspect
import itertools
import random
from typing import Any

import pytest
import torch
from torch import Tensor

import faops
from faops.adapters.flash_attn import hopper
from tests.adapters.flash_attn.hopper_oracle import Rules, attend
from tests.support import assert_accurate, cumulative

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# Names in order, with the default behind "=" where there is one: the interface of flash-attn 3.
SIGNATURES = {
    "flash_attn_func": "q k v softmax_scale=None causal=False qv=None q_descale=None k_descale=None v_descale=None "
    "window_size=(-1,-1) attention_chunk=0 softcap=0.0 num_splits=1 pack_gqa=None deterministic=False sm_margin=0 "
    "return_attn_probs=False",
    "flash_attn_qkvpacked_func": "qkv softmax_scale=None causal=False q_descale=None k_descale=None v_descale=None "
    "window_size=(-1,-1) attention_chunk=0 softcap=0.0 deterministic=False num_heads_q=None sm_margin=0 "
    "return_attn_probs=False",
    "flash_attn_varlen_func": "q k v cu_seqlens_q cu_seqlens_k max_seqlen_q max_seqlen_k seqused_q=None seqused_k=None "
    "softmax_scale=None causal=False qv=None q_descale=None k_descale=None v_descale=None window_size=(-1,-1) "
    "attention_chunk=0 softcap=0.0 num_splits=1 pack_gqa=None deterministic=False sm_margin=0 return_attn_probs=False",
    "flash_attn_with_kvcache": "q k_cache v_cache k=None v=None qv=None rotary_cos=None rotary_sin=None "
    "cache_seqlens=None cache_batch_idx=None cache_leftpad=None page_table=None cu_seqlens_q=None "
    "cu_seqlens_k_new=None max_seqlen_q=None rotary_seqlens=None q_descale=None k_descale=None v_descale=None "
    "softmax_scale=None causal=False window_size=(-1,-1) attention_chunk=0 softcap=0.0 rotary_interleaved=True "
    "scheduler_metadata=None num_splits=0 pack_gqa=None sm_margin=0 return_softmax_lse=False",
    "flash_attn_combine": "out_partial lse_partial out=None out_dtype=None",
    "get_scheduler_metadata": "batch_size max_seqlen_q max_seqlen_k num_heads_q num_heads_kv headdim cache_seqlens "
    "qkv_dtype=torch.bfloat16 headdim_v=None cu_seqlens_q=None cu_seqlens_k_new=None cache_leftpad=None page_size=None "
    "max_seqlen_k_new=0 causal=False window_size=(-1,-1) attention_chunk=0 has_softcap=False num_splits=0 "
    "pack_gqa=None sm_margin=0",
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_signature(name: str) -> None:
    def shown(parameter: inspect.Parameter) -> str:
        default = parameter.default
        return parameter.name + ("" if default is parameter.empty else f"={default}".replace(" ", ""))

    found = inspect.signature(getattr(hopper, name)).parameters.values()
    assert " ".join(map(shown, found)) == SIGNATURES[name]
    assert all(parameter.kind is parameter.POSITIONAL_OR_KEYWORD for parameter in found)
    assert name in hopper.__all__


def random_rules(scale: float, keys: int) -> tuple[Rules, dict[str, Any]]:
    """Rules, and the keyword arguments that ask for them."""
    causal, softcap = random.random() < 0.5, random.choice((0.0, 1.5))
    window = random.choice(((-1, -1), (random.randint(0, keys), -1), (random.randint(0, 4), random.randint(0, 4))))
    chunk = random.choice((0, 1, random.randint(2, keys + 3)))
    options = {"causal": causal, "window_size": window, "attention_chunk": chunk, "softcap": softcap}
    return Rules(scale, causal, window, chunk, softcap), options


def random_qkv(rows: tuple[int, ...], keys: tuple[int, ...], has_qv: bool) -> dict[str, Tensor]:
    """Leaves q, k, v and, if asked for, qv, with these leading axes."""
    dtype, heads_kv, group, dim, dim_v = random.choice(DTYPES), random.randint(1, 2), random.randint(1, 3), 8, 24
    made = {
        "q": torch.randn(*rows, heads_kv * group, dim),
        "k": torch.randn(*keys, heads_kv, dim),
        "v": torch.randn(*keys, heads_kv, dim_v),
    }
    if has_qv:
        made["qv"] = torch.randn(*rows, heads_kv * group, dim_v)
    return {name: tensor.to(dtype).requires_grad_() for name, tensor in made.items()}


def default_scale(tensors: dict[str, Tensor]) -> float:
    dims: int = tensors["q"].shape[-1] + (tensors["qv"].shape[-1] if "qv" in tensors else 0)
    return float(dims**-0.5)


def by_oracle(tensors: dict[str, Tensor], rules: Rules, dtype: torch.dtype) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Leaves in ``dtype``, and the (out, lse) that they give; dense tensors, a batch of sequences."""
    leaves = {name: tensor.detach().to(dtype).requires_grad_() for name, tensor in tensors.items()}
    sequences = zip(*(leaves[name] for name in ("q", "k", "v")), leaves.get("qv", itertools.repeat(None)))
    found = [attend(*sequence, rules, dtype) for sequence in sequences]  # type: ignore[arg-type]
    return leaves, torch.stack([out for out, _ in found]), torch.stack([lse for _, lse in found])


@pytest.mark.parametrize("has_qv", [False, True])
@pytest.mark.parametrize("attempt", range(8))
def test_dense(has_qv: bool, attempt: int) -> None:
    rows, keys = random.randint(1, 20), random.randint(1, 20)
    tensors = random_qkv((2, rows), (2, keys), has_qv)
    rules, options = random_rules(default_scale(tensors), keys)
    out, lse = hopper.flash_attn_func(**tensors, **options, return_attn_probs=True)
    exact, plain = by_oracle(tensors, rules, torch.float64), by_oracle(tensors, rules, out.dtype)
    context = f"{rules} rows={rows} keys={keys} {out.dtype}"
    assert lse.dtype == torch.float32
    assert_accurate("out", out, exact[1], plain[1], context)
    assert_accurate("lse", lse, exact[2], plain[2], context)
    dout = torch.randn_like(out)
    found, expected, unfused = (
        torch.autograd.grad(result, list(leaves.values()), dout.to(result.dtype))
        for leaves, result in ((tensors, out), exact[:2], plain[:2])
    )
    for name, *gradients in zip(tensors, found, expected, unfused):
        assert_accurate(f"d{name}", *gradients, context)


def test_dense_returns_out_alone() -> None:
    tensors = random_qkv((2, 5), (2, 7), False)
    out = hopper.flash_attn_func(**tensors, softmax_scale=0.3, causal=True, deterministic=True)
    q, k, v = tensors.values()
    assert torch.equal(out, faops.attention(q, k, v, scale=0.3, causal=True))


def test_strided_last_axis() -> None:
    q, k, v = (torch.randn(2, 4, 16, 6).transpose(2, 3) for _ in range(3))
    out = hopper.flash_attn_func(q, k, v)
    assert torch.equal(out, faops.attention(q.contiguous(), k.contiguous(), v.contiguous()))


def test_window_as_tensor() -> None:
    tensors = random_qkv((2, 9), (2, 9), False)
    out = hopper.flash_attn_func(**tensors, window_size=torch.tensor([2, 1]))
    assert torch.equal(out, hopper.flash_attn_func(**tensors, window_size=(2, 1)))
    assert not torch.equal(out, hopper.flash_attn_func(**tensors, window_size=(-7, 1)))


@pytest.mark.parametrize("grouped", [False, True])
def test_qkvpacked(grouped: bool) -> None:
    heads, heads_kv = (4, 2) if grouped else (3, 3)
    qkv = torch.randn(2, 9, heads + 2 * heads_kv, 16, requires_grad=True)
    q, k, v = (part.contiguous() for part in qkv.split([heads, heads_kv, heads_kv], dim=2))
    given = qkv if grouped else qkv.view(2, 9, 3, 3, 16)
    out, lse = hopper.flash_attn_qkvpacked_func(
        given, causal=True, num_heads_q=4 if grouped else None, return_attn_probs=True
    )
    expected, expected_lse = faops.attention(q, k, v, causal=True, return_lse=True)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(lse, expected_lse)
    dout = torch.randn_like(out)
    (found,), (wanted,) = (torch.autograd.grad(result, [qkv], dout) for result in (out, expected))
    torch.testing.assert_close(found, wanted)


# --- packed sequences -------------------------------------------------------------------------------------------------


def random_lengths() -> tuple[list[int], list[int]]:
    """Tokens of three sequences, and how many of them are used; some of either are none."""
    there = [random.randint(0, 12) for _ in range(3)]
    return there, [random.randint(0, length) for length in there]


@pytest.mark.parametrize("has_qv", [False, True])
@pytest.mark.parametrize("used", [(False, False), (True, False), (False, True), (True, True)])
def test_varlen(has_qv: bool, used: tuple[bool, bool]) -> None:
    (rows, used_rows), (keys, used_keys) = random_lengths(), random_lengths()
    used_rows, used_keys = used_rows if used[0] else rows, used_keys if used[1] else keys
    behind = 2  # tokens of no sequence
    tensors = random_qkv((sum(rows) + behind,), (sum(keys) + behind,), has_qv)
    rules, options = random_rules(default_scale(tensors), 12)
    out, lse = hopper.flash_attn_varlen_func(
        **{name: tensors[name] for name in ("q", "k", "v")}, qv=tensors.get("qv"),
        cu_seqlens_q=cumulative(rows), cu_seqlens_k=cumulative(keys), max_seqlen_q=12, max_seqlen_k=12,
        seqused_q=torch.tensor(used_rows, dtype=torch.int32) if used[0] else None,
        seqused_k=torch.tensor(used_keys, dtype=torch.int32) if used[1] else None,
        **options, return_attn_probs=True,
    )  # fmt: skip

    def expected(dtype: torch.dtype) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        leaves = {name: tensor.detach().to(dtype).requires_grad_() for name, tensor in tensors.items()}
        outs, lses = torch.zeros(out.shape, dtype=dtype), torch.full(lse.shape, -torch.inf, dtype=dtype)
        for b, (row, key) in enumerate(zip(cumulative(rows).tolist(), cumulative(keys).tolist())):
            if b == 3:
                break
            own, of_keys = slice(row, row + used_rows[b]), slice(key, key + used_keys[b])
            qv = leaves["qv"][own] if has_qv else None
            outs[own], lses[:, own] = attend(
                leaves["q"][own], leaves["k"][of_keys], leaves["v"][of_keys], qv, rules, dtype
            )
        return leaves, outs, lses

    exact, plain = expected(torch.float64), expected(out.dtype)
    context = f"{rules} rows={rows}/{used_rows} keys={keys}/{used_keys} {out.dtype}"
    assert_accurate("out", out, exact[1], plain[1], context)
    assert_accurate("lse", lse, exact[2], plain[2], context)
    dout = torch.randn_like(out)
    gradients = [
        torch.autograd.grad(result, list(leaves.values()), dout.to(result.dtype), allow_unused=True)
        if result.requires_grad
        else [None] * len(leaves)
        for leaves, result in ((tensors, out), exact[:2], plain[:2])
    ]
    for name, found, wanted, unfused in zip(tensors, *gradients):
        zero = torch.zeros(tensors[name].shape, dtype=torch.float64)
        wanted, unfused = (zero if gradient is None else gradient for gradient in (wanted, unfused))
        assert_accurate(f"d{name}", found, wanted, unfused, context)


def packed(offsets: Tensor, longest: int | Tensor) -> dict[str, Any]:
    """Arguments for queries and keys with the same offsets."""
    sides = {"cu_seqlens_q": offsets, "cu_seqlens_k": offsets}
    return {**sides, "max_seqlen_q": longest, "max_seqlen_k": longest}


def test_varlen_returns_out_alone() -> None:
    tensors = random_qkv((9,), (9,), False)
    offsets = cumulative([4, 5])
    out = hopper.flash_attn_varlen_func(**tensors, **packed(offsets, torch.tensor(5)))
    assert torch.equal(out, faops.attention_varlen(*tensors.values(), offsets, offsets, 5, 5))


# --- what is checked, and hints ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_splits", -1), ("num_splits", True), ("sm_margin", 0.5), ("pack_gqa", 1), ("attention_chunk", -1),
        ("attention_chunk", 2.0), ("q_descale", 1.0), ("v_descale", torch.ones(2, 2, dtype=torch.float16)),
        ("qv", torch.randn(2, 5, 4, 8)), ("softcap", -1.0), ("softmax_scale", float("nan")), ("window_size", 3),
        ("window_size", (1, 2, 3)), ("causal", "yes"),
    ],
)  # fmt: skip
def test_wrong_argument(name: str, value: Any) -> None:
    q, k, v = torch.randn(2, 5, 4, 16), torch.randn(2, 7, 2, 16), torch.randn(2, 7, 2, 16)
    with pytest.raises(faops.ArgumentError, match=f"^{name}: got"):
        hopper.flash_attn_func(q, k, v, **{name: value})


def test_hints_and_descales_of_16_bit_change_nothing() -> None:
    tensors = random_qkv((2, 5), (2, 7), False)
    scales = torch.full((2, tensors["k"].shape[2]), 3.0)
    hints: dict[str, Any] = {"num_splits": 3, "pack_gqa": True, "sm_margin": 4}
    out = hopper.flash_attn_func(**tensors, **hints, q_descale=scales, k_descale=scales, v_descale=scales)
    assert torch.equal(out, hopper.flash_attn_func(**tensors))


def test_fp8_has_no_kernel() -> None:
    q, k, v = (torch.randn(2, 5, 2, 16).to(torch.float8_e4m3fn) for _ in range(3))
    with pytest.raises(faops.NoKernelError):
        hopper.flash_attn_func(q, k, v, q_descale=torch.ones(2, 2))


@pytest.mark.parametrize(("side", "used"), [("q", [3, 9]), ("k", [-1, 2])])
def test_used_more_than_there_is(side: str, used: list[int]) -> None:
    tensors = random_qkv((8,), (8,), False)
    offsets = cumulative([4, 4])
    given = {f"seqused_{side}": torch.tensor(used, dtype=torch.int32)}
    with pytest.raises(faops.ArgumentError, match=f"^seqused_{side}: got {9 if side == 'q' else -1}, expected between"):
        hopper.flash_attn_varlen_func(**tensors, **packed(offsets, 4), **given)


@pytest.mark.parametrize("heads", [None, 0, 3, 8])
def test_query_heads_of_qkv(heads: int | None) -> None:
    with pytest.raises(faops.ArgumentError, match=r"^num_heads_q: got"):
        hopper.flash_attn_qkvpacked_func(torch.randn(1, 3, 8, 16), num_heads_q=heads)


# --- the rest ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_combine(batched: bool, dtype: torch.dtype | None) -> None:
    q, k, v = torch.randn(2, 5, 4, 16), torch.randn(2, 30, 2, 16), torch.randn(2, 30, 2, 16)
    parts = [faops.attention(q, k[:, a:b], v[:, a:b], return_lse=True) for a, b in ((0, 11), (11, 30), (30, 30))]
    outs, lses = torch.stack([out for out, _ in parts]), torch.stack([lse for _, lse in parts]).transpose(2, 3)
    outs[2] = torch.nan  # nothing reads what a part without keys holds
    lses[:, 0, 1, 2] = -torch.inf
    whole, whole_lse = faops.attention(q, k, v, return_lse=True)
    whole[0, 1, 2], whole_lse = 0.0, whole_lse.transpose(1, 2).clone()
    whole_lse[0, 1, 2] = -torch.inf
    if not batched:
        outs, lses, whole, whole_lse = (
            outs.flatten(1, 2),
            lses.flatten(1, 2),
            whole.flatten(0, 1),
            whole_lse.flatten(0, 1),
        )
    out, lse = hopper.flash_attn_combine(outs, lses, out_dtype=dtype)
    assert out.dtype == (dtype or torch.float32)
    torch.testing.assert_close(out, whole.to(out.dtype))
    torch.testing.assert_close(lse, whole_lse)
    given = torch.full_like(whole, torch.nan)
    assert hopper.flash_attn_combine(outs, lses, given)[0] is given
    torch.testing.assert_close(given, whole)
    with pytest.raises(faops.ArgumentError, match=r"^out: got"):
        hopper.flash_attn_combine(outs, lses, given, torch.float16)
    with pytest.raises(faops.ArgumentError, match=r"^lse_partial: got"):
        hopper.flash_attn_combine(outs, lses[:, :1])


def test_scheduler_metadata_is_empty() -> None:
    found = hopper.get_scheduler_metadata(2, 1, 64, 4, 2, 16, torch.tensor([3, 4], dtype=torch.int32))
    assert found.dtype == torch.int32 and found.numel() == 0
