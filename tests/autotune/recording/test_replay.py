"""Replaying a sweep: samples are those that were recorded, budgets are kept, and the cost is counted."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import pytest

from faops.autotune.effort import FINAL, QUICK, Budget
from faops.autotune.recording.journal import Record, header_of
from faops.autotune.recording.replay import ReplayBench, replay
from faops.autotune.recording.sweep import Sweep
from faops.autotune.search.candidates import Candidate, Space
from faops.autotune.search.halving import Halving
from faops.autotune.search.trial import RememberedError
from faops.device import DeviceProfile
from faops.registry import Config

from ..support import PROBLEM, FakeKernel, steady


def recorded(kernel: FakeKernel, cpu: DeviceProfile, times: Sequence[float | str]) -> Sweep:
    """A sweep in which block n takes ``times[n]`` seconds, or fails in the way that is named."""
    space = Space((Candidate(kernel, Config(block=0)),))
    records = []
    for block, time in enumerate(times):
        if isinstance(time, str):
            records.append(Record(kernel.id, Config(block=block), None if time == "wrong" else QUICK, (), time, "no"))
        if not isinstance(time, str) or time == "wrong":
            samples = steady(1e-6 if isinstance(time, str) else time)
            records.append(Record(kernel.id, Config(block=block), QUICK, tuple(samples)))
    return Sweep(header_of(PROBLEM, cpu, space, "exhaustive"), tuple(records))


def candidate(kernel: FakeKernel, block: int) -> Candidate:
    return Candidate(kernel, Config(block=block))


def test_samples_are_the_recorded_ones_and_the_clock_runs(kernel: FakeKernel, cpu: DeviceProfile) -> None:
    sweep = recorded(kernel, cpu, [1e-3, 2e-3])
    bench = ReplayBench(sweep)
    samples = bench.sample(candidate(kernel, 1), QUICK)
    assert set(samples) <= set(steady(2e-3))
    assert len(samples) >= QUICK.min_samples
    assert bench.seconds == pytest.approx(QUICK.warmup + sum(samples))
    assert (bench.timings, bench.tried) == (1, {candidate(kernel, 1)})


def test_budgets_are_kept(kernel: FakeKernel, cpu: DeviceProfile) -> None:
    sweep = recorded(kernel, cpu, [1e-3, 10.0])
    bench = ReplayBench(sweep)
    assert len(bench.sample(candidate(kernel, 1), FINAL)) == 1  # as long as the whole budget
    assert bench.seconds == pytest.approx(10.0, rel=0.01)
    noisy = Sweep(sweep.header, (Record(kernel.id, Config(block=0), QUICK, (1e-3, 1.5e-3, 2e-3)),))
    found = ReplayBench(noisy).sample(candidate(kernel, 0), Budget(warmup=0.0, time_cap=0.05, min_samples=3))
    assert 0.05 <= sum(found) <= 0.05 + 10 * 2e-3
    assert len(ReplayBench(noisy).sample(candidate(kernel, 0), Budget(0.0, 9.0, 3, max_samples=20))) == 20


def test_failures_are_replayed(kernel: FakeKernel, cpu: DeviceProfile) -> None:
    sweep = recorded(kernel, cpu, [1e-3, "crashed", "wrong"])
    bench = ReplayBench(sweep)
    with pytest.raises(RememberedError, match="no") as crash:
        bench.sample(candidate(kernel, 1), QUICK)
    assert crash.value.kind == "crashed"
    assert bench.sample(candidate(kernel, 2), QUICK)
    with pytest.raises(RememberedError) as wrong:
        bench.check(candidate(kernel, 2))
    assert wrong.value.kind == "wrong"
    bench.check(candidate(kernel, 0))


def test_seeds_draw_differently(kernel: FakeKernel, cpu: DeviceProfile) -> None:
    sweep = recorded(kernel, cpu, [1e-3])
    one, again, other = (ReplayBench(sweep, seed).sample(candidate(kernel, 0), FINAL) for seed in (1, 1, 2))
    assert one == again != other


def test_regret_is_what_the_winner_costs_beyond_the_best(kernel: FakeKernel, cpu: DeviceProfile) -> None:
    best_is_known = replay(recorded(kernel, cpu, [2e-3, 1e-3, "crashed", "wrong"]), Halving())
    assert best_is_known.winner == candidate(kernel, 1)
    assert best_is_known.regret == 0.0
    assert (best_is_known.configs, best_is_known.timings) == (4, 4 + 2 * 3)
    too_close = replay(recorded(kernel, cpu, [1.01e-3, 1e-3]), Halving())
    assert too_close.winner == candidate(kernel, 0)
    assert too_close.regret == pytest.approx(0.01)
    assert statistics.median([too_close.seconds]) > 0
