"""Features together, forward and backward: every pair, and in the long run any number of them."""

from __future__ import annotations

import itertools
import random

import pytest

from tests.support import DTYPES, FEATURES, check, compatible, make_case

pytestmark = pytest.mark.usefixtures("poisoned")

PAIRS = [pair for pair in itertools.combinations(FEATURES, 2) if compatible(pair)]


@pytest.mark.parametrize("pair", PAIRS, ids="+".join)
def test_pair(pair: tuple[str, ...]) -> None:
    case = make_case(*pair, dtype=random.choice(DTYPES), seqlen_q=random.randint(1, 80), seqlen_k=random.randint(1, 80))
    check(case, backend=random.choice([None, "torch.blockwise"]))


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("pair", PAIRS, ids="+".join)
def test_pair_over_many_tiles(pair: tuple[str, ...]) -> None:
    case = make_case(
        *pair, dtype=random.choice(DTYPES), seqlen_q=random.randint(20, 80), seqlen_k=random.randint(40, 90)
    )
    check(case, backend="torch.blockwise")


@pytest.mark.full
@pytest.mark.parametrize("number", range(400))
def test_any_combination(number: int) -> None:
    features = tuple(random.sample(list(FEATURES), random.randint(3, 9)))
    while not compatible(features):
        features = tuple(random.sample(list(FEATURES), random.randint(3, 9)))
    case = make_case(
        *features, dtype=random.choice(DTYPES), seqlen_q=random.randint(1, 700), seqlen_k=random.randint(1, 700),
        head_dim=random.choice([8, 40, 64, 96, 128, 256]),
    )  # fmt: skip
    check(case, backend=random.choice([None, "torch.blockwise"]))
