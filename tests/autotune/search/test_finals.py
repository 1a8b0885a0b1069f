"""The finals: who is let in, what it takes to replace the default, and how seldom noise does."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest

from faops.autotune import effort
from faops.autotune.effort import FINAL
from faops.autotune.search.candidates import Candidate, Space
from faops.autotune.search.strategies import search
from faops.registry import Config

from ..support import FakeBench, FakeKernel, steady

KERNEL = FakeKernel()


def candidate(block: int) -> Candidate:
    return Candidate(KERNEL, Config(block=block))


def blocks(count: int) -> Space:
    return Space((candidate(0),), (), tuple(candidate(block) for block in range(1, count)))


def test_for_wrong_configs_the_next_best_step_in() -> None:
    bench = FakeBench(
        lambda item: steady(1.0 + 0.05 * item.config.integer("block") * (-1 if item.config.integer("block") else 0)),
        wrong=lambda item: item.config.integer("block") >= 5,
    )
    outcome = search(blocks(12), bench)
    assert outcome.winner.config == Config(block=4)
    finals = {item for item, budget in bench.timed if budget is FINAL}
    assert finals == {candidate(block) for block in (0, 2, 3, 4)}
    assert {drop.kind for drop in outcome.drops} == {"wrong"}
    assert len(bench.checked) == len(set(bench.checked))


def test_a_steady_runner_up_wins_where_the_fastest_is_too_noisy() -> None:
    """The fastest by median scatters so much that nothing is certain; the second is faster for sure."""
    bench = FakeBench(
        lambda item: {1: steady(0.80, 0.15), 2: steady(0.90, 0.001)}.get(item.config.integer("block"), steady(1.0))
    )
    outcome = search(blocks(4), bench)
    assert outcome.winner.config == Config(block=2)
    assert outcome.decision["config"] == {"block": 2}


def test_the_noise_of_either_counts() -> None:
    for noisy_block in (0, 1):
        times = {0: 1.0, 1: 0.9}
        bench = FakeBench(
            lambda item: steady(
                times[item.config.integer("block")],  # noqa: B023
                0.06 if item == candidate(noisy_block) else 0.001,  # noqa: B023
            )
        )
        outcome = search(blocks(2), bench)
        assert outcome.winner.config == Config(block=0)
        assert outcome.decision["noise"] == pytest.approx(0.06 * times[noisy_block])


def test_the_decision_says_what_was_compared() -> None:
    won = search(blocks(3), FakeBench(lambda item: steady(0.9 if item == candidate(1) else 1.0, 0.01))).decision
    assert (won["kernel"], won["config"], won["won"]) == ("fake.forward", {"block": 1}, True)
    assert won["difference"] == pytest.approx(0.1)
    assert won["noise"] == pytest.approx(0.01)
    assert won["needed"] == pytest.approx(effort.WIN_DEVIATIONS * 0.01)
    stayed = search(blocks(3), FakeBench(lambda item: steady(0.99 if item == candidate(1) else 1.0))).decision
    assert (stayed["config"], stayed["won"]) == ({"block": 1}, False)
    assert stayed["needed"] == pytest.approx(effort.WIN_MARGIN)
    alone = search(blocks(1), FakeBench(lambda item: steady(1.0))).decision
    assert (alone["config"], alone["difference"], alone["won"]) == ({"block": 0}, 0.0, False)


def noisy(kind: str, numbers: random.Random) -> Callable[[], list[float]]:
    """Factors of the samples of one timing."""
    return {
        "even": lambda: [math.exp(numbers.gauss(0, 0.03)) for _ in range(10)],
        "spikes": lambda: [1 + (0.4 if numbers.random() < 0.15 else 0.01 * numbers.random()) for _ in range(10)],
        "clock": lambda: [1.1 if numbers.random() < 0.2 else 1.0] * 10,  # one timing in five at a lower clock
    }[kind]


@pytest.mark.parametrize("kind", ["even", "spikes", "clock"])
def test_noise_alone_seldom_replaces_the_default(kind: str) -> None:
    """All configs take the same time: a winner other than the default is an error."""
    trials, errors = 200, 0
    for seed in range(trials):
        factors = noisy(kind, random.Random(seed))
        bench = FakeBench(lambda item: factors())  # noqa: B023
        errors += search(blocks(12), bench).winner.config != Config(block=0)
    assert errors <= 0.03 * trials


def test_a_slow_drift_meets_all_finalists_alike() -> None:
    """The machine gets slower all the time, by far more than the finalists differ: the better one still wins."""
    wins = 0
    for block in range(1, 8):
        count = 0

        def samples(item: Candidate) -> list[float]:
            nonlocal count
            count += 1
            return steady((0.9 if item == candidate(block) else 1.0) * (1 + 0.004 * count))  # noqa: B023

        wins += search(blocks(8), FakeBench(samples)).winner.config == Config(block=block)
    assert wins >= 6


def test_a_real_gain_is_found_through_noise() -> None:
    found = 0
    for seed in range(50):
        factors = noisy("even", random.Random(seed))
        bench = FakeBench(
            lambda item: [(0.85 if item == candidate(9) else 1.0) * factor for factor in factors()]  # noqa: B023
        )
        found += search(blocks(12), bench).winner.config == Config(block=9)
    assert found >= 48
