"""The search, with made-up times: what wins, what stays, what is dropped, in which order things are timed."""

from __future__ import annotations

import random

import pytest

from faops.autotune import effort
from faops.autotune.effort import FINAL, QUICK
from faops.autotune.measurement.clocks import summarize
from faops.autotune.search.candidates import Candidate, Space
from faops.autotune.search.finals import beats
from faops.autotune.search.strategies import STRATEGIES, planned, search
from faops.autotune.search.trial import Drop
from faops.errors import TuningError
from faops.registry import Config

from ..support import FakeBench, FakeKernel, steady

KERNEL = FakeKernel()


def candidate(block: int, kernel: FakeKernel = KERNEL) -> Candidate:
    return Candidate(kernel, Config(block=block))


def blocks(count: int) -> Space:
    return Space((candidate(0),), (), tuple(candidate(block) for block in range(1, count)))


def seconds_by_block(seconds: dict[int, float], others: float = 1.0) -> FakeBench:
    return FakeBench(lambda item: steady(seconds.get(item.config.integer("block"), others)))


@pytest.mark.parametrize("count", [1, 2, 4, 5, 12, 32])
@pytest.mark.parametrize("default", [1.0, 100.0])
def test_the_fastest_wins_whatever_the_default(count: int, default: float) -> None:
    fastest = count - 1
    bench = seconds_by_block({0: default, **({fastest: 0.5} if fastest else {})})
    outcome = search(blocks(count), bench)
    assert outcome.winner.config == Config(block=fastest)
    assert outcome.default.config == Config(block=0)
    assert outcome.default.p50 == pytest.approx(default)
    assert outcome.winner.p50 == pytest.approx(0.5 if fastest else default)
    assert len(outcome.timings) == count
    assert outcome.measurements == len(bench.timed) == sum(times for times, _ in planned(STRATEGIES[0], blocks(count)))


def test_search_finds_the_best_under_noise() -> None:
    """Times with noise of a tenth in the quick round: the best of 32 is a third faster than all others."""
    numbers = random.Random(1)
    noisy = FakeBench(lambda item: [t * numbers.uniform(1, 1.1) for t in steady(0.66 if item == candidate(9) else 1.0)])
    assert search(blocks(32), noisy).winner.config == Config(block=9)


@pytest.mark.parametrize(
    ("seconds", "spread", "wins"),
    [(0.90, 0.001, True), (0.975, 0.001, True), (0.985, 0.001, False), (0.90, 0.04, True), (0.90, 0.06, False)],
)
def test_the_default_is_replaced_only_beyond_the_noise(seconds: float, spread: float, wins: bool) -> None:
    """More than 2 % faster, and by more than two median absolute deviations (the spread is that deviation)."""
    bench = FakeBench(lambda item: steady(seconds if item == candidate(1) else 1.0, spread))
    outcome = search(blocks(3), bench)
    assert outcome.winner.config == Config(block=1 if wins else 0)
    timings = {item: summarize("fake.forward", item.config, [bench.samples(item)]) for item in blocks(3).all}
    assert beats(timings[candidate(1)], timings[candidate(0)]) is wins
    assert not beats(timings[candidate(0)], timings[candidate(0)])


def test_the_final_times_decide_and_not_the_quick_ones() -> None:
    class Misleading(FakeBench):
        def sample(self, item: Candidate, budget: effort.Budget) -> list[float]:
            self.timed.append((item, budget))
            lucky = item == candidate(1) and budget is not FINAL
            return steady(0.5 if lucky else 0.8 if item == candidate(2) else 1.0)

    assert search(blocks(12), Misleading(lambda item: [])).winner.config == Config(block=2)


def test_finalists_are_timed_in_turns() -> None:
    bench = seconds_by_block({5: 0.5, 6: 0.6, 7: 0.7})
    search(blocks(12), bench)
    finals = [item for item, budget in bench.timed if budget is FINAL]
    assert len(finals) == effort.FINALISTS * effort.FINAL_ROUNDS
    rounds = [finals[first : first + effort.FINALISTS] for first in range(0, len(finals), effort.FINALISTS)]
    assert all(one == rounds[0] for one in rounds)
    assert set(rounds[0]) == {candidate(5), candidate(6), candidate(7), candidate(0)}
    quick = [item for item, budget in bench.timed if budget is QUICK]
    assert quick == list(blocks(12).all)


def test_a_config_that_raises_is_dropped_and_recorded() -> None:
    def samples(item: Candidate) -> list[float]:
        if item == candidate(3):
            raise RuntimeError("too many registers")
        return steady(0.5 if item == candidate(2) else 1.0)

    outcome = search(blocks(6), FakeBench(samples))
    assert outcome.winner.config == Config(block=2)
    assert outcome.drops == [Drop(candidate(3), "failed", "RuntimeError: too many registers")]
    assert Config(block=3) not in [timing.config for timing in outcome.timings]


def test_a_config_that_fails_in_the_finals_only() -> None:
    class Late(FakeBench):
        def sample(self, item: Candidate, budget: effort.Budget) -> list[float]:
            self.timed.append((item, budget))
            if item == candidate(1) and [b for i, b in self.timed if i == item].count(FINAL) == 2:
                raise RuntimeError("overheated")
            return steady({1: 0.4, 2: 0.6}.get(item.config.integer("block"), 1.0))

    outcome = search(blocks(4), Late(lambda item: []))
    assert outcome.winner.config == Config(block=2)
    assert outcome.drops == [Drop(candidate(1), "failed", "RuntimeError: overheated")]


def test_a_wrong_result_never_wins() -> None:
    bench = seconds_by_block({1: 0.1, 2: 0.5})
    bench.wrong = lambda item: item == candidate(1)
    outcome = search(blocks(12), bench)
    assert outcome.winner.config == Config(block=2)
    assert outcome.drops == [Drop(candidate(1), "wrong", "TuningError: wrong result")]
    finalists = {item for item, budget in bench.timed if budget is FINAL}
    assert finalists <= set(bench.checked)
    assert candidate(1) not in finalists


def test_a_wrong_default_gives_way_to_another_kernels() -> None:
    other = FakeKernel("other")
    candidates = Space((candidate(0), candidate(0, other)), (), (candidate(1),))
    bench = FakeBench(lambda item: steady(1.0), wrong=lambda item: item == candidate(0))
    outcome = search(candidates, bench)
    assert (outcome.winner.kernel, outcome.default.kernel) == ("fake.other", "fake.other")


def test_a_default_that_cannot_run_gives_way() -> None:
    def samples(item: Candidate) -> list[float]:
        if item == candidate(0):
            raise RuntimeError("cannot launch")
        return steady(1.0 + item.config.integer("block"))

    outcome = search(blocks(3), FakeBench(samples))
    assert outcome.winner.config == outcome.default.config == Config(block=1)


@pytest.mark.parametrize("count", [1, 10])
def test_nothing_that_runs_is_an_error_with_the_reasons(count: int) -> None:
    def samples(item: Candidate) -> list[float]:
        raise RuntimeError("no such instruction")

    with pytest.raises(TuningError, match=r"no config ran correctly: fake.forward \[block=0\]: .*no such instruction"):
        search(blocks(count), FakeBench(samples))
    with pytest.raises(TuningError, match="wrong result"):
        search(blocks(count), FakeBench(lambda item: steady(1.0), wrong=lambda item: True))


def test_an_interrupt_is_not_swallowed() -> None:
    def samples(item: Candidate) -> list[float]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search(blocks(3), FakeBench(samples))
