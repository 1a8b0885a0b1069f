"""AttentionProblem and Band: counting, cache keys, text forms."""

from __future__ import annotations

import random
from dataclasses import fields, replace

import pytest
import torch

from faops.errors import ArgumentError, FaopsError, PlanError
from faops.problem import (
    DTYPES,
    AttentionProblem,
    Band,
    broadcast_pattern,
    dtype_name,
    parse_shape,
    require_dtype,
)


def visible(band: Band, M: int, N: int) -> torch.Tensor:
    """The band drawn pair by pair, from the definition."""
    shown = torch.zeros(M, N, dtype=torch.bool)
    for i in range(M):
        for j in range(N):
            diagonal = i + N - M
            shown[i, j] = (band.left == -1 or j >= diagonal - band.left) and (
                band.right == -1 or j <= diagonal + band.right
            )
    return shown


def random_bands() -> list[tuple[Band, int, int]]:
    sides = [-1, 0, 1, 2, 5, 40]
    return [(Band(left, right), random.randint(0, 12), random.randint(0, 12)) for left in sides for right in sides]


def test_causal_forces_the_right_side() -> None:
    assert Band.of(True, (-1, -1)) == Band(-1, 0)
    assert Band.of(True, (3, 5)) == Band(3, 0)
    assert Band.of(False, (3, 5)) == Band(3, 5)
    assert Band.of(True, (-1, -1)).causal
    assert not Band.of(True, (3, -1)).causal
    assert Band.of(False, (-1, -1)).full


def test_visible_pairs_counts_what_is_drawn() -> None:
    for _ in range(5):
        for band, M, N in random_bands():
            assert band.visible_pairs(M, N) == int(visible(band, M, N).sum()), (band, M, N)


def test_visible_pairs_needs_no_loop() -> None:
    n = 10**9
    assert Band(-1, 0).visible_pairs(n, n) == n * (n + 1) // 2


def test_keys_of_rows_encloses_what_is_drawn() -> None:
    """No visible key is left out, and the range is as tight as the rows inside the band allow."""
    for band, M, N in random_bands():
        shown = visible(band, M, N)
        for _ in range(5):
            first = random.randint(0, M)
            last = random.randint(first, M)
            low, high = band.keys_of_rows(first, last, M, N)
            assert 0 <= low <= high or low >= N
            keys = shown[first:last].any(0).nonzero().flatten().tolist()
            if keys:
                assert (low, high) == (keys[0], keys[-1] + 1), (band, M, N, first, last)


def test_hides_within_is_true_exactly_for_edge_tiles() -> None:
    for band, M, N in random_bands():
        if M == 0 or N == 0:
            continue
        shown = visible(band, M, N)
        for _ in range(10):
            i0, j0 = random.randrange(M), random.randrange(N)
            i1, j1 = random.randint(i0 + 1, M), random.randint(j0 + 1, N)
            assert band.hides_within(i0, i1, j0, j1, M, N) == (not shown[i0:i1, j0:j1].all()), (
                band,
                M,
                N,
                i0,
                i1,
                j0,
                j1,
            )


def test_simplify_drops_sides_that_hide_nothing() -> None:
    for band, M, N in random_bands():
        simple = band.simplify(M, N)
        assert torch.equal(visible(simple, M, N), visible(band, M, N)), (band, M, N)
        assert simple.left in (band.left, -1)
        assert simple.right in (band.right, -1)
    assert Band(100, 100).simplify(8, 8).full
    assert Band(-1, 0).simplify(1, 64).full
    assert Band(6, 0).simplify(8, 8) == Band(6, 0)


@pytest.mark.parametrize(
    ("shape", "pattern"),
    [
        (None, ""),
        ((2, 4, 8, 16), "bhmn"),
        ((1, 4, 1, 16), ".h.n"),
        ((8, 16), "..mn"),
        ((16,), "...n"),
        ((1, 1, 1, 1), "...."),
        ((0, 1, 1, 3), "b..n"),
    ],
)
def test_broadcast_pattern(shape: tuple[int, ...] | None, pattern: str) -> None:
    assert broadcast_pattern(shape) == pattern


BASE = AttentionProblem(batch=2, seqlen_q=100, seqlen_k=200, heads_q=8, heads_kv=2)
CHANGED = {
    "op": "backward", "dtype": "bfloat16", "batch": 3, "seqlen_q": 129, "seqlen_k": 257, "heads_q": 16, "heads_kv": 4,
    "head_dim": 128, "head_dim_v": 32, "layout": "varlen", "band": Band(-1, 0), "softcap": True, "alibi": True,
    "bias": "bhmn", "mask": "b..n", "sinks": True, "dropout": True, "need_lse": True, "lse_grad": True,
    "bias_grad": True, "deterministic": True, "fp8_descale": True, "page_size": 16, "append": True,
    "rotary": "half", "leftpad": True, "batch_index": True,
}  # fmt: skip


def test_every_field_changes_the_key_and_the_text() -> None:
    assert set(CHANGED) == {item.name for item in fields(AttentionProblem)}
    variants = [BASE, *(replace(BASE, **{name: value}) for name, value in CHANGED.items())]
    assert len({problem.key() for problem in variants}) == len(variants)
    assert len({str(problem) for problem in variants}) == len(variants)
    assert len(set(variants)) == len(variants)


def test_key_tells_two_values_of_one_field_apart() -> None:
    pairs = [
        {"bias": "b..n"}, {"bias": "....",}, {"mask": "....",}, {"mask": "bhmn"}, {"rotary": "interleaved"},
        {"rotary": "half"}, {"page_size": 1}, {"page_size": 256}, {"band": Band(0, -1)}, {"band": Band(-1, 0)},
        {"band": Band(0, 0)}, {"band": Band(64, 0)}, {"band": Band(128, 0)}, {"layout": "paged"}, {"op": "decode"},
    ]  # fmt: skip
    assert len({replace(BASE, **change).key() for change in pairs}) == len(pairs)


def test_sizes_in_one_bucket_share_a_key() -> None:
    assert BASE.key() == replace(BASE, seqlen_q=65, seqlen_k=129).key()
    assert BASE.key() != replace(BASE, seqlen_q=64).key()
    assert replace(BASE, batch=1).key() != BASE.key()
    for size in (0, 1, 2, 3, 1023, 1024, 1025, 2**31 - 1, 2**31 + 1):
        bucket = replace(BASE, seqlen_k=size).bucket().seqlen_k
        assert size <= bucket < max(2, 2 * size)
        assert bucket & (bucket - 1) == 0


def test_bucket_is_its_own_bucket() -> None:
    for name, value in CHANGED.items():
        bucket = replace(BASE, **{name: value}).bucket()
        assert bucket.bucket() == bucket


def test_dict_round_trip() -> None:
    for problem in (BASE, replace(BASE, **CHANGED)):
        assert AttentionProblem.from_dict(problem.as_dict()) == problem


def test_flops_count_visible_pairs_only() -> None:
    full = AttentionProblem(batch=2, seqlen_q=4, seqlen_k=4, heads_q=3, heads_kv=3, head_dim=8, head_dim_v=16)
    assert full.flops() == 2 * (2 * 3 * 16) * (8 + 16)
    causal = replace(full, band=Band(-1, 0))
    assert causal.flops() == 2 * (2 * 3 * 10) * (8 + 16)
    assert replace(causal, op="backward").flops() == causal.flops() * 5 // 2


def test_bytes_moved_counts_each_operand_once() -> None:
    problem = AttentionProblem(
        dtype="bfloat16", batch=2, seqlen_q=3, seqlen_k=5, heads_q=4, heads_kv=2, head_dim=8, head_dim_v=16
    )
    q, k, v, out, lse = 2 * 3 * 4 * 8, 2 * 5 * 2 * 8, 2 * 5 * 2 * 16, 2 * 3 * 4 * 16, 2 * 3 * 4
    assert problem.bytes_moved() == 2 * (q + k + v + out)
    assert replace(problem, need_lse=True).bytes_moved() == 2 * (q + k + v + out) + 4 * lse


def test_parse_shape_reads_all_names() -> None:
    problem = parse_shape(
        "b=2, sq=16, sk=32, h=8, hk=2, d=64, dv=32, dtype=bf16, causal=1, window=8:4, bias=.h.n, softcap=yes,"
        "dropout=1, op=backward, layout=varlen"
    )
    assert problem == AttentionProblem(
        op="backward", dtype="bfloat16", batch=2, seqlen_q=16, seqlen_k=32, heads_q=8, heads_kv=2, head_dim=64,
        head_dim_v=32, layout="varlen", band=Band(8, 0), softcap=True, bias=".h.n", dropout=True,
    )  # fmt: skip


def test_parse_shape_fills_in() -> None:
    problem = parse_shape("sq=128,h=4,d=64")
    assert (problem.seqlen_k, problem.heads_kv, problem.head_dim_v, problem.batch) == (128, 4, 64, 1)
    assert parse_shape("sq=1,sk=128,h=4,d=64,causal=1").band.full
    paged = parse_shape("op=decode,sq=1,sk=128,h=4,d=64,page_size=16")
    assert (paged.layout, paged.page_size) == ("paged", 16)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("sq=8,h=2", "d is needed|head_dim is missing"),
        ("h=2,d=8", "seqlen_q"),
        ("sq=8,d=8", "heads_q"),
        ("sq=8,h=2,d=8,frobnicate=1", "frobnicate"),
        ("sq=eight,h=2,d=8", "eight"),
        ("sq=0,h=2,d=8", "sq=0"),
        ("sq=-4,h=2,d=8", "sq=-4"),
        ("sq=8,h=3,hk=2,d=8", "h=3"),
        ("sq=8,h=2,d=8,dtype=int8", "int8"),
        ("sq=8,h=2,d=8,causal=maybe", "maybe"),
        ("sq=8,h=2,d=8,window=4", "window='4'"),
        ("sq=8,h=2,d=8,window=-2:0", "-2:0"),
        ("sq=8,h=2,d=8,op=sideways", "sideways"),
        ("sq=8,h=2,d=8,layout=odd", "odd"),
        ("sq=8,h=2,d=8,op=decode,layout=paged", "page_size go together"),
        ("sq=8,h=2,d=8,op=decode,layout=dense,page_size=16", "page_size go together"),
        ("sq=8,h=2,d=8,page_size=16", "op=decode, not of op=forward"),
        ("sq", "sq"),
    ],
)
def test_parse_shape_names_what_is_wrong(text: str, named: str) -> None:
    with pytest.raises(PlanError, match=named):
        parse_shape(text)


def test_dtype_names() -> None:
    assert dtype_name("bf16") == "bfloat16"
    for name, dtype in DTYPES.items():
        assert dtype_name(name) == name
        assert require_dtype("q", dtype) == name
    with pytest.raises(PlanError, match="int4"):
        dtype_name("int4")
    with pytest.raises(ArgumentError, match=r"q: got torch\.int32"):
        require_dtype("q", torch.int32)


def test_argument_error_is_a_value_error() -> None:
    error = ArgumentError("window", (-2, 0), "two sides of -1 or more")
    assert isinstance(error, ValueError)
    assert isinstance(error, FaopsError)
    assert str(error) == "window: got (-2, 0), expected two sides of -1 or more"
