"""What is hidden, as the operators are told it: polarity, modes, the one compressed mask, and what is refused."""

from __future__ import annotations

import random

import pytest
import torch

from faops.backends.npu import masks
from faops.problem import AttentionProblem, Band
from faops.reference import in_band

CPU = torch.device("cpu")


def visible(band: Band, seqlen_q: int, seqlen_k: int) -> torch.Tensor:
    rows = torch.arange(seqlen_q)[:, None] + seqlen_k - seqlen_q
    return in_band(torch.arange(seqlen_k) - rows, band)


def random_bands() -> list[tuple[Band, int, int]]:
    found = []
    for _ in range(60):
        seqlen_q, seqlen_k = random.randint(1, 9), random.randint(1, 9)
        band = Band(random.choice((-1, 0, 1, 3, 8)), random.choice((-1, 0, 1, 3, 8)))
        found.append((band, seqlen_q, seqlen_k))
    return found


def test_the_compressed_mask_is_a_triangle_of_hidden_pairs_made_once() -> None:
    mask = masks.compressed(CPU)
    assert mask.shape == (2048, 2048) and mask.dtype == torch.bool
    assert mask[0, 1] and not mask[0, 0] and not mask[1, 0] and int(mask[3].sum()) == 2044
    assert masks.compressed(torch.device("cpu")) is mask
    with torch.inference_mode():
        masks.compressed.cache_clear()
        assert not masks.compressed(CPU).is_inference()  # a later training step may use it


def test_outside_hides_what_the_band_does_not_show() -> None:
    for band, seqlen_q, seqlen_k in random_bands():
        assert torch.equal(masks.outside(band, seqlen_q, seqlen_k, CPU), ~visible(band, seqlen_q, seqlen_k))


def test_dead_rows_are_the_first_ones_and_no_others() -> None:
    for band, seqlen_q, seqlen_k in random_bands():
        alive = visible(band, seqlen_q, seqlen_k).any(-1)
        dead = masks.dead_rows(seqlen_q, seqlen_k, band)
        assert alive.tolist() == [False] * dead + [True] * (seqlen_q - dead), (band, seqlen_q, seqlen_k)
    assert masks.dead_rows(4, 0, Band()) == 4


def test_a_band_goes_with_a_mask_always() -> None:
    """Without atten_mask the operators ignore sparse_mode and both sides, and attend to everything."""
    for band, seqlen_q, seqlen_k in random_bands():
        for encoding in masks.ENCODINGS:
            words = masks.of_band(band, seqlen_q, seqlen_k, CPU, encoding)
            assert ("atten_mask" in words) == (not band.full)
            if band.full:
                assert words == {"sparse_mode": 0}


@pytest.mark.parametrize(
    ("band", "expected"),
    [
        (Band(-1, 0), {"sparse_mode": 3}),
        (Band(2, 0), {"sparse_mode": 4, "pre_tokens": 2, "next_tokens": 0}),
        (Band(2, 1), {"sparse_mode": 4, "pre_tokens": 2, "next_tokens": 1}),
        (Band(-1, 1), {"sparse_mode": 4, "pre_tokens": 7, "next_tokens": 1}),
        (Band(2, -1), {"sparse_mode": 4, "pre_tokens": 2, "next_tokens": 5}),
    ],
)
def test_modes_are_aligned_bottom_right(band: Band, expected: dict[str, int]) -> None:
    words = masks.of_band(band, 5, 7, CPU, "compressed")
    assert words.pop("atten_mask") is masks.compressed(CPU)
    assert words == expected


def test_full_masks_and_their_sides_agree() -> None:
    """Mode 0 skips what lies outside of its sides, which count from the top left corner."""
    seen = set()
    for band, seqlen_q, seqlen_k in random_bands():
        words = masks.of_band(band, seqlen_q, seqlen_k, CPU, "full")
        if band.full:
            continue
        seen.add(words["sparse_mode"])
        assert torch.equal(words["atten_mask"], ~visible(band, seqlen_q, seqlen_k))
        if words["sparse_mode"] == 0:
            ahead = torch.arange(seqlen_k) - torch.arange(seqlen_q)[:, None]
            computed = (ahead >= -words["pre_tokens"]) & (ahead <= words["next_tokens"])
            assert bool((computed | words["atten_mask"]).all())
            assert words["pre_tokens"] >= 0
    assert seen == {0, 1}


def test_polarity_is_turned_and_only_shapes_that_operators_take_are_made() -> None:
    batch, heads, seqlen_q, seqlen_k = 2, 3, 4, 5
    for _ in range(40):
        shape = [random.choice((1, size)) for size in (batch, heads, seqlen_q, seqlen_k)]
        mask, band = torch.rand(shape) < 0.6, Band(random.choice((-1, 1)), random.choice((-1, 0)))
        hidden = masks.hide(mask, band, batch, heads, seqlen_q, seqlen_k)
        assert hidden.is_contiguous()
        assert tuple(hidden.shape) in {(1, 1, 4, 5), (2, 1, 4, 5), (2, 3, 4, 5)}  # never (B, 1, 1, N) or (1, H, M, N)
        shown = (mask & visible(band, seqlen_q, seqlen_k)).expand(batch, heads, seqlen_q, seqlen_k)
        assert torch.equal(hidden.expand_as(shown), ~shown)


def test_mask_bytes_count_what_is_made() -> None:
    sizes = {"batch": 2, "heads_q": 3, "heads_kv": 3, "seqlen_q": 4, "seqlen_k": 5}
    full = dict(zip("bhmn", (2, 3, 4, 5)))
    for pattern in ("bhmn", "b..n", "..mn", ".h.n", "...n", "b.m."):
        mask = torch.ones([full[letter] if letter != "." else 1 for letter in pattern], dtype=torch.bool)
        made = masks.hide(mask, Band(), 2, 3, 4, 5)
        assert masks.mask_bytes(AttentionProblem(mask=pattern, **sizes)) == made.numel()
    assert masks.mask_bytes(AttentionProblem(**sizes)) == 0
