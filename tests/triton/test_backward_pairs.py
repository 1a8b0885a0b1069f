"""Features together in the Triton kernels, forward and backward, and every config of their spaces."""

from __future__ import annotations

import itertools
import random

import pytest
import torch

from faops import registry
from faops.device import known
from faops.problem import AttentionProblem
from faops.registry import Config
from tests.support import FEATURES, Case, compatible, covering_sets, make_case
from tests.triton.support import (
    ATOMIC_TILES,
    BACKWARD_TILES,
    DTYPES,
    TALL_TILES,
    TILES,
    check_kernels,
    rotate,
)

pytestmark = pytest.mark.usefixtures("poisoned")

PAIRS = [pair for pair in itertools.combinations(FEATURES, 2) if compatible(pair)]
SETS = covering_sets(list(FEATURES))
CARDS = ("a100", "4090", "h100", "b200")


def check_any_tiles(case: Case) -> None:
    atomic = ATOMIC_TILES if "deterministic" not in case.features else BACKWARD_TILES
    check_kernels(case, random.choice([TILES, TALL_TILES]), random.choice([BACKWARD_TILES, atomic]))


def few_heads(features: tuple[str, ...]) -> tuple[str, ...]:
    """Groups of three query heads with one head of keys rather than two: half the work, the same code."""
    return tuple("mqa" if name == "gqa" else name for name in features)


@rotate(SETS, "features")
def test_many_features_together(dtype: torch.dtype, features: tuple[str, ...]) -> None:
    """Every pair of features is in one of these sets."""
    shape = {"seqlen_q": random.randint(17, 33), "seqlen_k": random.randint(33, 40), "heads_q": 1, "heads_kv": 1}
    check_any_tiles(make_case(*few_heads(features), dtype=dtype, **shape))


@rotate([tuple(name for name in features if name != "varlen") for features in SETS[:1]], "features")
def test_many_features_together_dense(dtype: torch.dtype, features: tuple[str, ...]) -> None:
    shape = {"seqlen_q": random.randint(17, 33), "seqlen_k": random.randint(33, 40), "batch": 1}
    check_any_tiles(make_case(*few_heads(features), dtype=dtype, **shape))


@pytest.mark.full
@pytest.mark.parametrize("pair", PAIRS, ids="+".join)
def test_pair(pair: tuple[str, ...]) -> None:
    shape = {"seqlen_q": random.randint(1, 60), "seqlen_k": random.randint(1, 90)}
    check_any_tiles(make_case(*pair, dtype=random.choice(DTYPES), **shape))


@pytest.mark.full
@pytest.mark.parametrize("number", range(60))
def test_any_combination(number: int) -> None:
    features = tuple(random.sample(list(FEATURES), random.randint(3, 9)))
    while not compatible(features):
        features = tuple(random.sample(list(FEATURES), random.randint(3, 9)))
    case = make_case(
        *features, dtype=random.choice(DTYPES), seqlen_q=random.randint(1, 100), seqlen_k=random.randint(1, 100),
        head_dim=random.choice([8, 40, 64, 96]), batch=random.choice([1, 2]),
    )  # fmt: skip
    check_any_tiles(case)


# ---------------------------------------------------------------------------------------------- configs


def config_case(dtype: torch.dtype, head_dim: int, config: Config, backward_config: Config) -> Case:
    """Several tiles of rows and of keys, the last not full, and a skipped corner."""
    outer, inner = backward_config.integer("block_outer"), backward_config.integer("block_inner")
    rows, keys = max(config.integer("block_m"), outer, inner), max(config.integer("block_n"), outer, inner)
    return Case(
        features=("config",), dtype=dtype, batch=1, heads_q=1, heads_kv=1, seqlen_q=rows + 9, seqlen_k=2 * keys + 9,
        head_dim=head_dim, head_dim_v=head_dim, options={"causal": True, "dropout_p": 0.2},
    )  # fmt: skip


def spaces() -> list[tuple[torch.dtype, int, Config, Config, bool]]:
    """(dtype, head dim, forward config, backward config, whether they are a card's defaults), each once."""
    found = {}
    forward, backward = registry.get("triton.forward"), registry.get("triton.backward")
    assert forward is not None and backward is not None
    for card, dtype, head_dim in itertools.product(CARDS, DTYPES, (64, 128, 256)):
        device, name = known(card), str(dtype).removeprefix("torch.")
        problem = AttentionProblem(
            dtype=name, batch=1, heads_q=1, heads_kv=1, seqlen_q=4096, seqlen_k=4096, head_dim=head_dim,
            head_dim_v=head_dim,
        )  # fmt: skip
        defaults = forward.default_config(problem, device), backward.default_config(problem, device)
        found.setdefault((dtype, head_dim, *defaults), True)
        configs = forward.configs(problem, device), backward.configs(problem, device)
        for i in range(max(map(len, configs))):
            found.setdefault((dtype, head_dim, *(few[i % len(few)] for few in configs)), False)
    return [(*key, default) for key, default in found.items()]


def _parameters() -> list[object]:
    """A card's defaults are in the short run, each with one of the dtypes and head dims that have it."""
    short: set[tuple[Config, Config]] = set()
    parameters = []
    for dtype, head_dim, mine, other, default in spaces():
        first = default and (mine, other) not in short
        short |= {(mine, other)} if first else set()
        name = f"{str(dtype).removeprefix('torch.')}-{head_dim}-{mine}-{other}"
        marks = [] if first else [pytest.mark.full]
        parameters.append(pytest.param(dtype, head_dim, mine, other, marks=marks, id=name))
    return parameters


@pytest.mark.parametrize(("dtype", "head_dim", "config", "backward_config"), _parameters())
def test_every_config(dtype: torch.dtype, head_dim: int, config: Config, backward_config: Config) -> None:
    check_kernels(config_case(dtype, head_dim, config, backward_config), config, backward_config)
