"""The benchmark of tuning: the next call really uses the winner, and switching really switches."""

from __future__ import annotations

import os

import pytest
import torch

from benchmarks import tuning
from benchmarks.harness import Effort
from faops import dispatch, settings
from faops.autotune import effort
from faops.autotune.effort import Budget
from faops.problem import parse_shape

PROBLEM = parse_shape("sq=48,h=2,d=16,dtype=float32,causal=1,softcap=1")


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tuning that takes a moment."""
    for name in ("QUICK", "HALVING", "FINAL"):
        monkeypatch.setattr(effort, name, Budget(warmup=0.0, time_cap=0.001, min_samples=1, max_samples=2))
    monkeypatch.setattr(effort, "WARMUP_SECONDS", 0.0)


@pytest.mark.full
@pytest.mark.usefixtures("short")
def test_before_and_after() -> None:
    found = tuning.measure(PROBLEM, Effort(0.0, min_rounds=2, warmup_rounds=0))
    assert found["before"]["plan"]["source"] == "default"
    assert found["after"]["plan"]["source"] == "tuned"
    assert "not tuned" in found["before"]["explain"] and "not tuned" not in found["after"]["explain"]
    assert found["tuning"]["status"] == "tuned" and found["tuning"]["measurements"] > 0
    assert found["again"] == {"status": "warm", "measurements": 0}
    assert all(one["n"] == 2 for one in found["calls"].values())


@pytest.mark.usefixtures("short")
def test_switching_changes_the_plan() -> None:
    from faops.autotune.tuner import tune

    with tuning.empty_cache():
        tune([PROBLEM])
        sources = []
        for tuned in (False, True, False):
            tuning.switched(lambda: torch.empty(0), tuned)()
            plan = dispatch.explain(PROBLEM, tuning.faops.device.detect("cpu")).chosen
            assert plan is not None
            sources.append(plan.source)
    assert sources == ["default", "tuned", "default"]


def test_the_public_call_asks_the_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    original = dispatch.plan

    def noting(problem, *rest):  # type: ignore[no-untyped-def]
        asked.append(problem.key())
        return original(problem, *rest)

    monkeypatch.setattr(dispatch, "plan", noting)
    with tuning.empty_cache():
        tuning.public_call(PROBLEM)()
    assert set(asked) == {PROBLEM.key()}


def test_settings_are_put_back() -> None:
    before = dict(os.environ)
    with tuning.empty_cache():
        assert settings.cache_root() != before["FAOPS_CACHE_DIR"]
        os.environ["FAOPS_TUNING"] = "0"
    assert dict(os.environ) == before
