"""Host time: what is compared computes the same, and the difference is taken between the right calls."""

from __future__ import annotations

import pytest
import torch

from benchmarks import host_time
from benchmarks.harness import Effort
from benchmarks.host_time import MODES, Shape, added, calls, flash_func, shapes


def test_flash_function_has_the_gradients_of_sdpa() -> None:
    q, k, v = (torch.randn(1, 8, 2, 16, requires_grad=True) for _ in range(3))
    dout = torch.randn(1, 8, 2, 16)
    expected = torch.nn.functional.scaled_dot_product_attention(
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=True
    ).transpose(1, 2)
    out = flash_func(q, k, v, causal=True)
    torch.testing.assert_close(out, expected)
    for ours, theirs in zip(*(torch.autograd.grad(result, (q, k, v), dout) for result in (out, expected))):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", shapes(), ids=lambda shape: shape.name)
def test_all_calls_compute_the_same(shape: Shape, mode: str) -> None:
    with torch.no_grad() if mode == "inference" else torch.enable_grad():
        results = {name: call() for name, call in calls(shape, mode).items()}
    assert set(results) == {"faops", "launch"} | ({"operator", "sdpa", "function"} if shape.peers else set())
    heads_first = shape.options.get("layout") == "bhsd"
    if mode == "forward_backward":
        gradients = {name: result for name, result in results.items() if isinstance(result, tuple)}
        for name in set(gradients) - {"faops"}:
            for ours, theirs in zip(gradients["faops"], gradients[name]):
                torch.testing.assert_close(ours, theirs)
        return
    assert results["faops"].requires_grad == (mode == "forward")
    expected = results["faops"].transpose(1, 2) if heads_first else results["faops"]
    for name in set(results) - {"faops"}:
        out = results[name][0] if isinstance(results[name], tuple) else results[name]
        if name in ("operator", "sdpa"):
            out = out.transpose(1, 2)
        torch.testing.assert_close(out, expected, check_stride=False)


def test_added_time_is_the_difference() -> None:
    samples = {"faops": {"call": [5e-6, 3e-6, 9e-6]}, "launch": {"call": [2e-6, 4e-6, 1e-6]}}
    assert added(samples, "faops", "launch") == {"of_minima": 2e-6, "of_medians": 3e-6}


def test_measuring_gives_every_figure() -> None:
    found = host_time.measure(Shape("plain"), "inference", Effort(0.0, min_rounds=2, warmup_rounds=0))
    assert set(found["calls"]) == {"faops", "launch", "operator", "sdpa", "function"}
    assert set(found["added"]) == {"faops", "sdpa", "function"}
    assert all(one["n"] == 2 and one["min"] > 0 for one in found["calls"].values())
