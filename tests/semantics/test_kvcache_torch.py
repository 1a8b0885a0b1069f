"""The KV-cache kernels of the torch backend where they take ways of their own: parts of pages, masks, many rows."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import faops
from faops import reference, registry
from faops.device import detect
from faops.inputs import DecodeInputs
from faops.registry import Accepted, Config
from tests.semantics.test_kvcache import compatible, make_call
from tests.support import DTYPES, assert_accurate

pytestmark = pytest.mark.usefixtures("poisoned")

SDPA = "torch.sdpa_decode"
FEATURES = (
    "append", "append_more", "rotary", "rotary_half", "leftpad", "batch_idx", "paged1", "paged3", "paged16", "causal",
    "window", "alibi", "alibi_batch", "sinks", "gqa", "mqa", "int_seqlens", "full_cache", "prefill", "bhsd", "scale",
)  # fmt: skip


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages are gathered a few at a time, and a handful of rows already counts as many."""
    from faops.backends.torch import sdpa_decode

    monkeypatch.setattr(sdpa_decode, "KIB", random.choice((1, 4)))
    monkeypatch.setattr(sdpa_decode, "FEW_ROWS", random.choice((2, 8, 64)))


def compare(tensors: list[Tensor | None], options: dict[str, Any], context: str) -> None:
    dtype = tensors[0].dtype  # type: ignore[union-attr]
    exact, exact_lse, k_after, v_after = reference.attention_with_kvcache(*tensors, **options)  # type: ignore[arg-type]
    plain, plain_lse, _, _ = reference.attention_with_kvcache(*tensors, dtype=dtype, **options)  # type: ignore[arg-type]
    out, lse = faops.attention_with_kvcache(*tensors, **options, return_lse=True, backend=SDPA)  # type: ignore[arg-type]
    assert out.dtype == dtype
    assert out.is_contiguous()
    assert_accurate("out", out, exact, plain, context)
    assert_accurate("lse", lse, exact_lse, plain_lse, context)
    for tensor, after in zip(tensors[1:3], (k_after, v_after)):
        assert torch.equal(tensor, after), f"a cache differs: {context}"  # type: ignore[arg-type]


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("number", range(30))
def test_features_in_small_parts(number: int) -> None:
    count = random.randint(0, 6)
    features = tuple(random.sample(FEATURES, count))
    while not compatible(features):
        features = tuple(random.sample(FEATURES, count))
    dtype = random.choice(DTYPES)
    tensors, options = make_call(features, dtype)
    compare(tensors, options, f"{features} {dtype}")


@pytest.mark.parametrize("heads_kv", [1, 2, 4])
@pytest.mark.parametrize("layout", ["bshd", "bhsd"])
def test_a_prompt_comes_back_dense(layout: str, heads_kv: int) -> None:
    """The prompt fills an empty cache: a square causal call, which goes another way than decoding."""
    q = torch.randn(2, 65, 4, 16)
    k, v, k_cache, v_cache = (torch.randn(2, length, heads_kv, 16) for length in (65, 65, 80, 80))
    tensors: list[Tensor | None] = [q, k_cache, v_cache, k, v]
    if layout == "bhsd":
        tensors = [None if tensor is None else tensor.transpose(1, 2).contiguous() for tensor in tensors]
    compare(tensors, {"cache_seqlens": 0, "causal": True, "layout": layout}, f"{layout} {heads_kv}")


@pytest.mark.parametrize(
    "band", [{"causal": True}, {"window": (5, 0)}, {"window": (4, 2)}, {"window": (-1, 1)}, {}], ids=str
)
@pytest.mark.parametrize("M", [2, 9, 40])
def test_more_rows_than_keys(M: int, band: dict[str, Any]) -> None:
    """Leading rows without a key are dead; the prompt that fills an empty cache is square."""
    lengths = torch.tensor([0, 3, 20], dtype=torch.int32)
    k, v = torch.randn(3, M, 2, 16), torch.randn(3, M, 2, 16)
    for new in (None, M):
        caches = torch.randn(3, 64, 2, 16), torch.randn(3, 64, 2, 16)
        added = (k, v) if new else (None, None)
        options = {"cache_seqlens": lengths, "sinks": torch.randn(4), **band}
        compare([torch.randn(3, M, 4, 16), *caches, *added], options, f"{M} {band} {new}")


def test_a_row_in_many_parts_with_alibi_and_sinks() -> None:
    k_cache, v_cache = torch.randn(40, 16, 2, 16), torch.randn(40, 16, 2, 16)
    table = torch.randperm(40)[:39].view(3, 13).int()
    options = {
        "cache_seqlens": torch.tensor([200, 7, 130], dtype=torch.int32), "block_table": table,
        "alibi_slopes": torch.rand(3, 6), "sinks": torch.randn(6), "causal": True,
    }  # fmt: skip
    compare([torch.randn(3, 1, 6, 16), k_cache, v_cache, None, None], options, "alibi over parts")
    kernel = next(kernel for kernel in registry.kernels("decode") if kernel.id == SDPA)
    q = torch.randn(3, 1, 6, 16)
    inputs = DecodeInputs(
        q, k_cache, v_cache, None, None, options["cache_seqlens"], None, None, table, None, None,
        options["alibi_slopes"], None, None, options["sinks"], -1, 0, 0.25, 0.0, True, 0, True, "",
    )  # fmt: skip
    results = [kernel.launch(inputs, Config(gather=gather, threads=0)) for gather in (1, 3, 1024)]
    for out, lse in results[1:]:
        torch.testing.assert_close(out, results[0][0])
        torch.testing.assert_close(lse, results[0][1])


def test_stale_memory_is_never_read() -> None:
    """Behind a sequence's last key, before its left padding and before its window there may be NaN."""
    for options in ({"cache_leftpad": torch.tensor([3, 6], dtype=torch.int32)}, {"window": (4, 0)}):
        tensors, table = poisoned_pages(options, first=3 if "cache_leftpad" in options else 5)
        lengths = torch.tensor([9, 12], dtype=torch.int32)
        for backend in (SDPA, "torch.blockwise_decode"):
            for M in (1, 3):
                q = torch.randn(2, M, 2, 8)
                more = {**options, "window": (2, 0)} if M == 3 and "window" in options else options
                out = faops.attention_with_kvcache(
                    q, *tensors, cache_seqlens=lengths, block_table=table, **more, backend=backend
                )
                assert out.isfinite().all(), (options, backend, M)


def poisoned_pages(options: dict[str, Any], first: int) -> tuple[list[Tensor], Tensor]:
    """Caches of two sequences of 9 and 12 keys on pages of 4, NaN wherever nobody may look."""
    table = torch.tensor([[5, 1, 7], [2, 0, 4]], dtype=torch.int32)
    caches = [torch.full((8, 4, 1, 8), float("nan")) for _ in range(2)]
    for b, length in enumerate((9, 12)):
        low = int(options["cache_leftpad"][b]) if "cache_leftpad" in options else length - 5
        for position in range(low, length):
            for cache in caches:
                cache[table[b, position // 4], position % 4] = torch.randn(1, 8)
    return caches, table


def test_what_it_takes_and_refuses() -> None:
    """It runs everything but what PyTorch's kernel cannot: the blockwise kernel is there for that."""
    kernel = next(kernel for kernel in registry.kernels("decode") if kernel.id == SDPA)
    device = detect(torch.device("cpu"))
    problem = faops.problem.AttentionProblem(
        op="decode", dtype="float32", batch=2, seqlen_q=1, seqlen_k=64, heads_q=4, heads_kv=2, alibi=True, sinks=True,
        append=True, rotary="half", layout="paged", page_size=4, band=faops.problem.Band(5, 0), need_lse=True,
    )  # fmt: skip
    assert isinstance(kernel.check(problem, device), Accepted)
    for change in ({"softcap": True}, {"bias": "b..n"}, {"mask": "b..n"}, {"head_dim_v": 128}, {"batch": 0}):
        assert not isinstance(kernel.check(replace(problem, **change), device), Accepted), change


@pytest.mark.parametrize("scale", [-0.3, 0.0])
def test_scales_that_are_not_above_zero(scale: float) -> None:
    """PyTorch's kernel hides causal pairs before it scales them."""
    k_cache, v_cache = torch.zeros(2, 9, 2, 8), torch.zeros(2, 9, 2, 8)
    new = [torch.randn(2, 9, 2, 8) for _ in range(2)]
    options = {"cache_seqlens": 0, "causal": True, "scale": scale}
    for rows in (9, 1):
        q = torch.randn(2, rows, 32, 8)
        compare([q, k_cache, v_cache, *new], options, f"{scale} {rows}")
