"""Timing one call: warm-up, samples until the median is known well enough, and the summary of the samples."""

from __future__ import annotations

import itertools
import statistics
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch

from faops.autotune import effort
from faops.autotune.effort import Budget
from faops.autotune.entry import Timing
from faops.device import DeviceProfile
from faops.registry import Config

Call = Callable[[], Any]

# Standard error of a median, with the standard deviation estimated from the median absolute deviation:
# sqrt(pi / 2) · 1.4826 · MAD / sqrt(n), for normal noise.
MEDIAN_ERROR_FACTOR = 1.2533 * 1.4826


class Clock(ABC):
    """A way to time calls on one kind of device."""

    @abstractmethod
    def run(self, call: Call) -> float:
        """Seconds of one call from start to end, as a host would wait for it."""

    @abstractmethod
    def samples(self, call: Call, estimate: float) -> list[float]:
        """A few samples, in seconds a call, of a call that takes about ``estimate`` seconds."""


class HostClock(Clock):
    """The processor's clock, for devices that compute in the calling thread; ``wait`` waits for any other."""

    def __init__(self, wait: Callable[[], None] | None = None) -> None:
        self.wait = wait

    def run(self, call: Call) -> float:
        return self._time(call, 1)

    def samples(self, call: Call, estimate: float) -> list[float]:
        calls = min(effort.MAX_CALLS_A_SAMPLE, 1 + int(effort.MIN_SAMPLE_SECONDS / max(estimate, 1e-9)))
        return [self._time(call, calls)]

    def _time(self, call: Call, calls: int) -> float:
        start = time.perf_counter()
        for _ in range(calls):
            call()
        if self.wait is not None:
            self.wait()
        return (time.perf_counter() - start) / calls


class EventClock(Clock):
    """Events in the device's own queue, each call with a cold L2 cache.

    Overwriting the flush buffer also keeps the device busy while the host enqueues the call, so the host's time is
    not measured.
    """

    def __init__(self, device: torch.device, l2_bytes: int) -> None:
        self.module = torch.get_device_module(device)
        self.flush = torch.empty(max(1, effort.L2_FLUSH_FACTOR * l2_bytes), dtype=torch.uint8, device=device)

    def run(self, call: Call) -> float:
        self.module.synchronize()
        start = time.perf_counter()
        call()
        self.module.synchronize()
        return time.perf_counter() - start

    def samples(self, call: Call, estimate: float) -> list[float]:
        pairs = []
        for _ in range(effort.EVENT_BATCH):
            begin, end = self.module.Event(enable_timing=True), self.module.Event(enable_timing=True)
            self.flush.zero_()
            begin.record()
            call()
            end.record()
            pairs.append((begin, end))
        self.module.synchronize()
        return [begin.elapsed_time(end) / 1e3 for begin, end in pairs]


def clock_for(device: torch.device, profile: DeviceProfile) -> Clock:
    """The best clock that ``device`` has."""
    if device.type == "cpu":
        return HostClock()
    module = torch.get_device_module(device)
    if device.type in ("cuda", "npu", "xpu"):
        return EventClock(device, profile.l2_bytes)
    return HostClock(module.synchronize)


def warm_up(call: Call, clock: Clock, seconds: float) -> float:
    """Call for about ``seconds``, at least once; the shortest time seen of one call, in seconds."""
    deadline = time.perf_counter() + seconds
    shortest = clock.run(call)
    while time.perf_counter() < deadline:
        shortest = min(shortest, clock.run(call))
    return shortest


def sample(call: Call, clock: Clock, budget: Budget) -> list[float]:
    """Samples of ``call`` in seconds: until the median is known to RELATIVE_ERROR, or the budget is spent.

    A call that takes longer than the whole budget is timed once, without a warm-up, which could not change much.
    """
    estimate = warm_up(call, clock, budget.warmup)
    if estimate >= max(budget.warmup, budget.time_cap):
        return [estimate]
    found: list[float] = []
    deadline = time.perf_counter() + budget.time_cap
    while len(found) < budget.max_samples:
        found += clock.samples(call, estimate)
        known = len(found) >= budget.min_samples and relative_error(found) <= effort.RELATIVE_ERROR
        if known or time.perf_counter() >= deadline:
            break
    return found


def relative_error(samples: Sequence[float]) -> float:
    """Standard error of the median of ``samples`` as a part of the median."""
    middle = statistics.median(samples)
    return float(MEDIAN_ERROR_FACTOR * deviation(samples) / (middle * len(samples) ** 0.5))


def deviation(samples: Sequence[float]) -> float:
    """Median absolute deviation from the median."""
    middle = statistics.median(samples)
    return statistics.median(abs(value - middle) for value in samples)


def in_groups(samples: Sequence[float]) -> list[Sequence[float]]:
    """``samples`` in the order they were taken, cut into up to GROUPS groups of at least MIN_GROUP."""
    count = max(1, min(effort.GROUPS, len(samples) // effort.MIN_GROUP))
    bounds = [len(samples) * index // count for index in range(count + 1)]
    return [samples[first:last] for first, last in itertools.pairwise(bounds)]


def summarize(kernel: str, config: Config, groups: Sequence[Sequence[float]]) -> Timing:
    """The timing that groups of samples amount to: p50 is the smallest of their medians, the rest is over all."""
    everything = [value for group in groups for value in group]
    p50 = min(statistics.median(group) for group in groups)
    p20, p80 = quantile(everything, 0.2), quantile(everything, 0.8)
    return Timing(
        kernel=kernel,
        config=config,
        p20=min(p20, p50),
        p50=p50,
        p80=max(p80, p50),
        mad=deviation(everything),
        n=len(everything),
        noisy=len(everything) < effort.FEW_SAMPLES or (p80 - p20) / p50 > effort.NOISY_SPREAD,
    )


def quantile(samples: Sequence[float], part: float) -> float:
    """The ``part`` quantile, linear between the two nearest samples."""
    ordered = sorted(samples)
    position = part * (len(ordered) - 1)
    below = int(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (position - below) * (ordered[above] - ordered[below])
