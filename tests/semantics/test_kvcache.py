"""The KV-cache call against the oracle: append in place, pages, rotary embedding, left padding, batch indices."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import Tensor

import faops
from faops import reference
from tests.support import DTYPES, assert_accurate, random_mask

pytestmark = pytest.mark.usefixtures("poisoned")

# Each feature adds arguments to a call of the shape below.
FEATURES = (
    "append", "append_more", "rotary", "rotary_half", "leftpad", "batch_idx", "paged1", "paged3", "paged16", "causal",
    "window", "softcap", "alibi", "alibi_batch", "bias", "mask", "sinks", "gqa", "mqa", "int_seqlens", "full_cache",
    "prefill", "splits", "bhsd", "value_dim", "scale",
)  # fmt: skip
EXCLUSIVE = (
    {"gqa", "mqa"}, {"alibi", "alibi_batch"}, {"paged1", "paged3", "paged16", "batch_idx", "bhsd"},
    {"append", "append_more"}, {"full_cache", "int_seqlens"}, {"full_cache", "append"}, {"full_cache", "append_more"},
    {"full_cache", "rotary"}, {"full_cache", "rotary_half"}, {"rotary", "rotary_half"},
)  # fmt: skip


def compatible(features: tuple[str, ...]) -> bool:
    return not any(len(group & set(features)) > 1 for group in EXCLUSIVE)


def make_call(features: tuple[str, ...], dtype: torch.dtype) -> tuple[list[Tensor | None], dict[str, Any]]:
    """Positional tensors (q, k_cache, v_cache, k, v) and options of a random call."""
    batch, M = 3, random.randint(2, 9) if "prefill" in features else 1
    heads, kv_heads = (6, 2) if "gqa" in features else (3, 1) if "mqa" in features else (4, 4)
    dim, dim_v = 16, 24 if "value_dim" in features else 16
    rotary = "rotary" in features or "rotary_half" in features
    new = M if "append" in features else random.randint(2, 5) if "append_more" in features else M if rotary else 0
    page = next((int(name[5:]) for name in features if name.startswith("paged")), 0)
    pages = random.randint(30, 50) // max(1, page)
    capacity = page * pages or random.randint(30, 60)
    entries = batch + 2 if "batch_idx" in features else batch

    def tensor(*shape: int) -> Tensor:
        return torch.randn(shape).to(dtype)

    q = tensor(batch, M, heads, dim)
    leading = (batch * pages + 3, page) if page else (entries, capacity)
    k_cache, v_cache = tensor(*leading, kv_heads, dim), tensor(*leading, kv_heads, dim_v)
    k = tensor(batch, new, kv_heads, dim) if new else None
    v = tensor(batch, new, kv_heads, dim_v) if new else None

    # A windowed or causal call rotates its last row at cache_seqlens + M - 1, which the tables must hold.
    most = capacity - max(new, M)
    seqlens = [random.randint(1, most) for _ in range(batch)]
    options: dict[str, Any] = {}
    if "int_seqlens" in features:
        seqlens = seqlens[:1] * batch
        options["cache_seqlens"] = seqlens[0]
    elif "full_cache" in features:
        seqlens = [capacity] * batch
    else:
        options["cache_seqlens"] = torch.tensor(seqlens, dtype=torch.int32)
    if page:
        options["block_table"] = torch.randperm(batch * pages + 3)[: batch * pages].view(batch, pages).int()
    if "batch_idx" in features:
        options["cache_batch_idx"] = torch.randperm(entries)[:batch].int()
    if "leftpad" in features:
        options["cache_leftpad"] = torch.tensor([random.randint(0, length) for length in seqlens], dtype=torch.int32)
    if rotary:
        angles = torch.rand(capacity, random.choice([2, 4, 8])) * 6
        options.update(rotary_cos=angles.cos().to(dtype), rotary_sin=angles.sin().to(dtype))
        options["rotary_interleaved"] = "rotary" in features
    pairs = tuple(random.choice((1, size)) for size in (batch, heads, M, capacity))
    choices: dict[str, dict[str, Any]] = {
        "causal": {"causal": True},
        "window": {"window": (random.randint(0, 30), random.choice([-1, 0, 4]))},
        "softcap": {"softcap": random.uniform(0.5, 3.0)},
        "alibi": {"alibi_slopes": torch.rand(heads) * 0.3},
        "alibi_batch": {"alibi_slopes": torch.rand(batch, heads) * 0.3},
        "bias": {"bias": tensor(*pairs)},
        "mask": {"mask": random_mask(pairs)},
        "sinks": {"sinks": tensor(heads)},
        "splits": {"num_splits": random.randint(1, 4)},
        "scale": {"scale": random.uniform(0.05, 0.5)},
        "bhsd": {"layout": "bhsd"},
    }
    for name in features:
        options.update(choices.get(name, {}))
    tensors = [q, k_cache, v_cache, k, v]
    if "bhsd" in features:
        tensors = [None if t is None else t.transpose(1, 2).contiguous() for t in tensors]
    return tensors, options


def check(features: tuple[str, ...], dtype: torch.dtype, backend: str | None = None) -> None:
    tensors, options = make_call(features, dtype)
    exact_options = {name: value for name, value in options.items() if name != "num_splits"}
    exact, exact_lse, k_after, v_after = reference.attention_with_kvcache(*tensors, **exact_options)  # type: ignore[arg-type]
    plain, plain_lse, _, _ = reference.attention_with_kvcache(*tensors, dtype=dtype, **exact_options)  # type: ignore[arg-type]
    out, lse = faops.attention_with_kvcache(*tensors, **options, return_lse=True, backend=backend)
    context = f"{features} {dtype} {[None if t is None else tuple(t.shape) for t in tensors]}"
    assert out.dtype == dtype
    assert_accurate("out", out, exact, plain, context)
    assert_accurate("lse", lse, exact_lse, plain_lse, context)
    assert torch.equal(tensors[1], k_after), f"k_cache differs: {context}"  # type: ignore[arg-type]
    assert torch.equal(tensors[2], v_after), f"v_cache differs: {context}"  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("feature", FEATURES)
def test_feature_alone(feature: str, dtype: torch.dtype) -> None:
    check((feature,), dtype)


PAIRS = [
    (one, other) for at, one in enumerate(FEATURES) for other in FEATURES[at + 1 :] if compatible((one, other))
]  # fmt: skip


@pytest.mark.parametrize("pair", PAIRS, ids="+".join)
def test_pair(pair: tuple[str, ...]) -> None:
    check(pair, random.choice(DTYPES), backend=random.choice([None, "torch.blockwise_decode"]))


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("number", range(40))
def test_many_features_over_many_tiles(number: int) -> None:
    features = tuple(random.sample(FEATURES, random.randint(3, 7)))
    while not compatible(features):
        features = tuple(random.sample(FEATURES, random.randint(3, 7)))
    check(features, random.choice(DTYPES))


def decode_call() -> tuple[Tensor, Tensor, Tensor]:
    """(q, k_cache, v_cache) of a small call."""
    return torch.randn(2, 1, 4, 8), torch.randn(2, 20, 2, 8), torch.randn(2, 20, 2, 8)


def test_cache_is_written_in_place_and_lengths_are_not_advanced() -> None:
    q, k_cache, v_cache = decode_call()
    k, v = torch.randn(2, 1, 2, 8), torch.randn(2, 1, 2, 8)
    seqlens = torch.tensor([3, 7], dtype=torch.int32)
    before = k_cache.clone()
    place = k_cache.data_ptr()
    faops.attention_with_kvcache(q, k_cache, v_cache, k, v, cache_seqlens=seqlens)
    assert k_cache.data_ptr() == place
    assert seqlens.tolist() == [3, 7]
    for b, at in enumerate((3, 7)):
        assert torch.equal(k_cache[b, at], k[b, 0])
        assert torch.equal(v_cache[b, at], v[b, 0])
        k_cache[b, at] = before[b, at]
    assert torch.equal(k_cache, before)


def test_what_lies_beyond_the_length_is_never_read() -> None:
    """Neither stale keys behind the length nor those in the left padding nor foreign pages reach the result."""
    q, k_cache, v_cache = decode_call()
    seqlens, leftpad = torch.tensor([6, 9], dtype=torch.int32), torch.tensor([2, 0], dtype=torch.int32)
    clean = faops.attention_with_kvcache(q, k_cache, v_cache, cache_seqlens=seqlens, cache_leftpad=leftpad)
    for cache in (k_cache, v_cache):
        cache[0, 6:] = cache[1, 9:] = cache[0, :2] = float("nan")
    dirty = faops.attention_with_kvcache(q, k_cache, v_cache, cache_seqlens=seqlens, cache_leftpad=leftpad)
    assert torch.equal(dirty, clean)
    table = torch.tensor([[4, 0], [2, 5]], dtype=torch.int32)
    k_pages, v_pages = torch.full((6, 10, 2, 8), float("nan")), torch.full((6, 10, 2, 8), float("nan"))
    for pages, cache in ((k_pages, k_cache), (v_pages, v_cache)):
        for b in range(2):
            pages[table[b].long()] = cache[b].view(2, 10, 2, 8)
    paged = faops.attention_with_kvcache(q, k_pages[:, :], v_pages, cache_seqlens=seqlens, block_table=table)
    whole = faops.attention_with_kvcache(q[1:], k_cache[1:], v_cache[1:], cache_seqlens=seqlens[1:])
    torch.testing.assert_close(paged[1:], whole)


def test_empty_cache_gives_zero() -> None:
    q, k_cache, v_cache = decode_call()
    out, lse = faops.attention_with_kvcache(
        q, k_cache, v_cache, cache_seqlens=torch.tensor([0, 5], dtype=torch.int32), return_lse=True
    )
    assert torch.equal(out[0], torch.zeros_like(out[0]))
    assert (lse[0] == -torch.inf).all()
    assert lse[1].isfinite().all()


def test_a_full_left_padding_leaves_no_key() -> None:
    q, k_cache, v_cache = decode_call()
    five = torch.tensor([5, 5], dtype=torch.int32)
    out = faops.attention_with_kvcache(q, k_cache, v_cache, cache_seqlens=five, cache_leftpad=five)
    assert torch.equal(out, torch.zeros_like(out))


def test_decoding_step_by_step_equals_one_causal_call() -> None:
    """Appending token by token, then chunk by chunk, gives the rows of the whole causal attention."""
    n = 24
    q, k, v = torch.randn(2, n, 4, 8), torch.randn(2, n, 2, 8), torch.randn(2, n, 2, 8)
    whole = faops.attention(q, k, v, causal=True)
    for chunks in ([1] * n, [5, 1, 10, 8]):
        k_cache, v_cache = torch.full((2, n, 2, 8), float("nan")), torch.full((2, n, 2, 8), float("nan"))
        at, rows = 0, []
        for size in chunks:
            part = slice(at, at + size)
            rows.append(
                faops.attention_with_kvcache(
                    q[:, part], k_cache, v_cache, k[:, part], v[:, part], cache_seqlens=at, causal=True
                )
            )
            at += size
        torch.testing.assert_close(torch.cat(rows, 1), whole)
        assert torch.equal(k_cache, k)


def test_strided_caches_are_written_through() -> None:
    """A cache that is a view (one tensor for K and V, heads first) is updated itself, not a copy."""
    both = torch.randn(2, 2, 2, 20, 8)  # (kv, batch, heads, seq, dim)
    q, k, v = torch.randn(2, 1, 4, 8), torch.randn(2, 1, 2, 8), torch.randn(2, 1, 2, 8)
    k_cache, v_cache = both[0].transpose(1, 2), both[1].transpose(1, 2)
    expected = faops.attention_with_kvcache(
        q, k_cache.contiguous(), v_cache.contiguous(), k, v, cache_seqlens=4, causal=True
    )
    torch.testing.assert_close(
        faops.attention_with_kvcache(q, k_cache, v_cache, k, v, cache_seqlens=4, causal=True), expected
    )
    assert torch.equal(both[0, :, :, 4], k[:, 0])
    assert torch.equal(both[1, :, :, 4], v[:, 0])


@pytest.mark.parametrize(("batch", "M"), [(0, 1), (2, 0)])
def test_empty_batch_and_no_rows(batch: int, M: int) -> None:
    q, caches = (
        torch.randn(batch, M, 4, 8),
        (torch.randn(max(batch, 1), 10, 2, 8), torch.randn(max(batch, 1), 10, 2, 8)),
    )
    out, lse = faops.attention_with_kvcache(
        q,
        *(cache[:batch] for cache in caches),
        cache_seqlens=torch.full((batch,), 4, dtype=torch.int32),
        return_lse=True,
    )
    assert out.shape == (batch, M, 4, 8)
    assert lse.shape == (batch, 4, M)
