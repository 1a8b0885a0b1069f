"""KVCache and PagedKVCache as containers: what they hold, give back and refuse."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch

import faops
from faops.errors import ArgumentError, FaopsError, OutOfPagesError
from faops.nn import KVCache, PagedKVCache
from tests.test_package import MODULES, imports

HK, D, DV = 2, 4, 6


def fill(cache: KVCache, counts: list[int]) -> list[list[float]]:
    """Append tokens of random numbers by their slots; the numbers of each sequence."""
    step = cache.append(counts)
    numbers = torch.rand(step.total)
    for tensor in (cache.k, cache.v):
        tensor[1].flatten(0, 1)[step.slots] = numbers[:, None, None].expand(-1, *tensor.shape[3:])
    return [part.tolist() for part in numbers.split(counts)]


def held(cache: KVCache) -> list[list[float]]:
    for tensor in (cache.k, cache.v):
        assert torch.equal(tensor[..., :1, :1].expand_as(tensor), tensor)
    assert torch.equal(cache.k[..., 0, 0], cache.v[..., 0, 0])
    return [cache.k[1, row, :length, 0, 0].tolist() for row, length in enumerate(cache.lengths)]


def test_a_dense_cache_against_lists() -> None:
    """Appending, truncating and reordering at random, as a beam search with guesses does."""
    cache = KVCache(3, 30, HK, D, DV, layers=2)
    model: list[list[float]] = [[], [], []]
    for _ in range(40):
        action = random.choice(("append", "append", "truncate", "reorder"))
        if action == "append":
            counts = [random.randint(0, 5) for _ in range(3)]
            if any(len(tokens) + count > 30 for tokens, count in zip(model, counts)):
                before = cache.lengths
                with pytest.raises(ArgumentError, match=r"counts: got \d, expected at most \d+ for sequence \d, which"):
                    cache.append(counts)
                assert cache.lengths == before
                continue
            for tokens, new in zip(model, fill(cache, counts)):
                tokens += new
        elif action == "truncate":
            lengths = [random.randint(0, len(tokens)) for tokens in model]
            cache.truncate(lengths)
            model = [tokens[:length] for tokens, length in zip(model, lengths)]
        else:
            sources = [random.randrange(3) for _ in range(3)]
            cache.reorder(sources)
            model = [list(model[source]) for source in sources]
        assert held(cache) == model
        assert cache.cache_seqlens.tolist() == list(cache.lengths) == [len(tokens) for tokens in model]
    assert cache.cache_seqlens.dtype == torch.int32
    cache.reset()
    assert cache.lengths == (0, 0, 0)
    cache.append(30)


def test_a_dense_cache_is_what_a_kernel_takes() -> None:
    cache, step_cache = KVCache(2, 9, HK, D, DV), KVCache(2, 9, HK, D, DV)
    new = [torch.randn(2, 3, 4, D), torch.randn(2, 3, HK, D), torch.randn(2, 3, HK, DV)]
    direct = faops.attention_with_kvcache(
        new[0], cache.k[0], cache.v[0], *new[1:], cache_seqlens=cache.cache_seqlens, causal=True
    )
    torch.testing.assert_close(direct, step_cache.append(3).attend(0, *new))
    assert torch.equal(cache.k, step_cache.k) and torch.equal(cache.v, step_cache.v)


def test_a_paged_cache_is_what_a_kernel_takes() -> None:
    cache = PagedKVCache(7, 2, HK, D, DV)
    sequences = [cache.allocate(), cache.allocate()]
    counts = [5, 3]
    new = [torch.randn(8, 4, D), torch.randn(8, HK, D), torch.randn(8, HK, DV)]
    cache.append(sequences, counts).attend(0, *new)
    q = torch.randn(2, 1, 4, D)
    out = faops.attention_with_kvcache(
        q,
        cache.k[0],
        cache.v[0],
        cache_seqlens=cache.cache_seqlens(sequences),
        block_table=cache.block_table(sequences),
    )
    for row, part in enumerate(zip(*(tensor.split(counts) for tensor in new[1:]))):
        torch.testing.assert_close(out[row], faops.attention(q[row : row + 1], *(tensor[None] for tensor in part))[0])


def test_room_is_counted() -> None:
    cache = PagedKVCache(10, 4, HK, D, DV, layers=3, dtype=torch.float16)
    assert cache.nbytes == 3 * 10 * 4 * HK * (D + DV) * 2
    assert KVCache(2, 9, HK, D, dtype=torch.float64).nbytes == 2 * 9 * HK * 2 * D * 8
    assert [cache.pages_for(tokens) for tokens in (0, 1, 4, 5)] == [0, 1, 1, 2]
    sequence = cache.allocate(9)
    assert (cache.pages, cache.page_size, cache.used_pages, cache.free_pages) == (10, 4, 3, 7)
    assert cache.sequences == (sequence,)
    assert "<PagedKVCache 3 of 10 pages of 4 tokens used by 1 sequences, 3 layers, float16 on cpu>" in repr(cache)
    assert repr(sequence) == "<CachedSequence 0: 0 tokens in 3 pages>"
    cache.free(sequence)
    assert repr(sequence) == "<CachedSequence 0: freed>" and sequence.freed and sequence.length == 0
    dense = KVCache(2, 9, HK, D)
    dense.append([4, 1])
    assert repr(dense) == "<KVCache 1 to 4 of 9 tokens in 2 sequences, 1 layers, float32 on cpu>"


def test_forks_share_pages_until_they_write() -> None:
    cache = PagedKVCache(10, 4, HK, D, DV)
    parent = cache.allocate()
    cache.append([parent], 10)
    children = [cache.fork(parent) for _ in range(3)]
    assert cache.used_pages == 3 and all(child.pages == parent.pages for child in children)
    cache.append(children, 1)
    assert cache.used_pages == 6  # a last page for each child
    cache.append([parent], 2)
    assert cache.used_pages == 6  # the parent's own by now
    assert len({sequence.pages[2] for sequence in (parent, *children)}) == 4
    assert len({sequence.pages[:2] for sequence in (parent, *children)}) == 1
    with pytest.raises(OutOfPagesError, match="8 pages needed, 4 free"):
        cache.append([parent, *children], 8)
    cache.free(parent)
    assert cache.used_pages == 5 and cache.sequences == tuple(children)


def test_the_last_of_those_who_leave_a_shared_page_keeps_it() -> None:
    cache = PagedKVCache(5, 4, HK, D, DV)
    parent = cache.allocate()
    cache.append([parent], 6)
    children = [cache.fork(parent) for _ in range(3)]
    cache.append([parent, *children], 0)
    assert cache.used_pages == 2  # nothing is written, nothing is copied
    cache.append([parent, *children], 2)  # takes all three free pages and no fourth
    assert cache.free_pages == 0
    assert len({sequence.pages[1] for sequence in (parent, *children)}) == 4


def test_many_sequences_and_long_ones() -> None:
    """More of both than the table has room for at first."""
    cache = PagedKVCache(200, 1, 1, 1)
    sequences = [cache.allocate() for _ in range(40)]
    cache.append(sequences, 3)
    cache.append(sequences[:2], [30, 20])
    assert cache.block_table(sequences).shape == (40, 64) and cache.block_table(sequences[1:2]).shape == (1, 32)
    assert cache.block_table([]).shape == (0, 1)
    for sequence, row in zip(sequences, cache.block_table(sequences).tolist()):
        assert row[: sequence.length] == list(sequence.pages) and not any(row[sequence.length :])
    used = [page for sequence in sequences for page in sequence.pages]
    assert len(set(used)) == len(used) == cache.used_pages == 170


BAD_PAGED: dict[str, tuple[Callable[[PagedKVCache, Any, Any], Any], str]] = {
    "twice": (lambda cache, a, b: cache.append([a, a], 1), "sequences: got .*, expected each sequence once"),
    "foreign": (lambda cache, a, b: cache.append([a, b], 1), "sequence: got <CachedSequence 0: 3 tokens in 2 pages>"),
    "foreign free": (lambda cache, a, b: cache.free(b), "a sequence that this cache allocated"),
    "foreign table": (lambda cache, a, b: cache.block_table([b]), "a sequence that this cache allocated"),
    "no sequence": (lambda cache, a, b: cache.fork(0), "sequence: got 0"),
    "counts": (lambda cache, a, b: cache.append([a], [1, 2]), "counts: got 2 numbers, expected one for each of 1"),
    "negative": (lambda cache, a, b: cache.append([a], -1), "counts: got -1"),
    "a float": (lambda cache, a, b: cache.append([a], [1.0]), "counts: got 1.0"),
    "a bool": (lambda cache, a, b: cache.append([a], True), "counts: got True"),
    "longer": (lambda cache, a, b: cache.truncate(a, 6), "length: got 6, expected between 0 and 5"),
    "negative length": (lambda cache, a, b: cache.truncate(a, -1), "length: got -1"),
    "tokens": (lambda cache, a, b: cache.allocate(-1), "tokens: got -1"),
    "fork tokens": (lambda cache, a, b: cache.fork(a, 1.5), "tokens: got 1.5"),
    "pages": (lambda cache, a, b: PagedKVCache(0, 4, HK, D), "pages: got 0"),
    "page size": (lambda cache, a, b: PagedKVCache(4, 0, HK, D), "page_size: got 0"),
    "layers": (lambda cache, a, b: PagedKVCache(4, 4, HK, D, layers=0), "layers: got 0"),
}


@pytest.mark.parametrize("bad", BAD_PAGED)
def test_what_a_paged_cache_refuses(bad: str) -> None:
    cache, other = PagedKVCache(9, 2, HK, D, DV), PagedKVCache(9, 2, HK, D, DV)
    first, second = cache.allocate(), other.allocate()
    cache.append([first], 5)
    other.append([second], 3)
    call, words = BAD_PAGED[bad]
    with pytest.raises(ArgumentError, match=words):
        call(cache, first, second)
    assert (first.length, second.length, cache.used_pages, other.used_pages) == (5, 3, 3, 2)
    assert len(cache.sequences) == 1


BAD_DENSE: dict[str, tuple[Callable[[KVCache], Any], str]] = {
    "full": (
        lambda cache: cache.append([1, 5]),
        "got 5, expected at most 4 for sequence 1, which holds 5 of 9",
    ),
    "counts": (lambda cache: cache.append([1]), "counts: got 1 numbers"),
    "longer": (lambda cache: cache.truncate([2, 6]), "lengths: got 6, expected at most 5, the length of sequence 1"),
    "sources": (lambda cache: cache.reorder([0, 2]), "sources: got 2, expected a sequence of a batch of 2"),
    "too few sources": (lambda cache: cache.reorder([0]), "sources: got 1 numbers"),
    "batch": (lambda cache: KVCache(0, 4, HK, D), "batch: got 0"),
    "capacity": (lambda cache: KVCache(4, 0, HK, D), "capacity: got 0"),
}


@pytest.mark.parametrize("bad", BAD_DENSE)
def test_what_a_dense_cache_refuses(bad: str) -> None:
    cache = KVCache(2, 9, HK, D, DV)
    cache.append([3, 5])
    call, words = BAD_DENSE[bad]
    with pytest.raises(ArgumentError, match=words):
        call(cache)
    assert cache.lengths == (3, 5)


def test_the_error_is_one_of_faops() -> None:
    assert issubclass(OutOfPagesError, FaopsError) and issubclass(OutOfPagesError, RuntimeError)
    assert str(OutOfPagesError(1, 0)) == "1 page needed, 0 free"


def test_the_rest_of_the_library_does_without_the_modules() -> None:
    for module, path in MODULES.items():
        if not module.startswith(("faops.nn", "faops.adapters")):
            assert not [name for name in imports(path, module, inside_functions=True) if name.startswith("faops.nn")]
