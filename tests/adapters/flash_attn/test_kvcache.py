"""flash_attn_with_kvcache and packed queries over pages: what comes back, and what the cache holds after."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from faops import reference
from faops.adapters import flash_attn
from faops.adapters.flash_attn.flash_attn_interface import _flash_attn_varlen_forward
from tests.adapters.flash_attn.common import (
    close,
    expected,
    expected_varlen,
    offsets,
    randn,
    random_options,
    random_slopes,
)

pytestmark = pytest.mark.usefixtures("poisoned")


def call(q: Tensor, caches: tuple[Tensor, Tensor], **options: Any) -> tuple[Tensor, Tensor]:
    """(out, lse), after checking that both and the caches are as the oracle has them; ALiBi's lse is not compared."""
    before = [cache.clone() for cache in caches]
    out, lse = flash_attn.flash_attn_with_kvcache(q, *caches, return_softmax_lse=True, **options)
    plain = {name: value for name, value in options.items() if name != "num_splits"}
    names = {"window_size": "window", "softmax_scale": "scale"}
    plain = {names.get(name, name): value for name, value in plain.items()}
    wanted, wanted_lse, *after = reference.attention_with_kvcache(q, *before, **plain)
    close(out, wanted)
    if options.get("alibi_slopes") is None:
        close(lse, wanted_lse.masked_fill(wanted_lse == -torch.inf, torch.inf))
    for cache, held in zip(caches, after):
        close(cache, held)
    return out, lse


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("causal", [False, True])
def test_append_with_rotary_batch_index_and_left_padding(causal: bool, interleaved: bool) -> None:
    batch, capacity, new, heads = 3, 20, 4, (4, 2)
    caches = (randn(5, capacity, heads[1], 16), randn(5, capacity, heads[1], 16))
    angles = torch.rand(capacity, 4) * 6
    options = random_options(4, batch, causal=causal, alibi_slopes=None)
    call(
        randn(batch, new, heads[0], 16),
        caches,
        k=randn(batch, new, heads[1], 16),
        v=randn(batch, new, heads[1], 16),
        rotary_cos=angles.cos(),
        rotary_sin=angles.sin(),
        rotary_interleaved=interleaved,
        cache_seqlens=torch.tensor([3, 16, 7], dtype=torch.int32),
        cache_batch_idx=torch.tensor([4, 0, 2], dtype=torch.int32),
        cache_leftpad=torch.tensor([0, 5, 3], dtype=torch.int32),
        num_splits=random.randint(0, 3),
        **options,
    )


def test_pages_of_any_size() -> None:
    for page_size in (1, 3, 16):
        pages = -(-20 // page_size)
        caches = (randn(3 * pages, page_size, 2, 16), randn(3 * pages, page_size, 2, 16))
        table = torch.randperm(3 * pages).to(torch.int32).view(3, pages)
        lengths = torch.tensor([0, 17, 9], dtype=torch.int32)
        new = {"k": randn(3, 2, 2, 16), "v": randn(3, 2, 2, 16)}
        call(randn(3, 2, 4, 16), caches, cache_seqlens=lengths, block_table=table, causal=True, **new)


def test_lengths_as_an_int_or_left_out() -> None:
    caches = (randn(2, 12, 2, 16), randn(2, 12, 2, 16))
    q = randn(2, 3, 2, 16)
    call(q, caches, cache_seqlens=7)
    call(q, caches)
    whole = flash_attn.flash_attn_with_kvcache(q, *caches)
    assert isinstance(whole, Tensor)
    close(whole, expected(q, *caches)[0])


@pytest.mark.parametrize("lengths", [None, 6, [9, 2]])
def test_lse_follows_flash_attn_with_alibi(lengths: Any) -> None:
    """Keys are numbered behind the left padding there."""
    caches = (randn(2, 12, 2, 16), randn(2, 12, 2, 16))
    q, slopes, leftpad = randn(2, 3, 2, 16), random_slopes(2, 2), [1, 2]
    if isinstance(lengths, list):
        lengths = torch.tensor(lengths, dtype=torch.int32)
    new = {} if lengths is None else {"k": randn(2, 1, 2, 16), "v": randn(2, 1, 2, 16)}
    options: dict[str, Any] = {"causal": True, "window_size": random.choice([(-1, -1), (12, 5)])}
    pads = torch.tensor(leftpad, dtype=torch.int32)
    out, lse = call(q, caches, cache_seqlens=lengths, cache_leftpad=pads, alibi_slopes=slopes, **new, **options)
    ends = torch.as_tensor(12 if lengths is None else lengths + 1).expand(2).tolist()
    for b in range(2):
        k, v = (cache[b : b + 1, leftpad[b] : ends[b]] for cache in caches)
        options["window_size"] = (-1, -1)
        wanted, wanted_lse = expected(q[b : b + 1], k, v, alibi_slopes=slopes[b : b + 1], **options)
        close(out[b : b + 1], wanted)
        close(lse[b : b + 1], wanted_lse)


@pytest.mark.parametrize(("left", "shifted"), [(-1, True), (12, True), (11, False), (4, False)])
@pytest.mark.parametrize("page_size", [None, 4])
def test_alibi_shifts_lse_where_the_window_spans_the_capacity(page_size: int | None, left: int, shifted: bool) -> None:
    caches, slopes, q = (randn(2, 12, 2, 16), randn(2, 12, 2, 16)), random_slopes(4), randn(2, 3, 4, 16)
    options: dict[str, Any] = {"causal": True, "window_size": (left, -1), "alibi_slopes": slopes}
    k, v = (cache[:, :9] for cache in caches)
    limit = 0 if shifted else 10**6
    wanted, wanted_lse = expected(q, k, v, limit=limit, **options)
    if page_size is not None:
        options["block_table"] = torch.arange(6, dtype=torch.int32).view(2, 3)
        caches = tuple(cache.view(6, page_size, 2, 16) for cache in caches)
    out, lse = call(q, caches, cache_seqlens=9, **options)
    close(out, wanted)
    close(lse, wanted_lse)


def test_strided_new_tokens_are_copied_and_strided_caches_refused() -> None:
    caches = (randn(2, 12, 2, 16), randn(2, 12, 2, 16))
    q, k, v = (randn(2, 3, 16, 2).transpose(2, 3) for _ in "qkv")
    call(q, caches, k=k, v=v, cache_seqlens=4, causal=True)
    with pytest.raises(RuntimeError, match="k_cache"):
        flash_attn.flash_attn_with_kvcache(q, randn(2, 12, 16, 2).transpose(2, 3), caches[1])


# --- packed queries over pages ----------------------------------------------------------------------------------------

lengths = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 9)), min_size=1, max_size=4)


def paged(tokens: Tensor, lengths: list[int], page_size: int, table: Tensor) -> Tensor:
    """Packed tokens (total, H, D) in the pages that ``table`` gives each sequence; the rest of the pool is noise."""
    pool = randn(int(table.numel()) + 1, page_size, *tokens.shape[1:])
    for b, own in enumerate(tokens.split(lengths)):
        for position, token in enumerate(own):
            pool[table[b, position // page_size], position % page_size] = token
    return pool


@given(lengths=lengths, page_size=st.sampled_from([1, 2, 5]), chooser=st.randoms())
@settings(max_examples=30, deadline=None)
def test_varlen_over_pages(lengths: list[tuple[int, int]], page_size: int, chooser: random.Random) -> None:
    lengths_q, lengths_k = [list(side) for side in zip(*lengths)]
    batch = len(lengths)
    q, k, v = (randn(sum(lengths_q), 4, 16), randn(sum(lengths_k), 2, 16), randn(sum(lengths_k), 2, 16))
    columns = -(-max(*lengths_k, 1) // page_size)
    table = torch.randperm(batch * columns).to(torch.int32).view(batch, columns)
    pools = (paged(k, lengths_k, page_size, table), paged(v, lengths_k, page_size, table))
    options = random_options(4, batch, chooser, window_size=chooser.choice([(-1, -1), (2, 0), (1, 3)]))
    out, lse, dmask = flash_attn.flash_attn_varlen_func(
        q, *pools, offsets(lengths_q), offsets(lengths_k), max(lengths_q) + 1, max(lengths_k),
        block_table=table, return_attn_probs=True, **options,
    )  # fmt: skip
    wanted, wanted_lse = expected_varlen(q, k, v, lengths_q, lengths_k, limit=columns * page_size, **options)
    close(out, wanted)
    close(lse, wanted_lse)
    assert dmask.shape == (0,)


def test_used_keys_and_left_padding_of_packed_keys() -> None:
    lengths_q, lengths_k, used, pads = [2, 4, 1], [6, 9, 3], [4, 9, 0], [1, 0, 0]
    q, k, v = randn(7, 4, 16), randn(18, 2, 16), randn(18, 2, 16)
    int32 = torch.int32
    for causal in (False, True):
        for slopes in (None, random_slopes(3, 4)):
            out, lse, dmask, rng = _flash_attn_varlen_forward(
                q, k, v, offsets(lengths_q), offsets(lengths_k), 4, 9, 0.0, 0.25, causal, alibi_slopes=slopes,
                seqused_k=torch.tensor(used, dtype=int32), leftpad_k=torch.tensor(pads, dtype=int32),
            )  # fmt: skip
            kept = [slice(start + pad, start + use) for start, pad, use in zip([0, 6, 15], pads, used)]
            visible = [use - pad for pad, use in zip(pads, used)]
            wanted, wanted_lse = expected_varlen(
                q, torch.cat([k[part] for part in kept]), torch.cat([v[part] for part in kept]), lengths_q, visible,
                softmax_scale=0.25, causal=causal, alibi_slopes=slopes,
            )  # fmt: skip
            close(out, wanted)
            close(lse, wanted_lse)
            assert dmask.shape == (0,) and rng.shape == (2,)


def test_pages_have_no_dropout() -> None:
    pools, table = (randn(2, 4, 2, 16), randn(2, 4, 2, 16)), torch.zeros(1, 1, dtype=torch.int32)
    with pytest.raises(RuntimeError, match=r"dropout_p: got 0\.1"):
        flash_attn.flash_attn_varlen_func(
            randn(1, 2, 16), *pools, offsets([1]), offsets([3]), 1, 3, 0.1, block_table=table
        )


def test_a_forgotten_gradient_is_an_error() -> None:
    pools, table = (randn(2, 4, 2, 16), randn(2, 4, 2, 16)), torch.zeros(1, 1, dtype=torch.int32)
    q = randn(1, 2, 16, grad=True)
    out = flash_attn.flash_attn_varlen_func(q, *pools, offsets([1]), offsets([3]), 1, 3, block_table=table)
    with pytest.raises(RuntimeError, match="no gradient"):
        out.sum().backward()


# --- bad input leaves the cache alone ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"cache_seqlens": torch.tensor([5, 11], dtype=torch.int32)}, "cache_seqlens"),
        ({"cache_seqlens": None}, "cache_seqlens"),
        ({"cache_seqlens": torch.tensor([5, 6])}, "cache_seqlens"),
        ({"v": None}, "v"),
        ({"rotary_cos": torch.rand(6, 4), "rotary_sin": torch.rand(6, 4)}, "rotary_cos"),
        ({"rotary_cos": torch.rand(12, 9), "rotary_sin": torch.rand(12, 9)}, "rotary_cos"),
        ({"rotary_cos": torch.rand(12, 4)}, "rotary_sin"),
        ({"block_table": torch.tensor([[0, 1], [1, 7]], dtype=torch.int32)}, "block_table"),
        ({"window_size": (1, 2, 3)}, "window_size"),
        ({"softmax_scale": float("nan")}, "softmax_scale"),
        ({"num_splits": -1}, "num_splits"),
    ],
)
def test_errors_come_before_any_write(changes: dict[str, Any], named: str) -> None:
    caches = (randn(2, 12, 2, 16), randn(2, 12, 2, 16))
    before = [cache.clone() for cache in caches]
    arguments = {"k": randn(2, 2, 2, 16), "v": randn(2, 2, 2, 16), "cache_seqlens": 7} | changes
    if "block_table" in changes:
        arguments["cache_seqlens"] = 14
    with pytest.raises(RuntimeError, match=f"^{named}: got") as raised:
        flash_attn.flash_attn_with_kvcache(randn(2, 2, 2, 16), *caches, **arguments)
    assert isinstance(raised.value, ValueError)
    assert all(torch.equal(cache, held) for cache, held in zip(caches, before))


def test_too_long_for_its_pages_names_block_table() -> None:
    caches, table = (randn(4, 8, 2, 16), randn(4, 8, 2, 16)), torch.tensor([[2, 0]], dtype=torch.int32)
    with pytest.raises(RuntimeError, match="block_table gives a sequence 2 pages of 8 keys"):
        flash_attn.flash_attn_with_kvcache(randn(1, 1, 2, 16), *caches, cache_seqlens=17, block_table=table)
