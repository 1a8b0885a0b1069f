"""Statistics of samples, and when sampling ends; with a clock whose time is made up."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from faops.autotune import effort
from faops.autotune.effort import Budget
from faops.autotune.measurement import clocks as measure
from faops.autotune.measurement.clocks import (
    Clock,
    EventClock,
    HostClock,
    in_groups,
    quantile,
    relative_error,
    sample,
    summarize,
)
from faops.autotune.measurement.conditions import Batch
from faops.registry import Config

CONFIG = Config(block=1)


class MadeUpTime:
    """Stands for the module ``time``: a call takes as long as the next of ``durations``."""

    def __init__(self, durations: Callable[[int], float]) -> None:
        self.now = 0.0
        self.calls = 0
        self.durations = durations

    def perf_counter(self) -> float:
        return self.now

    def call(self) -> None:
        self.now += self.durations(self.calls)
        self.calls += 1


def sampled(
    monkeypatch: pytest.MonkeyPatch, durations: Callable[[int], float], budget: Budget
) -> tuple[MadeUpTime, list[float]]:
    clock = MadeUpTime(durations)
    monkeypatch.setattr(measure, "time", clock)
    return clock, sample(clock.call, HostClock(), budget).samples


def test_sampling_ends_when_the_median_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    budget = Budget(warmup=0.125, time_cap=100.0, min_samples=5)
    clock, found = sampled(monkeypatch, lambda call: 1 / 128, budget)
    assert found == [1 / 128] * 5
    assert clock.calls == 16 + 5  # the warm-up is not counted


def test_noise_is_sampled_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    budget = Budget(warmup=0.0, time_cap=100.0, min_samples=5)
    _, found = sampled(monkeypatch, lambda call: 0.01 * (1 + 0.1 * (call % 3)), budget)
    assert len(found) > 50
    assert relative_error(found) <= effort.RELATIVE_ERROR


def test_the_time_cap_ends_sampling(monkeypatch: pytest.MonkeyPatch) -> None:
    budget = Budget(warmup=0.0, time_cap=0.2, min_samples=5)
    _, found = sampled(monkeypatch, lambda call: 0.01 * (1 + call % 3), budget)
    assert 0.2 <= sum(found) <= 0.25


def test_a_call_longer_than_the_budget_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, found = sampled(monkeypatch, lambda call: 5.0, Budget(warmup=0.0, time_cap=0.2, min_samples=5))
    assert found == [5.0]
    assert clock.calls == 1


def test_short_calls_are_timed_several_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    budget = Budget(warmup=0.0, time_cap=1.0, min_samples=5)
    clock, found = sampled(monkeypatch, lambda call: 1e-5, budget)
    assert found == pytest.approx([1e-5] * 5)
    assert clock.calls >= 5 * effort.MIN_SAMPLE_SECONDS / 1e-5


def test_the_median_is_the_smallest_of_the_groups() -> None:
    disturbed = [1.0] * 5 + [1.5] * 5 + [1.1] * 5
    groups = in_groups(disturbed)
    assert [len(group) for group in groups] == [5, 5, 5]
    timing = summarize("fake.forward", CONFIG, groups)
    assert timing.p50 == 1.0
    assert timing.p20 <= timing.p50 <= timing.p80
    assert timing.n == 15
    assert timing.noisy
    assert timing.mad == pytest.approx(0.1)


def test_few_samples_are_one_group_and_noisy() -> None:
    assert [list(group) for group in in_groups([1.0, 2.0])] == [[1.0, 2.0]]
    assert summarize("fake.forward", CONFIG, [[1.0, 1.0]]).noisy
    assert not summarize("fake.forward", CONFIG, [[1.0] * 10]).noisy
    assert len(in_groups([1.0] * 1000)) == effort.GROUPS


@pytest.mark.parametrize("part", [0.0, 0.2, 0.5, 0.8, 1.0])
def test_quantiles_are_those_of_torch(part: float) -> None:
    samples = torch.rand(17, dtype=torch.float64)
    assert quantile(samples.tolist(), part) == pytest.approx(float(samples.quantile(part)))


def test_relative_error_estimates_the_standard_error_of_the_median() -> None:
    samples = torch.randn(2000, 101, dtype=torch.float64) * 0.05 + 1
    truth = float(samples.median(dim=1).values.std())
    estimates = [relative_error(row.tolist()) for row in samples[:200]]
    assert sum(estimates) / len(estimates) == pytest.approx(truth, rel=0.15)


def test_the_host_clock_waits_for_the_device() -> None:
    waited: list[int] = []
    clock: Clock = HostClock(lambda: waited.append(1))
    assert clock.run(lambda: None) >= 0
    assert waited == [1]


class FakeDevice:
    """Stands for a device module such as ``torch.cuda``: its queue notes what is done, one millisecond each."""

    def __init__(self) -> None:
        self.queue: list[str] = []

    def synchronize(self) -> None:
        self.queue.append("synchronize")

    def Event(self, enable_timing: bool) -> FakeEvent:  # noqa: N802 (the name torch gives it)
        assert enable_timing
        return FakeEvent(self)


class FakeEvent:
    def __init__(self, device: FakeDevice) -> None:
        self.device = device

    def record(self) -> None:
        self.device.queue.append("event")
        self.place = len(self.device.queue)

    def elapsed_time(self, end: FakeEvent) -> float:
        return float(end.place - self.place - 1)  # milliseconds


def test_the_event_clock_times_each_call_alone_with_a_cold_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    device = FakeDevice()
    monkeypatch.setattr(torch, "get_device_module", lambda where: device)
    clock = EventClock(torch.device("cpu"), l2_bytes=1000)
    assert clock.flush.numel() == 2000
    monkeypatch.setattr(type(clock.flush), "zero_", lambda tensor: device.queue.append("flush"))

    def call() -> None:
        device.queue += ["first half", "second half"]

    assert clock.batch(call, 1.0) == Batch([0.002] * effort.EVENT_BATCH)
    once = ["flush", "event", "first half", "second half", "event"]
    assert device.queue == once * effort.EVENT_BATCH + ["synchronize"]
    device.queue.clear()
    assert clock.run(call) >= 0
    assert device.queue == ["synchronize", "first half", "second half", "synchronize"]
