"""Edge cases that every kernel of our own has to get right, whichever backend it belongs to.

``backend`` is the one under test, which the caller has made able to run on CPU tensors; sizes are the caller's, so that
they fill more than one of its tiles.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

import faops
from tests.support import cumulative

SHORT_LENGTHS = [
    ([0, 0, 0], [0, 0, 0]),
    ([0, 5], [3, 0]),
    ([4, 0, 7], [0, 6, 2]),
    ([1], [1]),
    ([], []),
    ([3, 3], [0, 0]),
]
EMPTY_OPTIONS: list[dict[str, Any]] = [{}, {"causal": True, "sinks": torch.ones(2)}, {"dropout_p": 0.5}]


def packed(lengths_q: list[int], lengths_k: list[int]) -> list[Tensor]:
    """q, k, v and both cumulative lengths, with two heads of 16."""
    q, k, v = (torch.randn(sum(lengths), 2, 16).half() for lengths in (lengths_q, lengths_k, lengths_k))
    return [q, k, v, cumulative(lengths_q), cumulative(lengths_k)]


def check_sequences_alone(
    backend: str, lengths_q: list[int], lengths_k: list[int], causal: bool, longer: Sequence[int]
) -> None:
    """Packed sequences give what each gives alone, whatever the longest length is said to be above the true one."""
    for more in longer:
        q, k, v, cu_q, cu_k = packed(lengths_q, lengths_k)
        longest = max(lengths_q, default=0) + more, max(lengths_k, default=0) + more
        options = {"causal": causal, "return_lse": True, "backend": backend}
        out, lse = faops.attention_varlen(q, k, v, cu_q, cu_k, *longest, **options)
        assert out.shape == q.shape
        assert lse.shape == (2, sum(lengths_q))
        for rows, keys in zip(pairwise(cu_q.tolist()), pairwise(cu_k.tolist())):
            mine, seen = slice(*rows), slice(*keys)
            if rows[0] == rows[1]:
                continue
            alone, alone_lse = faops.attention(q[None, mine], k[None, seen], v[None, seen], **options)
            assert torch.equal(out[mine], alone[0])
            assert torch.equal(lse[:, mine], alone_lse[0])


def check_rows_behind_the_last_sequence(backend: str, longest: int, behind: int) -> None:
    """They get out 0 and lse -inf, whatever lies there."""
    q, k, v, cu_q, cu_k = packed([5, longest], [6, 3])
    more = [torch.cat([tensor, torch.full((behind, 2, 16), math.nan).half()]) for tensor in (q, k, v)]
    used = 5 + longest
    for lse_too in (False, True):
        options = {"return_lse": lse_too, "backend": backend}
        found = faops.attention_varlen(*more, cu_q, cu_k, longest, 6, **options)
        expected = faops.attention_varlen(q, k, v, cu_q, cu_k, longest, 6, **options)
        out, wanted = (found[0], expected[0]) if lse_too else (found, expected)
        assert torch.equal(out[:used], wanted)
        assert torch.equal(out[used:], torch.zeros(behind, 2, 16).half())
        if lse_too:
            assert torch.equal(found[1][:, :used], expected[1])
            assert torch.equal(found[1][:, used:], torch.full((2, behind), -math.inf))


def check_neighbours(backend: str, length: int) -> None:
    """Infinite keys and values next door leave a sequence's result as it was."""
    between = length + length // 3
    lengths_q = [length, length // 3, length]
    q, k, v, cu_q, cu_k = packed(lengths_q, [length, length // 3, length - 4])
    expected = faops.attention_varlen(q, k, v, cu_q, cu_k, length, length, backend=backend)
    k[length:between], v[length:between] = math.inf, math.inf
    found = faops.attention_varlen(q, k, v, cu_q, cu_k, length, length, backend=backend)
    assert torch.equal(found[:length], expected[:length])
    assert torch.equal(found[between:], expected[between:])
    assert not found[length:between].isfinite().all()


def check_packed_dropout(backend: str, keys: int) -> None:
    """The dropout mask of a packed batch is the dense one's."""
    B, M, N = 2, 17, keys
    q, k, v = (torch.randn(B, length, heads, 16).half() for length, heads in ((M, 2), (N, 1), (N, 1)))
    generators = [torch.Generator().manual_seed(2) for _ in range(2)]
    options = {"dropout_p": 0.4, "causal": True, "backend": backend}
    dense = faops.attention(q, k, v, generator=generators[0], **options)
    cu_q, cu_k = cumulative([M] * B), cumulative([N] * B)
    flat = (tensor.flatten(0, 1) for tensor in (q, k, v))
    found = faops.attention_varlen(*flat, cu_q, cu_k, M, N, generator=generators[1], **options)
    assert torch.equal(found, dense.flatten(0, 1))


def check_rows_without_a_key(backend: str, keys: int, return_lse: bool) -> None:
    """Through causal with more rows than keys and through masks: out 0 and lse -inf, a sink notwithstanding."""
    q, k, v = (torch.randn(2, length, 1, 16).half() for length in (2 * keys, keys, keys))
    mask = torch.ones(2, 1, 1, keys, dtype=torch.bool)
    mask[1] = False
    everything, second = (slice(None), slice(0, keys)), (slice(1, 2), slice(None))
    calls: list[tuple[dict[str, Any], tuple[slice, slice]]] = [
        ({"causal": True}, everything),
        ({"causal": True, "sinks": torch.randn(1)}, everything),
        ({"mask": mask, "sinks": torch.randn(1)}, second),
        ({"mask": mask, "causal": True, "alibi_slopes": torch.rand(1), "dropout_p": 0.3}, second),
    ]
    for options, (batches, rows) in calls if return_lse else calls[:1]:
        result = faops.attention(q, k, v, return_lse=return_lse, backend=backend, **options)
        out, lse = result if return_lse else (result, None)
        assert torch.equal(out[batches, rows], torch.zeros_like(out[batches, rows])), options
        assert not out.isnan().any()
        assert out[0, -1].any()
        if lse is not None:
            dead = lse[batches, :, rows]
            assert torch.equal(dead, torch.full_like(dead, -math.inf)), options


def check_empty_sizes(backend: str, options: dict[str, Any]) -> None:
    """No batch, no row or no key: shapes as always, out 0 and lse -inf."""
    for batch, M, N in ((0, 3, 4), (2, 0, 4), (2, 3, 0), (2, 0, 0), (0, 0, 0)):
        q = torch.randn(batch, M, 2, 16).half()
        k, v = torch.randn(batch, N, 1, 16).half(), torch.randn(batch, N, 1, 6).half()
        out, lse = faops.attention(q, k, v, return_lse=True, backend=backend, **options)
        assert out.shape == (batch, M, 2, 6)
        assert torch.equal(out, torch.zeros_like(out))
        assert torch.equal(lse, torch.full((batch, 2, M), -math.inf))
