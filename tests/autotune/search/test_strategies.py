"""The strategies: whom each one times, in which rounds, and what they come to on recorded and made-up sweeps."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import pytest

from faops.autotune import effort
from faops.autotune.effort import FINAL, QUICK, SWEEP
from faops.autotune.recording.replay import ReplayBench, replay
from faops.autotune.recording.sweep import Sweep, modelled
from faops.autotune.search import strategies
from faops.autotune.search.candidates import Candidate, Space
from faops.autotune.search.exhaustive import Exhaustive
from faops.autotune.search.halving import Halving
from faops.autotune.search.random_draws import RandomDraws
from faops.autotune.search.strategies import by_name, planned, search
from faops.autotune.search.strategy import Strategy
from faops.device import known
from faops.errors import ArgumentError
from faops.problem import AttentionProblem, Band
from faops.registry import Config

from ..support import FakeBench, FakeKernel, steady

KERNEL, OTHER = FakeKernel(blocks=100), FakeKernel("other")
LONG = AttentionProblem(
    dtype="float16",
    seqlen_q=4096,
    seqlen_k=4096,
    heads_q=32,
    heads_kv=8,
    head_dim=128,
    head_dim_v=128,
    band=Band(-1, 0),
)


def candidate(block: int, kernel: FakeKernel = KERNEL) -> Candidate:
    return Candidate(kernel, Config(block=block))


SPACE = Space(
    defaults=(candidate(0), candidate(0, OTHER)),
    known=(candidate(99),),
    others=tuple(candidate(block) for block in range(1, 90)),
    pruned=tuple((candidate(block), "too many registers") for block in range(90, 99)),
)


def test_strategies_are_found_by_name() -> None:
    assert strategies.NAMES == ("halving", "random", "exhaustive")
    assert strategies.DEFAULT == "halving"
    assert [by_name(name).name for name in strategies.NAMES] == list(strategies.NAMES)
    assert all("\n" not in strategy.summary for strategy in strategies.STRATEGIES)
    with pytest.raises(ArgumentError, match="strategy: got 'bayes', expected one of halving, random, exhaustive"):
        by_name("bayes")


def test_halving_takes_the_first_of_the_ranking_and_some_others() -> None:
    shortlist = Halving(configs=15, doubt=4).shortlist(SPACE)  # twelve beside those that are always timed
    assert shortlist.chosen[:12] == (*SPACE.always, *SPACE.others[:9])
    explored = shortlist.chosen[12:]
    assert len(set(explored)) == 3 and set(explored) <= set(SPACE.others[9:])
    assert max(SPACE.others.index(item) for item in explored) > 20  # not simply the next ones
    left = [item for item in SPACE.others[9:] if item not in explored]
    assert shortlist.reserve == tuple(left[: effort.COMPILE_RESERVE])
    assert Halving(configs=15).shortlist(SPACE) == Halving(configs=15).shortlist(SPACE)
    assert Halving(configs=1).shortlist(SPACE).chosen == SPACE.always  # these are always timed
    assert len(Halving().shortlist(SPACE).chosen) == effort.MAX_CONFIGS
    assert set(Halving(configs=500).shortlist(SPACE).chosen) == set(SPACE.all)


def test_a_model_that_errs_about_a_whole_kind_does_not_hide_the_best() -> None:
    """The model ranks the slow half of the space before the fast half."""
    bench = FakeBench(lambda item: steady(9.0 if item.config.integer("block") < 60 else 1.0))
    assert search(SPACE, bench, Halving(configs=20)).winner.p50 == pytest.approx(1.0)


def test_random_draws_are_uniform_and_repeatable() -> None:
    assert RandomDraws(configs=20).shortlist(SPACE) == RandomDraws(configs=20).shortlist(SPACE)
    assert RandomDraws(configs=20).shortlist(SPACE).chosen[:2] == SPACE.defaults
    shuffled = replace(SPACE, others=SPACE.others[::-1])
    assert RandomDraws(configs=20).shortlist(shuffled) == RandomDraws(configs=20).shortlist(SPACE)  # no ranking matters
    drawn = [RandomDraws(configs=20, seed=seed).shortlist(SPACE).chosen[2:] for seed in range(100)]
    assert all(len(set(one)) == 18 for one in drawn)
    times = Counter(item for one in drawn for item in one)  # each 18 of 90 times in a hundred, give or take
    assert set(times) == {*SPACE.known, *SPACE.others}
    assert all(5 <= count <= 40 for count in times.values())
    assert set(RandomDraws(configs=500).shortlist(SPACE).chosen) == set(SPACE.all)


def test_random_draws_meet_the_best_twentieth_as_often_as_promised() -> None:
    """1 - 0.95^59 = 95.2 % for an endless space; without replacement from 90 it is more."""
    best = set(SPACE.others[:4])  # of 90: under 5 %
    free = replace(SPACE, defaults=(), known=())
    met = [bool(best & set(RandomDraws(seed=seed).shortlist(free).chosen)) for seed in range(100)]
    assert sum(met) / len(met) > 0.95
    assert effort.RANDOM_DRAWS == 59


def test_exhaustive_leaves_nothing_out() -> None:
    chosen = Exhaustive().shortlist(SPACE).chosen
    assert set(chosen) == {*SPACE.all, *(item for item, _ in SPACE.pruned)}
    assert len(chosen) == len(set(chosen))


@pytest.mark.parametrize("strategy", strategies.STRATEGIES, ids=lambda strategy: strategy.name)
def test_what_is_planned_is_what_is_timed(strategy: Strategy) -> None:
    bench = FakeBench(lambda item: steady(1.0 + item.config.integer("block")))
    outcome = search(SPACE, bench, strategy)
    assert outcome.measurements == len(bench.timed) == sum(count for count, _ in planned(strategy, SPACE))
    budgets = [budget for _, budget in bench.timed]
    expected = [budget for count, budget in planned(strategy, SPACE) for _ in range(count)]
    assert budgets == expected
    assert budgets[0] == (SWEEP if strategy.name == "exhaustive" else QUICK)
    assert budgets[-1] == FINAL


@pytest.mark.parametrize("strategy", strategies.STRATEGIES, ids=lambda strategy: strategy.name)
def test_the_default_is_in_the_finals_of_every_strategy(strategy: Strategy) -> None:
    bench = FakeBench(lambda item: steady(9.0 if item == candidate(0) else 1.0))
    outcome = search(SPACE, bench, strategy)
    assert (outcome.default.kernel, outcome.default.config) == ("fake.forward", Config(block=0))
    assert outcome.default.p50 == pytest.approx(9.0)
    assert [item for item, budget in bench.timed if budget is FINAL].count(candidate(0)) == effort.FINAL_ROUNDS


@pytest.mark.parametrize("strategy", strategies.STRATEGIES, ids=lambda strategy: strategy.name)
@pytest.mark.parametrize("limit", [1, 2, 3, 7, 20])
def test_when_the_time_is_up_the_finals_begin(strategy: Strategy, limit: int) -> None:
    second = Exhaustive().shortlist(SPACE).chosen[1]
    bench = FakeBench(lambda item: steady(0.5 if item == (second if limit > 1 else candidate(0)) else 1.0))
    outcome = search(SPACE, bench, strategy, hurry=lambda: len(bench.timed) >= limit)
    assert len(bench.timed) == limit + min(limit, effort.HURRIED_FINALISTS) * effort.FINAL_ROUNDS
    assert outcome.winner.p50 == pytest.approx(0.5)
    assert outcome.default.config == Config(block=0)


def test_when_the_time_is_up_within_a_round_all_timings_count() -> None:
    """Two were lucky in the quick round and are found out in the next, when the time is up: the third is best."""

    class Misleading(FakeBench):
        def sample(self, item: Candidate, budget: effort.Budget) -> list[float]:
            self.timed.append((item, budget))
            lucky = item in SPACE.others[:2]
            return steady((0.5 if budget is QUICK else 2.0) if lucky else 0.8 if item == SPACE.others[2] else 1.0)

    bench = Misleading(lambda item: [])
    outcome = search(SPACE, bench, hurry=lambda: len(bench.timed) >= effort.MAX_CONFIGS + 2)
    assert outcome.winner.config == SPACE.others[2].config


def test_time_that_is_up_before_a_default_ran_waits_for_one() -> None:
    def samples(item: Candidate) -> list[float]:
        if item == candidate(0):
            raise RuntimeError("no such instruction")
        return steady(1.0)

    outcome = search(SPACE, FakeBench(samples), hurry=lambda: True)
    assert outcome.default.kernel == "fake.other"


# ---------------------------------------------------------------------------------------------- on sweeps


def sweeps(device: str, error: float, count: int) -> list[Sweep]:
    return [modelled(LONG, known(device), seed, error=error) for seed in range(count)]


def regrets(found: Sequence[Sweep], strategy: Strategy) -> list[float]:
    return [replay(sweep, strategy, seed).regret for seed, sweep in enumerate(found)]


@pytest.mark.parametrize("device", ["h200", "a100", "t4"])
def test_halving_comes_within_two_percent_where_the_model_is_roughly_right(device: str) -> None:
    """The aim: at most 2 % from the best of the whole space with at most 32 configs measured."""
    found = sweeps(device, 0.1, 10)
    results = [replay(sweep, Halving(), seed) for seed, sweep in enumerate(found)]
    assert max(result.configs for result in results) <= 32
    assert statistics.mean(result.regret for result in results) <= 0.01
    assert sum(result.regret <= 0.02 for result in results) >= 9, [result.regret for result in results]


def test_halving_beats_random_draws_with_as_many_configs() -> None:
    found = sweeps("h200", 0.2, 10)
    for configs in (8, 16, 32):
        ranked = statistics.mean(regrets(found, Halving(configs)))
        drawn = statistics.mean(statistics.mean(regrets(found, RandomDraws(configs, seed))) for seed in range(3))
        assert ranked < 0.75 * drawn, (configs, ranked, drawn)


def test_exhaustive_search_finds_the_best() -> None:
    assert max(regrets(sweeps("a100", 0.5, 5), Exhaustive())) <= 0.02


def test_a_model_that_knows_nothing_does_no_worse_than_chance() -> None:
    """A useless ranking costs nothing but its promise: halving is then random search with better finals."""
    found = sweeps("h200", 3.0, 15)
    ranked = statistics.median(regrets(found, Halving(16)))
    drawn = statistics.median(regrets(found, RandomDraws(16, seed=5)))
    assert ranked < max(0.5, 2 * drawn), (ranked, drawn)


def test_a_replay_is_repeatable_and_counts_what_it_does() -> None:
    (sweep,) = sweeps("h200", 0.2, 1)
    assert replay(sweep, Halving(), 3) == replay(sweep, Halving(), 3)
    bench = ReplayBench(sweep, 3)
    outcome = search(sweep.space, bench, Halving())
    result = replay(sweep, Halving(), 3)
    assert (result.timings, result.configs, result.seconds) == (outcome.measurements, len(bench.tried), bench.seconds)
