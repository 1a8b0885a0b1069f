"""KV-cache calls on the raw CUDA kernels in the emulator against the oracle: features, sizes, pages, splits, groups."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from tests.cuda_raw.decode.support import check_on
from tests.cuda_raw.support import HALF, TYPED_CARDS, rotate
from tests.kvcache import FEATURES, compatible, make_call

pytestmark = pytest.mark.usefixtures("poisoned", "emulator_here")

CARDS = ("t4", "a100")
WITH_APPEND = [name for name in FEATURES if compatible((name, "append"))]
each_card = pytest.mark.parametrize("card", CARDS)


def small(*features: str, **shape: Any) -> Any:
    """A call of head dims 32, few of which differ in what a kernel is compiled for."""
    return make_call(*features, **{"dim": 32, "dim_v": 32, "keys": 70, "heads_kv": 1, "group": 3, **shape})


@rotate(["plain", *FEATURES], "feature")
def test_feature_alone(card: str, dtype: torch.dtype, feature: str) -> None:
    """In two splits on the one card and in one on the other, so that combine is on the way too."""
    call = small(*([] if feature == "plain" else [feature]), dtype=dtype, M=random.choice((1, 3)))
    call.options.setdefault("num_splits", 2 if card == "a100" else 1)
    check_on(card, call)


@pytest.mark.full
@pytest.mark.parametrize(("card", "dtype"), TYPED_CARDS, ids=str)
@pytest.mark.parametrize(
    "pair",
    [(one, two) for i, one in enumerate(FEATURES) for two in FEATURES[i + 1 :] if compatible((one, two))],
    ids="+".join,
)
def test_pair(pair: tuple[str, str], card: str, dtype: torch.dtype) -> None:
    check_on(card, small(*pair, dtype=dtype, M=random.choice((1, 3))))


@rotate(WITH_APPEND, "feature")
@pytest.mark.full
def test_feature_with_appended_keys(card: str, dtype: torch.dtype, feature: str) -> None:
    call = small(*dict.fromkeys((feature, "append")), dtype=dtype, M=random.choice((1, 3)))
    call.options["num_splits"] = 2
    check_on(card, call)


@pytest.mark.parametrize("card", [pytest.param("t4", marks=pytest.mark.full), "a100"])
def test_number_of_keys(card: str) -> None:
    for keys in (1, 15, 16, 17, 63, 65, 127, 129, 257):
        check_on(card, small("append", "causal", "splits", dtype=HALF, keys=keys))


PAGES = [1, 3, 16, 64, 100, 256]


@pytest.mark.parametrize(("card", "page"), [
    pytest.param(card, page, marks=[] if page == (3 if card == "t4" else 1) else [pytest.mark.full])
    for card in CARDS for page in PAGES
])  # fmt: skip
def test_page_size(card: str, page: int) -> None:
    """Those that tiles divide and those that they do not; new keys lie on several pages."""
    keys, M = (page + 4, 7) if page > 16 else (80, 2 * page + 1)
    check_on(card, small("append", "window_left", "leftpad", dtype=HALF, page=page, keys=keys, M=M))


@pytest.mark.parametrize(("card", "splits"), [
    pytest.param(card, splits, marks=[] if splits in ((7,) if card == "t4" else (1, 7, 0)) else [pytest.mark.full])
    for card in CARDS for splits in (1, 2, 7, 0)
])  # fmt: skip
def test_splits(card: str, splits: int) -> None:
    """7 are more than there are blocks of keys: some see none. 0 leaves the number to the kernel."""
    for features in (("sinks", "append"), ("window", "sinks")):
        call = small(*features, dtype=HALF, M=2, keys=150)
        call.options["num_splits"] = splits
        launches = check_on(card, call)
        names = [launch.kernel.source.name for launch in launches]
        assert splits == 0 or ("decode_combine" in names) == (splits > 1)
        assert ("decode_append" in names) == ("append" in features)


@each_card
@pytest.mark.parametrize("group", [8, *(pytest.param(group, marks=pytest.mark.full) for group in (1, 3, 16))])
def test_group_shares_its_keys(card: str, group: int) -> None:
    for M in (1, 7):
        check_on(card, small("causal", "sinks", dtype=HALF, group=group, heads_kv=2, M=M, keys=30))


@each_card
@pytest.mark.parametrize("M", [40, *(pytest.param(M, marks=pytest.mark.full) for M in (2, 150))])
@pytest.mark.parametrize(
    "band", ["causal", *(pytest.param(name, marks=pytest.mark.full) for name in FEATURES if "window" in name)]
)
def test_several_query_tokens(card: str, M: int, band: str) -> None:
    """Speculative tokens, and chunks of a prompt."""
    check_on(card, small(band, "append", "rotary", dtype=HALF, M=M, keys=M + 60))


DIMS = [(32, 32), (40, 40), (40, 96), (64, 64), (96, 40), (128, 128), (80, 192), (192, 80), (256, 256), (256, 16),
        (1, 1), (33, 21)]  # fmt: skip


@rotate(DIMS, "dims", TYPED_CARDS)
@pytest.mark.full
def test_head_dims(card: str, dtype: torch.dtype, dims: tuple[int, int]) -> None:
    for M in (1, 30):
        check_on(card, small("append", "splits", "rotary_half", dtype=dtype, dim=dims[0], dim_v=dims[1], M=M))


@pytest.mark.parametrize(("card", "dims"), [("t4", (96, 40)), ("a100", (40, 256))], ids=str)
def test_some_head_dims(card: str, dims: tuple[int, int]) -> None:
    check_on(card, small("append", "splits", dtype=HALF, dim=dims[0], dim_v=dims[1], keys=40))


@pytest.mark.parametrize("card", [pytest.param("t4", marks=pytest.mark.full), "a100"])
@pytest.mark.parametrize("reason", ["empty", "padded", "masked", "before the first key"])
def test_dead_rows(card: str, reason: str) -> None:
    """Rows without a key have out 0 and lse -inf, as the oracle says, whatever the sinks."""
    for splits in (1, 2):
        call = small("full_cache", "sinks", dtype=HALF, M=2, keys=20)
        call.options["num_splits"] = splits
        assert call.tensors[1] is not None
        capacity = call.tensors[1].shape[1]
        call.options |= {
            "empty": {"cache_seqlens": torch.tensor([0, 1], dtype=torch.int32)},
            "padded": {"cache_leftpad": torch.tensor([capacity, capacity - 1], dtype=torch.int32)},
            "masked": {"mask": torch.zeros(1, 1, 1, capacity, dtype=torch.bool)},
            "before the first key": {"cache_seqlens": torch.ones(2, dtype=torch.int32), "causal": True},
        }[reason]
        check_on(card, call)


@pytest.mark.full
@pytest.mark.parametrize("number", range(300))
def test_many_features_many_times(number: int) -> None:
    card, dtype = random.choice(TYPED_CARDS)
    check_on(card, small(*some_features(random.randint(3, 7)), dtype=dtype, M=random.choice((1, 2, 7, 40)),
                         batch=random.randint(1, 4), keys=random.randint(1, 300), heads_kv=random.choice((1, 2)),
                         group=random.choice((1, 3, 8))))  # fmt: skip


def some_features(count: int) -> tuple[str, ...]:
    while True:
        features = tuple(random.sample(FEATURES, count))
        if compatible(features):
            return features
