"""Laws of the KV-cache kernels, over calls that hypothesis chooses."""

from __future__ import annotations

import os
import random

import pytest
import torch
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

import faops
from faops.backends.cuda_raw.decode_tiles import make_config
from tests import kvcache
from tests.cuda_raw.decode.support import KERNELS, check_on
from tests.cuda_raw.support import BACKEND, HALF, emulated
from tests.kvcache import make_call

pytestmark = pytest.mark.usefixtures("poisoned", "emulator_here")


def lawful(examples: int) -> settings:
    """Examples follow FAOPS_TEST_SEED like every other random input; fixtures change nothing between examples."""
    return settings(
        max_examples=examples, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
    )


fresh = seed(int(os.environ["FAOPS_TEST_SEED"]))
seeds = st.integers(0, 2**31)
cards = st.sampled_from(sorted(KERNELS))
# What a kernel is compiled anew for is held to few values; all else is free.
FEATURE_SETS = [("append", "causal", "splits"), ("leftpad", "splits", "sinks")]
lengths = st.integers(1, 200)


def any_call(card, features, page, M, keys, batch, group, number) -> None:  # type: ignore[no-untyped-def]
    torch.manual_seed(number)
    random.seed(number)
    M = min(M, keys)
    shape = {"page": page, "M": M, "keys": keys, "batch": batch, "group": group, "dim": 32, "dim_v": 32}
    check_on(card, make_call(*features, dtype=HALF, **shape), make_config(16, 64, 4, 1, True))


@fresh
@lawful(8)
@given(cards, st.sampled_from(FEATURE_SETS), st.just(16), st.integers(1, 9), lengths, st.integers(1, 4),
       st.just(3), seeds)  # fmt: skip
def test_any_call_meets_the_oracle(card, features, page, M, keys, batch, group, number) -> None:  # type: ignore[no-untyped-def]
    any_call(card, features, page, M, keys, batch, group, number)


@pytest.mark.full
@fresh
@lawful(300)
@given(cards, st.sampled_from([*FEATURE_SETS, ("append", "rotary", "window"), ("append", "mask", "alibi")]),
       st.sampled_from([0, 1, 3, 16, 64]), st.integers(1, 60), st.integers(1, 500), st.integers(1, 5),
       st.sampled_from([1, 3, 8]), seeds)  # fmt: skip
def test_many_calls_meet_the_oracle(card, features, page, M, keys, batch, group, number) -> None:  # type: ignore[no-untyped-def]
    any_call(card, features, page, M, keys, batch, group, number)


@fresh
@lawful(3)
@given(cards, lengths, st.integers(2, 9), seeds)
def test_splits_and_pages_change_no_result(card, keys, splits, number) -> None:  # type: ignore[no-untyped-def]
    """The same keys, dense and on pages, in one part and in several; and the same bits a second time."""
    torch.manual_seed(number)
    random.seed(number)
    call = make_call("causal", dtype=HALF, page=16, M=3, keys=keys, group=3, dim=32, dim_v=32)
    paged = [call.tensors[0], *call.tensors[1:3]]
    table = call.options.pop("block_table").long()
    dense = [cache[table].flatten(1, 2) for cache in paged[1:] if cache is not None]
    results = []
    with emulated(card, make_config(16, 64, 4, 1, True), kernels=KERNELS):
        for tensors, options in (
            ((paged[0], *dense), {"num_splits": 1}),
            ((paged[0], *dense), {"num_splits": splits}),
            (paged, {"num_splits": splits, "block_table": table.int()}),
            (paged, {"num_splits": splits, "block_table": table.int()}),
        ):
            everything = {**call.options, **options, "return_lse": True, "backend": BACKEND}
            results.append(faops.attention_with_kvcache(*tensors, **everything))
    for out, lse in results[1:]:
        torch.testing.assert_close(out, results[0][0], atol=2e-3, rtol=2e-3)
        torch.testing.assert_close(lse, results[0][1], atol=1e-5, rtol=1e-5)
    for one, other in zip(results[2], results[3]):
        assert torch.equal(kvcache.bits(one), kvcache.bits(other))
