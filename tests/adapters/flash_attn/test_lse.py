"""Between the lse of faops and that of flash-attn: dead rows, and the shift that ALiBi brings where causal."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from faops.adapters import flash_attn
from faops.adapters.flash_attn.conventions import Options
from faops.adapters.flash_attn.lse import dense_shift, flash_lse, plain_lse, shifting_slopes, varlen_shift
from tests.adapters.flash_attn.common import close, expected, expected_varlen, offsets, randn, random_slopes

CAUSAL_PATH = [  # of 9 keys
    (True, (-1, -1), True),
    (True, (-1, 4), True),
    (False, (-1, 0), True),
    (True, (9, -1), True),
    (True, (8, -1), False),
    (False, (8, 0), False),
    (False, (-1, -1), False),
    (False, (-1, 3), False),
    (False, (12, 3), False),
]


@pytest.mark.parametrize(("causal", "window", "shifts"), CAUSAL_PATH)
def test_where_alibi_shifts(causal: bool, window: tuple[int, int], shifts: bool) -> None:
    slopes = random_slopes(2, 4)
    options = Options(0.0, None, causal, window, 0.0, slopes, False)
    assert (shifting_slopes(options, 9) is slopes) == shifts
    q, k, v = randn(2, 6, 4, 16), randn(2, 9, 2, 16), randn(2, 9, 2, 16)
    arguments: dict[str, Any] = {"causal": causal, "window_size": window, "alibi_slopes": slopes}
    out, lse, _ = flash_attn.flash_attn_func(q, k, v, return_attn_probs=True, **arguments)
    wanted, wanted_lse = expected(q, k, v, **arguments)
    close(out, wanted)
    close(lse, wanted_lse)
    packed = (q.flatten(0, 1), k.flatten(0, 1)[:14], v.flatten(0, 1)[:14])
    lengths = ([7, 5], [9, 5])
    packing = (*map(offsets, lengths), 7, 9)
    out, lse, _ = flash_attn.flash_attn_varlen_func(*packed, *packing, return_attn_probs=True, **arguments)
    wanted, wanted_lse = expected_varlen(*packed, *lengths, **arguments)
    close(out, wanted)
    close(lse, wanted_lse)


def test_there_and_back() -> None:
    lse = torch.tensor([[[1.5, -torch.inf, 0.0]]])
    for shift in (None, torch.tensor([[[3.0, 1.0, -2.0]]])):
        theirs = flash_lse(lse, shift)
        assert theirs[0, 0, 1] == torch.inf
        assert torch.equal(plain_lse(theirs, shift), lse)


def test_the_shift_of_a_row_is_its_place_among_the_keys() -> None:
    slopes = random_slopes(3, 2)
    assert torch.equal(dense_shift(slopes, 2, 5), slopes[:, :, None] * torch.tensor([3, 4]))  # type: ignore[arg-type]
    keys = torch.tensor([2, 7, 4])
    places = torch.stack([keys - 2, keys - 1], -1)[:, None]
    assert torch.equal(dense_shift(slopes, 2, keys), slopes[:, :, None] * places)  # type: ignore[arg-type]
    shift = varlen_shift(slopes, 5, offsets([2, 0, 3]), keys)
    rows = torch.tensor([0, 0, 2, 2, 2])
    assert torch.equal(shift, (slopes[rows] * torch.tensor([0, 1, 1, 2, 3])[:, None]).T)  # type: ignore[arg-type]
    assert torch.equal(
        varlen_shift(slopes[0], 5, offsets([2, 0, 3]), keys)[0], slopes[0, 0] * torch.tensor([0, 1, 1, 2, 3])
    )  # type: ignore[index]
    assert dense_shift(None, 2, 5) is None and varlen_shift(None, 2, keys, keys) is None
