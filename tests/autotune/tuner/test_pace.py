"""The time left: expected costs, corrected by what was spent."""

from __future__ import annotations

from dataclasses import replace

import pytest

from faops.autotune import effort
from faops.autotune.effort import Budget
from faops.autotune.tuner import pace
from faops.autotune.tuner.pace import Pace, timing_seconds


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(pace, "monotonic", made)
    return made


def test_nothing_is_known_before_the_first_timing(clock: Clock) -> None:
    made = Pace()
    assert made.remaining is None
    made.expect(0, [1.0, 1.0])
    made.begin()
    assert made.remaining is None
    clock.now += 3
    assert made.remaining is None
    assert made.elapsed == 3.0


def test_the_rest_goes_on_at_the_pace_so_far(clock: Clock) -> None:
    made = Pace()
    clock.now += 50  # before measuring began: it tells nothing about timings
    made.expect(0, [1.0] * 4)
    made.expect(1, [2.0] * 3)
    made.begin()
    clock.now += 2
    made.begin()  # of the next problem
    made.advance(0, 1)
    assert made.remaining == pytest.approx((3 + 6) * 2)  # twice as slow as expected
    clock.now += 2
    made.advance(0, 4)
    assert made.remaining == pytest.approx(6 * 1)  # exactly as expected
    made.advance(1, 3)
    assert made.remaining == 0.0
    assert made.elapsed == 54


def test_what_is_finished_early_is_expected_no_longer(clock: Clock) -> None:
    made = Pace()
    made.expect(0, [1.0] * 4)
    made.expect(1, [1.0] * 4)
    made.begin()
    clock.now += 2
    made.advance(0, 2)
    made.finish(0)
    assert made.remaining == pytest.approx(4)
    made.finish(1)
    assert made.remaining == 0.0
    made.finish(7)  # never expected: it was warm


def test_the_budget_is_a_limit(clock: Clock) -> None:
    made = Pace(10.0)
    made.expect(0, [1.0] * 100)
    made.begin()
    clock.now += 4
    made.advance(0, 4)
    assert made.remaining == pytest.approx(6)
    assert not made.spent
    clock.now += 6
    assert made.spent and made.is_spent()
    assert made.remaining == 0.0
    assert not Pace().spent


def test_a_timing_costs_its_budget_or_its_calls() -> None:
    budget = Budget(warmup=0.01, time_cap=0.05, min_samples=3)
    assert timing_seconds(budget, 1e-4) == pytest.approx(0.06)
    assert timing_seconds(budget, 2.0) == pytest.approx(4.0)
    assert timing_seconds(budget, 1e-4, recorded=True) == pytest.approx(0.06)
    final = replace(budget, graph=True)
    assert timing_seconds(final, 1e-4, recorded=True) == pytest.approx(budget.warmup + effort.RECORDING_SECONDS)
    assert timing_seconds(final, 1e-4) == pytest.approx(0.06)


def test_time_that_is_waited_counts_nowhere(clock: Clock) -> None:
    def wait() -> None:
        clock.now += 1000

    made = Pace(budget=10)
    clock.now += 3
    made.stand_still(wait)
    assert made.elapsed == 3
    made.expect(0, [1.0] * 4)
    made.begin()
    clock.now += 1
    made.stand_still(wait)
    made.advance(0, 1)
    assert (made.elapsed, made.remaining, made.spent) == (4, pytest.approx(3.0), False)
