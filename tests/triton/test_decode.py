"""The Triton KV-cache kernels in the interpreter against the oracle: features, sizes, pages, splits, groups."""

from __future__ import annotations

import random

import pytest
import torch

from tests.kvcache import DTYPES, FEATURES, compatible, make_call
from tests.triton.kvcache import TILES, check

pytestmark = pytest.mark.usefixtures("poisoned")


@pytest.mark.parametrize("feature", FEATURES)
def test_feature_alone(feature: str) -> None:
    check(make_call(feature, M=random.choice((1, 3))), random.choice(TILES))


def some_features(count: int) -> tuple[str, ...]:
    while True:
        features = tuple(random.sample(FEATURES, count))
        if compatible(features):
            return features


@pytest.mark.parametrize("feature", [name for name in FEATURES if compatible((name, "append"))])
def test_feature_with_appended_keys(feature: str) -> None:
    """In two splits, so that what one of them leaves to combine counts too."""
    call = make_call(*dict.fromkeys((feature, "append")), M=random.choice((1, 3)), keys=70, heads_kv=1)
    call.options["num_splits"] = 2
    check(call, random.choice(TILES))


@pytest.mark.full
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "pair",
    [(one, two) for i, one in enumerate(FEATURES) for two in FEATURES[i + 1 :] if compatible((one, two))],
    ids="+".join,
)
def test_pair(pair: tuple[str, str], dtype: torch.dtype) -> None:
    check(make_call(*pair, dtype=dtype, M=random.choice((1, 3))), random.choice(TILES))


@pytest.mark.parametrize("number", range(5))
def test_many_features(number: int) -> None:
    call = make_call(*some_features(5), M=random.choice((1, 2, 7)), keys=random.randint(1, 60), heads_kv=1)
    check(call, random.choice(TILES))


@pytest.mark.full
@pytest.mark.parametrize("number", range(200))
def test_many_features_many_times(number: int) -> None:
    features = some_features(random.randint(3, 7))
    M, batch = random.choice((1, 2, 7, 40)), random.randint(1, 4)
    check(make_call(*features, M=M, batch=batch, keys=random.randint(1, 150)), random.choice(TILES))


@pytest.mark.parametrize("keys", [1, 63, 65, 127, 129, 257])
def test_number_of_keys(keys: int) -> None:
    check(make_call("append", "causal", "splits", keys=keys, group=1, heads_kv=1), TILES[1])


@pytest.mark.parametrize("block_n", [16, 32])
@pytest.mark.parametrize("page", [1, 3, 16, 64, 100, 256])
def test_page_size(page: int, block_n: int) -> None:
    """Those that blocks divide are looked up once a block, the others once a key. New keys lie on several pages."""
    keys, M = (page + 4, 7) if page > 16 else (40, 2 * page + 1)
    call = make_call("append", "window_left", "leftpad", page=page, keys=keys, M=M, heads_kv=1)
    check(call, next(tile for tile in TILES if tile["block_n"] == block_n))


@pytest.mark.parametrize("splits", [1, 2, 9])
@pytest.mark.parametrize("features", [("sinks", "append"), ("window", "mask"), ("leftpad", "paged")], ids="+".join)
def test_splits(features: tuple[str, ...], splits: int) -> None:
    """9 are more than there are blocks of keys: some see none and leave nothing behind but that."""
    call = make_call(*features, keys=70, heads_kv=1, M=2)
    call.options["num_splits"] = splits
    launches = check(call)
    assert launches[-1].kernel == ("decode.attention_decode" if splits == 1 else "combine.combine")
    assert launches[-1].numbers["splits"] == splits


def test_more_splits_than_combine_reads_at_once() -> None:
    call = make_call("sinks", batch=1, keys=300, heads_kv=1)
    call.options["num_splits"] = 19
    check(call)


@pytest.mark.parametrize("M", [1, 7])
@pytest.mark.parametrize("group", [1, 3, 8, 16])
def test_group_shares_its_keys(group: int, M: int) -> None:
    """One tile holds the heads of a group: the grid counts KV heads."""
    call = make_call("causal", "alibi", "sinks", group=group, M=M, keys=30)
    call.options["num_splits"] = 1
    (made,) = check(call, TILES[1])
    assert made.grid == (-(-M * group // 32) * 2 * 2, 1, 1)


@pytest.mark.parametrize("band", ["causal", "window", "window_left", "window_right"])
@pytest.mark.parametrize("M", [2, 40])
def test_chunked_prefill(M: int, band: str) -> None:
    check(make_call(band, "append", "rotary", M=M, keys=60, heads_kv=1, group=3), TILES[M > 2])


@pytest.mark.parametrize("dims", [(8, 24), (96, 64), (160, 256), (256, 16), (1, 1)], ids=str)
def test_head_dims(dims: tuple[int, int]) -> None:
    check(make_call("append", "splits", dim=dims[0], dim_v=dims[1], heads_kv=1, keys=30))


@pytest.mark.parametrize("splits", [1, 2])
@pytest.mark.parametrize("reason", ["empty", "padded", "masked", "before the first key"])
def test_dead_rows(reason: str, splits: int) -> None:
    """Rows without a key have out 0 and lse -inf, as the oracle says, whatever the sinks."""
    call = make_call("full_cache", "sinks", M=2, keys=20, heads_kv=1)
    call.options["num_splits"] = splits
    assert call.tensors[1] is not None
    capacity = call.tensors[1].shape[1]
    call.options |= {
        "empty": {"cache_seqlens": torch.tensor([0, 1], dtype=torch.int32)},
        "padded": {"cache_leftpad": torch.tensor([capacity, capacity - 1], dtype=torch.int32)},
        "masked": {"mask": torch.zeros(1, 1, 1, capacity, dtype=torch.bool)},
        "before the first key": {"cache_seqlens": torch.ones(2, dtype=torch.int32), "causal": True},
    }[reason]
    check(call)
