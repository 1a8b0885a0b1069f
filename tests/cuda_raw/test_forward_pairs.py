"""Features together in the raw CUDA forward kernels, and every config of their tuning spaces, against the oracle."""

from __future__ import annotations

import itertools
import random

import pytest
import torch

from faops.backends.cuda_raw.space import space
from faops.backends.cuda_raw.tiles import make_config, shared_bytes
from faops.device import known
from faops.problem import AttentionProblem
from faops.registry import Config
from tests.cuda_raw.support import (
    BFLOAT,
    HALF,
    TYPED_CARDS,
    check_on,
    kernel_of,
    rotate,
)
from tests.support import FORWARD, Case, compatible, covering_sets, make_case

pytestmark = pytest.mark.usefixtures("poisoned", "emulator_here")

PAIRS = [pair for pair in itertools.combinations(FORWARD, 2) if compatible(pair)]
typed_cards = pytest.mark.parametrize(("card", "dtype"), TYPED_CARDS, ids=str)


@rotate(covering_sets(FORWARD), "features", TYPED_CARDS[:2])
def test_many_features_together(card: str, dtype: torch.dtype, features: tuple[str, ...]) -> None:
    """Every pair of features is in one of these sets."""
    dtype = random.choice([dtype, BFLOAT]) if card == "a100" else dtype
    check_on(
        card, make_case(*features, dtype=dtype, seqlen_q=random.randint(70, 140), seqlen_k=random.randint(70, 140))
    )


@pytest.mark.full
@typed_cards
@pytest.mark.parametrize("pair", PAIRS, ids="+".join)
def test_pair(card: str, dtype: torch.dtype, pair: tuple[str, ...]) -> None:
    case = make_case(*pair, dtype=dtype, seqlen_q=random.randint(1, 140), seqlen_k=random.randint(1, 140))
    check_on(card, case)


@pytest.mark.full
@typed_cards
@pytest.mark.parametrize("number", range(60))
def test_any_combination(card: str, dtype: torch.dtype, number: int) -> None:
    features = tuple(random.sample(FORWARD, random.randint(3, 9)))
    while not compatible(features):
        features = tuple(random.sample(FORWARD, random.randint(3, 9)))
    case = make_case(
        *features, dtype=dtype, seqlen_q=random.randint(1, 400), seqlen_k=random.randint(1, 400),
        head_dim=random.choice([8, 40, 64, 96, 128, 256]),
    )  # fmt: skip
    check_on(card, case)


# ---------------------------------------------------------------------------------------------- configs


def config_case(dtype: torch.dtype, head_dim: int) -> Case:
    """Several tiles of rows and more blocks of keys than there are stages, none of them full, and a skipped corner."""
    shape = {"batch": 1, "heads_q": 2, "heads_kv": 1, "seqlen_q": 150, "seqlen_k": 330}
    return make_case("gqa", "causal", dtype=dtype, head_dim=head_dim, head_dim_v=head_dim, **shape)


SAMPLE = [
    ("a100", HALF, 64, make_config(128, 64, 4, 2, True)),  # the default of large problems
    ("a100", BFLOAT, 128, make_config(128, 64, 4, 1, False)),
    ("a100", HALF, 64, make_config(64, 32, 4, 3, True)),
    ("a100", BFLOAT, 64, make_config(128, 16, 8, 3, False)),
    ("a100", HALF, 256, make_config(64, 32, 4, 1, False)),
    ("t4", HALF, 64, make_config(128, 64, 4, 1, True)),  # the default of large problems
    ("t4", HALF, 128, make_config(128, 32, 4, 1, False)),
    ("t4", HALF, 80, make_config(128, 32, 8, 1, True)),
]


@pytest.mark.parametrize(("card", "dtype", "head_dim", "config"), SAMPLE, ids=str)
def test_config(card: str, dtype: torch.dtype, head_dim: int, config: Config) -> None:
    check_on(card, config_case(dtype, head_dim), config)


SPACES = [
    pytest.param(card, dtype, head_dim, config, id=f"{card}-{dtype}-{head_dim}-{config}")
    for (card, dtype), dims in zip(TYPED_CARDS, ((16, 64, 128, 256), (64, 128, 256), (40, 96, 192)))
    for head_dim in dims
    for config in space(kernel_of(card).family, head_dim, head_dim, known(card))
]


@pytest.mark.full
@pytest.mark.parametrize(("card", "dtype", "head_dim", "config"), SPACES)
def test_every_config(card: str, dtype: torch.dtype, head_dim: int, config: Config) -> None:
    check_on(card, config_case(dtype, head_dim), config)


@typed_cards
def test_defaults_of_every_head_dim_fit_the_card(card: str, dtype: torch.dtype) -> None:
    """Also for problems large enough to fill it."""
    kernel, device = kernel_of(card), known(card)
    for head_dim, seqlen in itertools.product(range(8, 257, 8), (1, 4096)):
        problem = AttentionProblem(
            dtype=str(dtype).removeprefix("torch."), batch=8, heads_q=8, heads_kv=8, seqlen_q=seqlen, seqlen_k=seqlen,
            head_dim=head_dim, head_dim_v=head_dim,
        )  # fmt: skip
        default = kernel.default_config(problem, device)
        assert shared_bytes(kernel.family, default, head_dim, head_dim) <= device.limits.shared_per_block
        assert default in kernel.configs(problem, device)
