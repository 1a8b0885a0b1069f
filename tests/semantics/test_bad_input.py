"""Wrong arguments: each is refused with a faops error that names the argument, what it was and what is expected."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import faops
from faops.errors import ArgumentError, FaopsError, NoKernelError

B, M, N, H, HK, D = 2, 5, 7, 4, 2, 8


def dense(**changes: Any) -> dict[str, Any]:
    return {"q": torch.randn(B, M, H, D), "k": torch.randn(B, N, HK, D), "v": torch.randn(B, N, HK, D), **changes}


def packed(**changes: Any) -> dict[str, Any]:
    arguments = {
        "q": torch.randn(9, H, D), "k": torch.randn(11, HK, D), "v": torch.randn(11, HK, D),
        "cu_seqlens_q": torch.tensor([0, 4, 9], dtype=torch.int32),
        "cu_seqlens_k": torch.tensor([0, 6, 11], dtype=torch.int32), "max_seqlen_q": 5, "max_seqlen_k": 6,
    }  # fmt: skip
    return {**arguments, **changes}


def cached(**changes: Any) -> dict[str, Any]:
    arguments = {
        "q": torch.randn(B, 1, H, D), "k_cache": torch.randn(B, 12, HK, D), "v_cache": torch.randn(B, 12, HK, D),
        "cache_seqlens": torch.tensor([3, 6], dtype=torch.int32),
    }  # fmt: skip
    return {**arguments, **changes}


def appending(**changes: Any) -> dict[str, Any]:
    return cached(**{"k": torch.randn(B, 1, HK, D), "v": torch.randn(B, 1, HK, D), **changes})


def paged(**changes: Any) -> dict[str, Any]:
    block_table = torch.tensor([[0, 3, 5], [7, 1, 2]], dtype=torch.int32)
    return cached(**{**caches(8, 4, HK, D), "block_table": block_table, **changes})


def caches(*shape: int) -> dict[str, Any]:
    return {"k_cache": torch.randn(shape), "v_cache": torch.randn(shape)}


def tables(cos: tuple[int, ...], sin: tuple[int, ...]) -> dict[str, Any]:
    return {"rotary_cos": torch.ones(cos), "rotary_sin": torch.ones(sin)}


def on_meta(arguments: dict[str, Any], **changes: Any) -> dict[str, Any]:
    moved = {name: value.to("meta") if isinstance(value, Tensor) else value for name, value in arguments.items()}
    return {**moved, **changes}


def ints(*values: int, dtype: torch.dtype = torch.int32) -> Tensor:
    return torch.tensor(values, dtype=dtype)


def bad(arguments: Callable[[], dict[str, Any]], name: str, shown: str, label: str) -> Any:
    """A row of the tables: how to make the call, the argument to be named, and what the message must show of it."""
    return pytest.param(arguments, name, shown, id=label)


DENSE = [
    bad(lambda: dense(q=[[1.0]]), "q", "[[1.0]]", "q is no tensor"),
    bad(lambda: dense(k=None), "k", "None", "k is None"),
    bad(lambda: dense(q=torch.ones(B, M, H, D, dtype=torch.int64)), "q", "int64", "integer q"),
    bad(lambda: dense(q=torch.ones(B, M, H, D, dtype=torch.complex64)), "q", "complex64", "complex q"),
    bad(lambda: dense(k=torch.randn(B, N, HK, D).half()), "k", "float16", "k of another dtype"),
    bad(lambda: dense(v=torch.randn(B, N, HK, D).double()), "v", "float64", "v of another dtype"),
    bad(lambda: dense(k=torch.empty(B, N, HK, D, device="meta")), "k", "meta", "k on another device"),
    bad(lambda: dense(v=torch.empty(B, N, HK, D, device="meta")), "v", "meta", "v on another device"),
    bad(lambda: dense(q=torch.randn(M, H, D)), "q", "(5, 4, 8)", "q of rank 3"),
    bad(lambda: dense(k=torch.randn(1, B, N, HK, D)), "k", "(1, 2, 7, 2, 8)", "k of rank 5"),
    bad(lambda: dense(q=torch.randn(B, M, D, H).mT), "q", "stride", "last axis of q not contiguous"),
    bad(lambda: dense(k=torch.randn(B, N, HK, 2 * D)[..., ::2]), "k", "stride", "last axis of k strided"),
    bad(lambda: dense(v=torch.randn(B, N, HK, 1).expand(B, N, HK, D)), "v", "stride", "last axis of v expanded"),
    bad(lambda: dense(k=torch.randn(B, N, 3, D), v=torch.randn(B, N, 3, D)), "k", "3 heads", "3 kv heads under 4"),
    bad(lambda: dense(k=torch.randn(B, N, 8, D), v=torch.randn(B, N, 8, D)), "k", "8 heads", "8 kv heads under 4"),
    bad(lambda: dense(k=torch.randn(B, N, 0, D), v=torch.randn(B, N, 0, D)), "k", "0 heads", "no kv heads"),
    bad(lambda: dense(q=torch.randn(B, M, 0, D)), "q", "(2, 5, 0, 8)", "no query heads"),
    bad(lambda: dense(v=torch.randn(B, N, H, D)), "v", "4 heads", "v with other heads than k"),
    bad(lambda: dense(k=torch.randn(3, N, HK, D), v=torch.randn(3, N, HK, D)), "k", "batch 3", "batch of k"),
    bad(lambda: dense(v=torch.randn(3, N, HK, D)), "v", "(3, 7)", "batch of v"),
    bad(lambda: dense(v=torch.randn(B, N + 1, HK, D)), "v", "(2, 8)", "v longer than k"),
    bad(lambda: dense(k=torch.randn(B, N, HK, 16)), "k", "16", "head_dim of k"),
    bad(lambda: dense(q=torch.randn(B, M, H, 0), k=torch.randn(B, N, HK, 0)), "q", "(2, 5, 4, 0)", "head_dim 0"),
    bad(lambda: dense(v=torch.randn(B, N, HK, 0)), "v", "(2, 7, 2, 0)", "head_dim_v 0"),
    bad(lambda: dense(causal=1), "causal", "1", "causal an int"),
    bad(lambda: dense(causal=None), "causal", "None", "causal None"),
    bad(lambda: dense(window=(-2, 0)), "window", "(-2, 0)", "window below -1"),
    bad(lambda: dense(window=(0, -3)), "window", "(0, -3)", "right side below -1"),
    bad(lambda: dense(window=5), "window", "5", "window a number"),
    bad(lambda: dense(window=(1, 2, 3)), "window", "(1, 2, 3)", "window of three"),
    bad(lambda: dense(window=(1.5, 0)), "window", "(1.5, 0)", "window of floats"),
    bad(lambda: dense(window=("a", 0)), "window", "('a', 0)", "window of text"),
    bad(lambda: dense(window=(True, 0)), "window", "(True, 0)", "window of bools"),
    bad(lambda: dense(scale=math.nan), "scale", "nan", "scale NaN"),
    bad(lambda: dense(scale=math.inf), "scale", "inf", "scale infinite"),
    bad(lambda: dense(scale="0.5"), "scale", "'0.5'", "scale text"),
    bad(lambda: dense(softcap=-1.0), "softcap", "-1.0", "softcap negative"),
    bad(lambda: dense(softcap=math.nan), "softcap", "nan", "softcap NaN"),
    bad(lambda: dense(softcap=math.inf), "softcap", "inf", "softcap infinite"),
    bad(lambda: dense(softcap=None), "softcap", "None", "softcap None"),
    bad(lambda: dense(dropout_p=1.0), "dropout_p", "1.0", "dropout 1"),
    bad(lambda: dense(dropout_p=-0.1), "dropout_p", "-0.1", "dropout negative"),
    bad(lambda: dense(dropout_p=math.nan), "dropout_p", "nan", "dropout NaN"),
    bad(lambda: dense(dropout_p="half"), "dropout_p", "'half'", "dropout text"),
    bad(lambda: dense(alibi_slopes=torch.ones(3)), "alibi_slopes", "(3,)", "slopes of 3 heads"),
    bad(lambda: dense(alibi_slopes=torch.ones(3, H)), "alibi_slopes", "(3, 4)", "slopes of another batch"),
    bad(lambda: dense(alibi_slopes=torch.ones(H).half()), "alibi_slopes", "float16", "slopes in 16 bits"),
    bad(lambda: dense(alibi_slopes=[0.5] * H), "alibi_slopes", "[0.5", "slopes a list"),
    bad(lambda: dense(alibi_slopes=torch.empty(H, device="meta")), "alibi_slopes", "meta", "slopes elsewhere"),
    bad(lambda: dense(alibi_slopes=torch.ones(H).requires_grad_()), "alibi_slopes", "requires grad", "slopes learn"),
    bad(lambda: dense(bias=torch.ones(B, H, M, N + 1)), "bias", "(2, 4, 5, 8)", "bias too wide"),
    bad(lambda: dense(bias=torch.ones(3, 1, M, N)), "bias", "(3, 1, 5, 7)", "bias of another batch"),
    bad(lambda: dense(bias=torch.ones(1, HK, M, N)), "bias", "(1, 2, 5, 7)", "bias of kv heads"),
    bad(lambda: dense(bias=torch.ones(1, 1, 1, 1, N)), "bias", "(1, 1, 1, 1, 7)", "bias of rank 5"),
    bad(lambda: dense(bias=torch.ones(M, N, dtype=torch.bool)), "bias", "bool", "boolean bias"),
    bad(lambda: dense(bias=torch.ones(M, N, dtype=torch.int32)), "bias", "int32", "integer bias"),
    bad(lambda: dense(bias=0.5), "bias", "0.5", "bias a number"),
    bad(lambda: dense(bias=torch.ones(M, N, device="meta")), "bias", "meta", "bias elsewhere"),
    bad(lambda: dense(mask=torch.ones(M, N)), "mask", "float32", "floating mask"),
    bad(lambda: dense(mask=torch.ones(N + 2, dtype=torch.bool)), "mask", "(9,)", "mask too wide"),
    bad(lambda: dense(mask=torch.ones(B, N, dtype=torch.bool)), "mask", "(2, 7)", "padding mask without its axes"),
    bad(lambda: dense(mask=True), "mask", "True", "mask a bool"),
    bad(lambda: dense(sinks=torch.ones(HK)), "sinks", "(2,)", "sinks of kv heads"),
    bad(lambda: dense(sinks=torch.ones(1, H)), "sinks", "(1, 4)", "sinks of rank 2"),
    bad(lambda: dense(sinks=torch.ones(H, dtype=torch.int32)), "sinks", "int32", "integer sinks"),
    bad(lambda: dense(sinks=torch.ones(H, device="meta")), "sinks", "meta", "sinks elsewhere"),
    bad(lambda: dense(layout="sbhd"), "layout", "'sbhd'", "unknown layout"),
    bad(lambda: dense(layout=None), "layout", "None", "layout None"),
    bad(lambda: dense(backend="cudnn"), "backend", "'cudnn'", "unknown backend"),
    bad(lambda: dense(backend="torch.nothing"), "backend", "'torch.nothing'", "unknown kernel"),
    bad(lambda: dense(q_descale=torch.ones(B, HK)), "q_descale", "float32", "descale without fp8"),
    bad(lambda: dense(v_descale=torch.ones(B, HK)), "v_descale", "float32", "value descale without fp8"),
    bad(lambda: on_meta(dense(dropout_p=0.1), generator=torch.Generator()), "generator", "cpu", "generator elsewhere"),
]  # fmt: skip

VARLEN = [
    bad(lambda: packed(q=torch.randn(1, 9, H, D)), "q", "(1, 9, 4, 8)", "q of rank 4"),
    bad(lambda: packed(k=torch.randn(11, 3, D), v=torch.randn(11, 3, D)), "k", "3 heads", "3 kv heads under 4"),
    bad(lambda: packed(v=torch.randn(10, HK, D)), "v", "10 tokens", "v shorter than k"),
    bad(lambda: packed(q=torch.randn(9, D, H).mT), "q", "stride", "last axis not contiguous"),
    bad(lambda: packed(cu_seqlens_q=ints(0, 4, 9, dtype=torch.int64)), "cu_seqlens_q", "int64", "offsets in int64"),
    bad(lambda: packed(cu_seqlens_k=torch.tensor([0.0, 6.0, 11.0])), "cu_seqlens_k", "float32", "floating offsets"),
    bad(lambda: packed(cu_seqlens_k=[0, 6, 11]), "cu_seqlens_k", "[0, 6, 11]", "offsets in a list"),
    bad(lambda: packed(cu_seqlens_q=ints(1, 4, 9)), "cu_seqlens_q", "1", "offsets not from 0"),
    bad(lambda: packed(cu_seqlens_q=ints(-1, 4, 9)), "cu_seqlens_q", "-1", "offsets from below 0"),
    bad(lambda: packed(cu_seqlens_k=ints(0, 6, 4)), "cu_seqlens_k", "4 after 6", "offsets decrease"),
    bad(lambda: packed(cu_seqlens_q=ints(0, 4, 10), max_seqlen_q=6), "cu_seqlens_q", "10", "offsets past the end"),
    bad(lambda: packed(cu_seqlens_k=ints(0, 6, 6, 11)), "cu_seqlens_k", "4 offsets", "another number of sequences"),
    bad(lambda: packed(cu_seqlens_q=ints()), "cu_seqlens_q", "(0,)", "no offsets"),
    bad(lambda: packed(cu_seqlens_q=ints(0, 4, 9)[None]), "cu_seqlens_q", "(1, 3)", "offsets of rank 2"),
    bad(lambda: packed(cu_seqlens_q=ints(0, 4, 9).to("meta")), "cu_seqlens_q", "meta", "elsewhere"),
    bad(lambda: packed(max_seqlen_q=4), "max_seqlen_q", "4", "longest query too short"),
    bad(lambda: packed(max_seqlen_k=5), "max_seqlen_k", "5", "longest key too short"),
    bad(lambda: packed(max_seqlen_q=-1), "max_seqlen_q", "-1", "longest query negative"),
    bad(lambda: packed(max_seqlen_k=6.0), "max_seqlen_k", "6.0", "longest key a float"),
    bad(lambda: packed(max_seqlen_k=2**31), "max_seqlen_k", "2147483648", "longest key past int32"),
    bad(lambda: packed(alibi_slopes=torch.ones(3, H)), "alibi_slopes", "(3, 4)", "slopes of another batch"),
    bad(lambda: packed(bias=torch.ones(2, H, 5, 11)), "bias", "(2, 4, 5, 11)", "bias over all tokens"),
    bad(lambda: packed(window=(-5, 0)), "window", "(-5, 0)", "window below -1"),
    bad(lambda: packed(scale=math.inf), "scale", "inf", "scale infinite"),
    bad(lambda: packed(backend="cudnn"), "backend", "'cudnn'", "unknown backend"),
    bad(lambda: packed(layout="hd"), "layout", "'hd'", "unknown layout"),
]  # fmt: skip

KVCACHE = [
    bad(lambda: cached(q=torch.randn(B, H, D)), "q", "(2, 4, 8)", "q of rank 3"),
    bad(lambda: cached(k_cache=torch.randn(B, 12, HK, D).half()), "k_cache", "float16", "cache of another dtype"),
    bad(lambda: cached(v_cache=torch.randn(B, 13, HK, D)), "v_cache", "(2, 13, 2, 8)", "caches of unlike length"),
    bad(lambda: cached(**caches(B, 12, 3, D)), "k_cache", "3 heads", "3 kv heads under 4"),
    bad(lambda: cached(**caches(1, 12, HK, D)), "k_cache", "batch 1", "cache of a smaller batch"),
    bad(lambda: cached(cache_seqlens=ints(3, 13)), "cache_seqlens", "13", "longer than the cache"),
    bad(lambda: cached(cache_seqlens=13), "cache_seqlens", "13", "an int longer than the cache"),
    bad(lambda: cached(cache_seqlens=ints(3, -1)), "cache_seqlens", "-1", "negative length"),
    bad(lambda: cached(cache_seqlens=-2), "cache_seqlens", "-2", "negative int"),
    bad(lambda: cached(cache_seqlens=ints(3, 6, dtype=torch.int64)), "cache_seqlens", "int64", "lengths in int64"),
    bad(lambda: cached(cache_seqlens=ints(3, 6, 7)), "cache_seqlens", "(3,)", "lengths of another batch"),
    bad(lambda: cached(cache_seqlens=2.5), "cache_seqlens", "2.5", "length a float"),
    bad(lambda: cached(cache_seqlens=True), "cache_seqlens", "True", "length a bool"),
    bad(lambda: appending(cache_seqlens=ints(3, 12)), "cache_seqlens", "12", "no room for new keys"),
    bad(lambda: appending(cache_seqlens=12), "cache_seqlens", "12", "no room after an int"),
    bad(lambda: appending(cache_seqlens=None), "cache_seqlens", "None", "appending to a full cache"),
    bad(lambda: appending(v=None), "v", "None", "new keys without values"),
    bad(lambda: appending(k=None), "k", "None", "new values without keys"),
    bad(lambda: appending(k=torch.randn(B, 1, H, D)), "k", "(2, 1, 4, 8)", "new keys with other heads"),
    bad(lambda: appending(v=torch.randn(B, 2, HK, D)), "v", "(2, 2, 2, 8)", "more new values than keys"),
    bad(lambda: appending(k=torch.randn(3, 1, HK, D)), "k", "(3, 1, 2, 8)", "new keys of another batch"),
    bad(lambda: appending(k=torch.randn(B, 1, HK, D).double()), "k", "float64", "new keys of another dtype"),
    bad(lambda: cached(cache_batch_idx=ints(0, 2)), "cache_batch_idx", "2", "row past the cache"),
    bad(lambda: cached(cache_batch_idx=ints(-1, 0)), "cache_batch_idx", "-1", "negative row"),
    bad(lambda: cached(cache_batch_idx=ints(0)), "cache_batch_idx", "(1,)", "rows of another batch"),
    bad(lambda: cached(cache_batch_idx=ints(0, 1, dtype=torch.int64)), "cache_batch_idx", "int64", "rows in int64"),
    bad(lambda: cached(cache_leftpad=ints(4, 0)), "cache_leftpad", "4", "padding past the length"),
    bad(lambda: cached(cache_leftpad=ints(0, -1)), "cache_leftpad", "-1", "negative padding"),
    bad(lambda: cached(cache_leftpad=ints(0, 0, 0)), "cache_leftpad", "(3,)", "padding of another batch"),
    bad(lambda: paged(block_table=ints(0, 3, dtype=torch.int64)[:, None]), "block_table", "int64", "table in int64"),
    bad(lambda: paged(block_table=ints(0, 3)), "block_table", "(2,)", "table of rank 1"),
    bad(lambda: paged(block_table=ints(0, 3, 5)[None]), "block_table", "(1, 3)", "table of another batch"),
    bad(lambda: paged(block_table=ints(0, 3, 5, 7, 8, 2).view(2, 3)), "block_table", "8", "page past the cache"),
    bad(lambda: paged(block_table=ints(-1, 3, 5, 7, 1, 2).view(2, 3)), "block_table", "-1", "negative page"),
    bad(lambda: paged(cache_seqlens=ints(3, 13)), "cache_seqlens", "13", "longer than the pages"),
    bad(lambda: paged(cache_batch_idx=ints(0, 1)), "cache_batch_idx", "int32", "rows beside pages"),
    bad(lambda: paged(**caches(8, 0, HK, D)), "k_cache", "(8, 0, 2, 8)", "pages without room"),
    bad(lambda: appending(rotary_cos=torch.ones(12, 4)), "rotary_sin", "None", "cosines without sines"),
    bad(lambda: appending(rotary_sin=torch.ones(12, 4)), "rotary_cos", "None", "sines without cosines"),
    bad(lambda: appending(**tables((12, 4), (12, 3))), "rotary_sin", "(12, 3)", "unlike tables"),
    bad(lambda: appending(**tables((12, 5), (12, 5))), "rotary_cos", "(12, 5)", "too wide"),
    bad(lambda: appending(**tables((12,), (12,))), "rotary_cos", "(12,)", "table of rank 1"),
    bad(lambda: appending(**tables((6, 4), (6, 4))), "rotary_cos", "6", "too few positions"),
    bad(lambda: cached(num_splits=-1), "num_splits", "-1", "negative splits"),
    bad(lambda: cached(num_splits=1.5), "num_splits", "1.5", "splits a float"),
    bad(lambda: cached(bias=torch.ones(1, 1, 1, 6)), "bias", "(1, 1, 1, 6)", "bias shorter than the cache"),
    bad(lambda: cached(mask=torch.ones(1, 1, 1, 13, dtype=torch.bool)), "mask", "(1, 1, 1, 13)", "mask too wide"),
    bad(lambda: cached(softcap=-2.0), "softcap", "-2.0", "softcap negative"),
    bad(lambda: cached(window=(3, -2)), "window", "(3, -2)", "window below -1"),
    bad(lambda: cached(layout="bsh"), "layout", "'bsh'", "unknown layout"),
    bad(lambda: cached(backend="cudnn"), "backend", "'cudnn'", "unknown backend"),
    bad(lambda: cached(k_descale=torch.ones(B, HK)), "k_descale", "float32", "descale without fp8"),
]  # fmt: skip


def refuses(call: Callable[..., Any], arguments: dict[str, Any], name: str, shown: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        call(**arguments)
    error = caught.value
    assert isinstance(error, FaopsError)
    assert isinstance(error, ValueError)
    assert error.argument == name
    before, _, after = str(error).partition(", expected ")
    assert before.startswith(f"{name}: got "), str(error)
    assert shown in before, str(error)
    assert after


@pytest.mark.parametrize(("arguments", "name", "shown"), DENSE)
def test_attention(arguments: Callable[[], dict[str, Any]], name: str, shown: str) -> None:
    refuses(faops.attention, arguments(), name, shown)


@pytest.mark.parametrize(("arguments", "name", "shown"), VARLEN)
def test_attention_varlen(arguments: Callable[[], dict[str, Any]], name: str, shown: str) -> None:
    refuses(faops.attention_varlen, arguments(), name, shown)


@pytest.mark.parametrize(("arguments", "name", "shown"), KVCACHE)
def test_attention_with_kvcache(arguments: Callable[[], dict[str, Any]], name: str, shown: str) -> None:
    """A refused call also leaves the caches as they were."""
    made = arguments()
    before = {name: made[name].clone() for name in ("k_cache", "v_cache")}
    refuses(faops.attention_with_kvcache, made, name, shown)
    assert all(torch.equal(made[name], kept) for name, kept in before.items())


def test_the_unchanged_calls_are_good() -> None:
    """So every refusal above is for the change it makes."""
    assert faops.attention(**dense()).shape == (B, M, H, D)
    assert faops.attention_varlen(**packed()).shape == (9, H, D)
    for make in (cached, appending, paged):
        assert faops.attention_with_kvcache(**make()).shape == (B, 1, H, D)
    assert faops.attention_with_kvcache(**appending(**tables((12, 4), (12, 4)))).shape == (B, 1, H, D)


def test_the_heads_first_layout_is_checked_too() -> None:
    q, k = torch.randn(B, H, M, D), torch.randn(B, HK, N, D)
    with pytest.raises(ArgumentError, match=r"v: got"):
        faops.attention(q, k, torch.randn(B, HK, N + 1, D), layout="bhsd")


def fp8_inputs() -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = (torch.randn(B, n, h, D).to(torch.float8_e4m3fn) for n, h in ((M, H), (N, HK), (N, HK)))
    return q, k, v


def test_fp8_is_refused_with_every_kernel_s_reason() -> None:
    q, k, v = fp8_inputs()
    for descales in ({}, {"q_descale": torch.ones(B, HK), "k_descale": torch.ones(B, HK)}):
        with pytest.raises(NoKernelError) as caught:
            faops.attention(q, k, v, **descales)
        assert set(caught.value.rejections) >= {"torch.sdpa_forward", "torch.blockwise_forward"}
        torch_reasons = [reasons for name, reasons in caught.value.rejections.items() if name.startswith("torch.")]
        assert all(any("fp8" in reason for reason in reasons) for reasons in torch_reasons)
        assert "float8_e4m3fn" in str(caught.value)


@pytest.mark.parametrize(
    "descale", [torch.ones(B, H), torch.ones(HK), torch.ones(B, HK).double(), torch.ones(B, HK).int()], ids=str
)
def test_fp8_descales_of_the_wrong_kind(descale: Tensor) -> None:
    q, k, v = fp8_inputs()
    refuses(faops.attention, {"q": q, "k": k, "v": v, "k_descale": descale}, "k_descale", str(tuple(descale.shape)))


def test_a_forced_kernel_that_cannot_tells_why() -> None:
    with pytest.raises(NoKernelError) as caught:
        faops.attention(**dense(softcap=1.0, window=(2, 2)), backend="torch.sdpa")
    reasons = caught.value.rejections["torch.sdpa_forward"]
    assert any("softcap" in reason for reason in reasons)
    assert any("window" in reason for reason in reasons)
    assert "torch.sdpa_forward" in str(caught.value)


def test_a_forced_backend_for_the_cache_call_that_has_no_decode_kernel() -> None:
    with pytest.raises(NoKernelError, match="has no kernel for decode"):
        faops.attention_with_kvcache(**cached(), backend="torch.sdpa_banded")


@pytest.mark.parametrize(
    "changes",
    [
        {"num_splits": True},
        {"rotary_interleaved": 1},
        {"cache_seqlens": -1},
        {"cache_seqlens": True},
        {"scale": float("nan")},
        {"cache_seqlens": torch.tensor([1, 2])},
        {"cache_seqlens": torch.tensor([1, 99], dtype=torch.int32)},
        {"k": None},
        {"layout": "hsbd"},
    ],
    ids=lambda changes: ", ".join(changes),
)
def test_a_cache_call_is_checked_after_one_like_it_has_passed(changes: dict[str, Any]) -> None:
    call = appending(num_splits=1, window=(1, -1), scale=0.5, cache_seqlens=torch.tensor([1, 2], dtype=torch.int32))
    for seqlens in (call["cache_seqlens"], 1):
        for _ in range(2):
            faops.attention_with_kvcache(**{**call, "cache_seqlens": seqlens})
    with pytest.raises(ArgumentError, match=next(iter(changes))):
        faops.attention_with_kvcache(**{**call, **changes})
    call["k_cache"].requires_grad_()
    with pytest.raises(ArgumentError, match="k_cache"):
        faops.attention_with_kvcache(**call)


@pytest.mark.parametrize("name", ["q", "k", "v", "bias", "sinks"])
def test_gradient_through_the_cache_call_is_refused(name: str) -> None:
    """Whichever tensor asks for it: a gradient that is missing must not go unnoticed."""
    arguments = appending(bias=torch.randn(1, 1, 1, 12), sinks=torch.randn(H))
    arguments[name].requires_grad_()
    out = faops.attention_with_kvcache(**arguments)
    with pytest.raises(RuntimeError, match="no gradient"):
        out.sum().backward()


def test_unknown_option_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="is_causal"):
        faops.attention(**dense(), is_causal=True)
