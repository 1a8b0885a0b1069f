"""Timing one call: warm-up, samples until the median is known well enough, and the summary of the samples."""

from __future__ import annotations

import itertools
import statistics
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, cast

import torch

from faops.autotune import effort
from faops.autotune.cache.entry import Timing
from faops.autotune.effort import Budget
from faops.autotune.measurement.conditions import Batch, Conditions, conditions_of, undisturbed
from faops.autotune.measurement.nvml import Gpu
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
    def batch(self, call: Call, estimate: float) -> Batch:
        """A few samples of a call that takes about ``estimate`` seconds."""

    def captured(self, call: Call) -> Call:
        """``call`` in the form that takes the host's time out of it, where the device has one. Raises whatever
        prevents it."""
        return call

    def recorded(self, call: Call) -> Batch | None:
        """Samples of what ``call`` computes on the device and nothing else, from a recording of its kernels; None
        where nothing records them. Raises whatever prevents it."""
        return None

    def foreign(self) -> bool | None:
        """Whether another process has computed on the device since this was last asked; None if nobody knows."""
        return None


class HostClock(Clock):
    """The processor's clock, for devices that compute in the calling thread; ``wait`` waits for any other."""

    def __init__(self, wait: Callable[[], None] | None = None) -> None:
        self.wait = wait

    def run(self, call: Call) -> float:
        return self._time(call, 1)

    def batch(self, call: Call, estimate: float) -> Batch:
        calls = min(effort.MAX_CALLS_A_SAMPLE, 1 + int(effort.MIN_SAMPLE_SECONDS / max(estimate, 1e-9)))
        return Batch([self._time(call, calls)])

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

    def __init__(self, device: torch.device, l2_bytes: int, gpu: Gpu | None = None) -> None:
        self.device = device
        self.gpu = gpu
        self.module = torch.get_device_module(device)
        self.flush = torch.empty(max(1, effort.L2_FLUSH_FACTOR * l2_bytes), dtype=torch.uint8, device=device)

    def run(self, call: Call) -> float:
        self.module.synchronize()
        start = time.perf_counter()
        call()
        self.module.synchronize()
        return time.perf_counter() - start

    def batch(self, call: Call, estimate: float) -> Batch:
        pairs = []
        for _ in range(effort.EVENT_BATCH):
            begin, end = self.module.Event(enable_timing=True), self.module.Event(enable_timing=True)
            self.flush.zero_()
            begin.record()
            call()
            end.record()
            pairs.append((begin, end))
        state = self.gpu.state() if self.gpu is not None else None  # while the device is at work
        self.module.synchronize()
        return Batch([begin.elapsed_time(end) / 1e3 for begin, end in pairs], state)

    def captured(self, call: Call) -> Call:
        """A CUDA graph of ``call``, which must have run before; the call itself on other devices."""
        if self.device.type != "cuda":
            return call
        graph = self.module.CUDAGraph()
        with self.module.graph(graph):
            call()
        return cast(Call, graph.replay)

    def foreign(self) -> bool | None:
        return self.gpu.foreign() if self.gpu is not None else None


def clock_for(device: torch.device, profile: DeviceProfile, gpu: Gpu | None = None) -> Clock:
    """The best clock that ``device`` has; ``gpu`` watches it meanwhile."""
    if device.type == "cpu":
        return HostClock()
    module = torch.get_device_module(device)
    if device.type == "npu":
        from faops.autotune.measurement.ascend import NpuClock  # which is an EventClock

        return NpuClock(device, profile.l2_bytes)
    if device.type in ("cuda", "xpu"):
        return EventClock(device, profile.l2_bytes, gpu)
    return HostClock(module.synchronize)


def current(device: torch.device) -> AbstractContextManager[Any]:
    """Make ``device`` the current one, on which events are recorded, where it has a number and modules know of one."""
    module: Any = None if device.type == "cpu" or device.index is None else torch.get_device_module(device)
    return cast(AbstractContextManager[Any], module.device(device)) if hasattr(module, "device") else nullcontext()


def warm_up(call: Call, clock: Clock, seconds: float) -> float:
    """Call for about ``seconds``, at least once; the shortest time seen of one call, in seconds."""
    deadline = time.perf_counter() + seconds
    shortest = clock.run(call)
    while time.perf_counter() < deadline:
        shortest = min(shortest, clock.run(call))
    return shortest


@dataclass(frozen=True)
class Sampled:
    """Samples in seconds a call, and the conditions under which they were taken."""

    samples: list[float]
    conditions: Conditions = field(default_factory=Conditions)


def sample(call: Call, clock: Clock, budget: Budget) -> Sampled:
    """Samples of ``call``: until the median is known to RELATIVE_ERROR, or the budget is spent.

    A call that takes longer than the whole budget is timed once, without a warm-up, which could not change much.
    Samples that were taken while the device was disturbed do not count; where there are no others for
    DISTURBED_PATIENCE times the time cap, they must do. While another process computes, the timing is taken again.
    """
    estimate = warm_up(call, clock, budget.warmup)
    if estimate >= max(budget.warmup, budget.time_cap):
        return Sampled([estimate])
    notes = []
    if budget.graph:
        batch, note = _recorded(call, clock)
        if batch is not None:
            return Sampled(batch.samples, conditions_of([batch]))
        notes.append(note)
        call, note = _captured(call, clock)
        notes.append(note)
    for _ in range(1 + effort.FOREIGN_RETRIES):
        batches = _batches(call, clock, estimate, budget)
        foreign = clock.foreign()
        if not foreign:
            break
    if foreign:
        notes.append("timed although another process computed on the device")
    counted = undisturbed(batches) or batches
    found = [value for batch in counted for value in batch.samples]
    return Sampled(found, conditions_of(batches, filter(None, notes)))


def _recorded(call: Call, clock: Clock) -> tuple[Batch | None, str]:
    """Samples from a recording, or None and why there is none, "" where the clock makes no recordings."""
    try:
        return clock.recorded(call), ""
    except Exception as error:  # of any profiler; one of the call itself comes again
        return None, f"timed by events, with the host's time: {error}"


def _captured(call: Call, clock: Clock) -> tuple[Call, str]:
    """The form of ``call`` to be timed, and why it is not the one that was wished."""
    try:
        return clock.captured(call), ""
    except Exception as error:  # of any backend: a call that synchronises, say
        return call, f"timed without a CUDA graph: {type(error).__name__}: {error}"


def _batches(call: Call, clock: Clock, estimate: float, budget: Budget) -> list[Batch]:
    batches: list[Batch] = []
    start = time.perf_counter()
    while True:
        batches.append(clock.batch(call, estimate))
        found = [value for batch in undisturbed(batches) for value in batch.samples]
        known = len(found) >= budget.min_samples and relative_error(found) <= effort.RELATIVE_ERROR
        cap = budget.time_cap * (1 if found else effort.DISTURBED_PATIENCE)
        if known or len(found) >= budget.max_samples or time.perf_counter() >= start + cap:
            return batches


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
