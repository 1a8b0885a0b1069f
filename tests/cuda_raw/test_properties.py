"""Laws of the raw CUDA forward kernels, over problems and configs that hypothesis chooses."""

from __future__ import annotations

import os
import random

import pytest
import torch
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from faops import reference
from faops.backends.cuda_raw.tiles import make_config
from tests.cuda_raw.support import BACKEND, HALF, KERNELS, check_on, emulated
from tests.support import make_case, make_inputs, run_faops

pytestmark = pytest.mark.usefixtures("poisoned", "emulator_here")

# Examples follow FAOPS_TEST_SEED like every other random input; fixtures change nothing between examples.
lawful = settings(
    max_examples=12, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
fresh = seed(int(os.environ["FAOPS_TEST_SEED"]))

lengths = st.integers(1, 80)
seeds = st.integers(0, 2**31)
cards = st.sampled_from(sorted(KERNELS))
# What a kernel is compiled anew for is held to few values; all else is free.
FEATURE_SETS = [("causal",), ("window", "alibi", "mask"), ("varlen", "window", "dropout", "sinks")]
CONFIGS = {
    "t4": [make_config(64, 64, 4, 1, True), make_config(128, 16, 4, 1, False)],
    "a100": [make_config(64, 64, 4, 2, True), make_config(128, 16, 4, 3, False), make_config(64, 32, 2, 1, False)],
}


@fresh
@lawful
@given(
    cards, st.sampled_from(FEATURE_SETS), lengths, lengths, st.sampled_from([(1, 1), (4, 2), (3, 1)]),
    st.integers(1, 3), seeds,
)  # fmt: skip
def test_any_call_meets_the_oracle(card, features, M, N, heads, batch, number) -> None:  # type: ignore[no-untyped-def]
    torch.manual_seed(number)
    random.seed(number)
    shape = {"seqlen_q": M, "seqlen_k": N, "batch": batch + 1, "heads_q": heads[0], "heads_kv": heads[1]}
    check_on(card, make_case(*features, dtype=HALF, head_dim=32, head_dim_v=32, **shape))


@fresh
@lawful
@given(cards, st.integers(1, 200), st.integers(1, 200), seeds)
def test_results_do_not_depend_on_the_config(card, M, N, number) -> None:  # type: ignore[no-untyped-def]
    """Nor do dropout masks, which would change out by far more than rounding."""
    torch.manual_seed(number)
    random.seed(number)
    shape = {"batch": 1, "heads_q": 2, "heads_kv": 2, "seqlen_q": M, "seqlen_k": N, "head_dim": 32, "head_dim_v": 32}
    case = make_case("dropout", dtype=HALF, **shape)
    case.options["dropout_p"] = 0.3
    inputs = make_inputs(case)
    results = []
    for config in CONFIGS[card]:
        with emulated(card, config) as launches:
            results.append(run_faops(case, inputs, BACKEND, seed=number))
        assert launches[0].constant("TILE_N") == str(config["tile_n"])
    for out, lse in results[1:]:
        torch.testing.assert_close(out, results[0][0], atol=2e-3, rtol=2e-3)
        torch.testing.assert_close(lse, results[0][1], atol=1e-5, rtol=1e-5)


@fresh
@lawful
@given(cards, lengths, lengths, st.integers(0, 80), st.integers(0, 80), seeds)
def test_a_band_is_its_mask(card, M, N, left, right, number) -> None:  # type: ignore[no-untyped-def]
    torch.manual_seed(number)
    case = make_case(
        "window", dtype=HALF, batch=1, heads_q=1, heads_kv=1, seqlen_q=M, seqlen_k=N, head_dim=32, head_dim_v=32
    )
    case.options["window"] = (left, right)
    inputs = make_inputs(case)
    with emulated(card):
        out, lse = run_faops(case, inputs, BACKEND)
    diagonal, keys = torch.arange(M)[:, None] + N - M, torch.arange(N)
    mask = ((keys >= diagonal - left) & (keys <= diagonal + right))[None, None]
    exact, exact_lse = reference.attention(inputs.q, inputs.k, inputs.v, mask=mask)
    torch.testing.assert_close(out.double(), exact, atol=2e-3, rtol=2e-3)
    torch.testing.assert_close(lse.double(), exact_lse, atol=1e-5, rtol=1e-5)
