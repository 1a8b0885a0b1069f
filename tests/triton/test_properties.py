"""Laws of the Triton kernels, over problems and configs that hypothesis chooses."""

from __future__ import annotations

import os
import random

import pytest
import torch
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from faops import reference
from faops.backends.triton.space import make_backward_config, make_config
from tests.support import gradients, make_case, make_inputs, run_faops
from tests.triton.support import BACKEND, check_kernels, recorded

pytestmark = pytest.mark.usefixtures("poisoned")

# Examples follow FAOPS_TEST_SEED like every other random input; fixtures change nothing between examples.
lawful = settings(
    max_examples=6, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
fresh = seed(int(os.environ["FAOPS_TEST_SEED"]))

lengths = st.integers(1, 40)
seeds = st.integers(0, 2**31)
FEATURE_SETS = [("causal",), ("window", "alibi", "mask"), ("varlen", "window", "dropout", "sinks"), ("softcap", "bias")]
blocks = st.sampled_from([16, 32, 64])
tiles = st.builds(lambda m, n: make_config(m, n, 4, 1), blocks, blocks)
backward_tiles = st.builds(lambda m, n, atomic: make_backward_config(m, n, 4, 1, atomic), blocks, blocks, st.booleans())


def shape_of(M: int, N: int) -> dict[str, int]:
    return {"batch": 1, "heads_q": 1, "heads_kv": 1, "seqlen_q": M, "seqlen_k": N, "head_dim": 16, "head_dim_v": 16}


@fresh
@lawful
@given(
    tiles, backward_tiles, st.sampled_from(FEATURE_SETS), lengths, lengths,
    st.sampled_from([(1, 1), (2, 1)]), st.sampled_from([torch.float16, torch.float32]), seeds,
)  # fmt: skip
def test_any_call_meets_the_oracle(config, backward_config, features, M, N, heads, dtype, number) -> None:  # type: ignore[no-untyped-def]
    torch.manual_seed(number)
    random.seed(number)
    shape = {**shape_of(M, N), "heads_q": heads[0], "heads_kv": heads[1], "batch": 3 if "varlen" in features else 1}
    check_kernels(make_case(*features, dtype=dtype, **shape), config, backward_config)


@fresh
@lawful
@given(tiles, tiles, backward_tiles, backward_tiles, st.integers(1, 70), st.integers(1, 70), seeds)
def test_results_do_not_depend_on_the_config(one, other, back_one, back_other, M, N, number) -> None:  # type: ignore[no-untyped-def]
    """Nor do dropout masks, which would change them by far more than rounding."""
    torch.manual_seed(number)
    case = make_case("dropout", dtype=torch.float32, **shape_of(M, N))
    case.options["dropout_p"] = 0.3
    inputs = make_inputs(case)
    results = []
    for config, backward_config in ((one, back_one), (other, back_other)):
        with recorded(config, backward_config):
            out, lse = run_faops(case, inputs, BACKEND, seed=number)
            results.append({"out": out, "lse": lse, **gradients(inputs, out, lse, torch.ones_like(out), None)})
    for name, value in results[0].items():
        torch.testing.assert_close(value, results[1][name], atol=2e-5, rtol=2e-5, msg=name)


@fresh
@lawful
@given(tiles, lengths, lengths, st.integers(0, 50), st.integers(0, 50), seeds)
def test_a_band_is_its_mask(config, M, N, left, right, number) -> None:  # type: ignore[no-untyped-def]
    torch.manual_seed(number)
    case = make_case("window", dtype=torch.float32, **shape_of(M, N))
    case.options["window"] = (left, right)
    inputs = make_inputs(case)
    with recorded(config):
        out, lse = run_faops(case, inputs, BACKEND)
    diagonal, keys = torch.arange(M)[:, None] + N - M, torch.arange(N)
    mask = ((keys >= diagonal - left) & (keys <= diagonal + right))[None, None]
    exact, exact_lse = reference.attention(inputs.q, inputs.k, inputs.v, mask=mask)
    torch.testing.assert_close(out.double(), exact, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(lse.double(), exact_lse, atol=1e-5, rtol=1e-5)
