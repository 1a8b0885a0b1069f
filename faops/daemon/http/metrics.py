"""Counters for Prometheus, in a registry of their own.

What the queue counts is read from it at every scrape and so outlives a restart; the rest begins at 0 with the process,
as Prometheus expects it of counters.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from faops._version import __version__
from faops.errors import DaemonError
from faops.processes import memory_bytes

if TYPE_CHECKING:
    from faops.daemon.queue import Queue

METHODS = ("GET", "HEAD", "POST", "DELETE", "OPTIONS", "PUT", "PATCH")
OTHER = "other"  # methods that nobody has heard of, all in one
CLOSED = "closed"  # in place of a status: the client went away before it was answered

REQUEST_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
SPEEDUPS = (1.02, 1.05, 1.1, 1.2, 1.35, 1.5, 2.0, 3.0, 5.0, 10.0)

# Names in Queue.totals() with those of the counters.
TOTALS = {
    "misses": ("faops_misses", "Problems that programs ran untuned"),
    "untuned_calls": ("faops_untuned_calls", "Calls that programs made untuned, as far as they have told"),
    "seconds_tuning": ("faops_tuning_seconds", "Time spent tuning"),
    "measurements": ("faops_measurements", "Configs timed"),
    "rejected_samples": ("faops_rejected_samples", "Samples that did not count, as of a throttled clock"),
    "crashes": ("faops_worker_crashes", "Jobs that ended their process"),
    "saved_seconds": ("faops_saved_call_seconds", "What one call of each winner takes less than by the default"),
}

# Else every counter comes with a gauge that says when it was made.
prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]


class GateLike(Protocol):
    """What is shown of a gate's state."""

    @property
    def open(self) -> bool: ...
    @property
    def idle_seconds(self) -> float: ...
    @property
    def figures(self) -> Mapping[str, float]: ...


class Metrics:
    """The daemon's counters. Every method is quick and raises nothing."""

    def __init__(self, queue: Queue) -> None:
        self.registry = registry = CollectorRegistry()
        self._gate_open = Gauge("faops_gate_open", "1 where tuning may go on", ["device"], registry=registry)
        self._idle = Gauge(
            "faops_device_idle_seconds", "How long nobody else has used a device", ["device"], registry=registry
        )
        self._shown_figures: dict[str, set[str]] = {}
        self._figures = Gauge(
            "faops_gate_reading", "What a gate has looked at", ["device", "figure"], registry=registry
        )
        self._workers = Gauge(
            "faops_worker_memory_bytes", "Memory of the measuring child", ["device"], registry=registry
        )
        self._device_seconds = Counter(
            "faops_device_tuning_seconds", "Time spent tuning since the start", ["device"], registry=registry
        )
        self._speedup = Histogram(
            "faops_speedup_ratio", "The default's time over the winner's", buckets=SPEEDUPS, registry=registry
        )
        self._errors = Counter("faops_errors", "What went wrong", ["kind"], registry=registry)
        self._refused = Counter(
            "faops_refused_connections", "Connections that were not taken", ["reason"], registry=registry
        )
        self._requests = Counter(
            "faops_http_requests", "Requests answered", ["method", "path", "status"], registry=registry
        )
        self._request_seconds = Histogram(
            "faops_http_request_duration_seconds", "Time to answer", buckets=REQUEST_SECONDS, registry=registry
        )
        Gauge("faops_build_info", "The version", ["version"], registry=registry).labels(__version__).set(1)
        registry.register(_FromQueue(queue, self.failed))
        registry.register(_Memory())

    def finished(self, result: Mapping[str, Any], device: str) -> None:
        """A job is done: the worker's result."""
        self._device_seconds.labels(device).inc(max(0.0, result.get("seconds") or 0.0))
        speedup = result.get("speedup")
        if result.get("status") == "tuned" and not result.get("is_default") and speedup:
            self._speedup.observe(speedup)

    def failed(self, kind: str) -> None:
        """Something went wrong; ``kind`` is one of a few words."""
        self._errors.labels(kind).inc()

    def gate(self, device: str, state: GateLike) -> None:
        """What the gate of a device said."""
        self._gate_open.labels(device).set(state.open)
        self._idle.labels(device).set(state.idle_seconds)
        shown = self._shown_figures.setdefault(device, set())
        for name in shown - set(state.figures):  # not every look tells all of them
            self._figures.remove(device, name)
        for name, figure in state.figures.items():
            self._figures.labels(device, name).set(figure)
        self._shown_figures[device] = set(state.figures)

    def worker(self, device: str, memory_bytes: int | None) -> None:
        """What the measuring child of a device holds; None: there is none."""
        self._workers.labels(device).set(memory_bytes or 0)

    def refused(self, reason: str) -> None:
        """A connection was not taken; ``reason`` is one of a few words."""
        self._refused.labels(reason).inc()

    def answered(self, method: str, path: str, status: int, seconds: float) -> None:
        """A request was answered; ``path`` as in the API's description. A status of 0: nobody waited for it."""
        known = method if method in METHODS else OTHER
        self._requests.labels(known, path, str(status) if status else CLOSED).inc()
        self._request_seconds.observe(seconds)

    def rendered(self, accept: str = "") -> tuple[bytes, str]:
        """All of it in the format that an Accept header asks for, with that format's media type."""
        encode, media_type = choose_encoder(accept)
        return encode(self.registry), media_type


class _FromQueue(Collector):
    """What the queue counts. One that cannot be read is told as an error, and left out of this scrape."""

    def __init__(self, queue: Queue, failed: Any) -> None:
        self.queue, self.failed = queue, failed

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        try:
            totals, counts = self.queue.totals(), self.queue.counts()
        except DaemonError:
            self.failed("queue")
            return
        for key, (name, meaning) in TOTALS.items():
            yield CounterMetricFamily(name, meaning, value=totals[key])
        winners = CounterMetricFamily("faops_winners", "Problems tuned, by what is best", labels=["outcome"])
        winners.add_metric(["faster"], totals["won"])
        winners.add_metric(["default"], totals["tuned"] - totals["won"])
        yield winners
        jobs = GaugeMetricFamily("faops_jobs", "Jobs, by their state", labels=["state"])
        for state, count in counts.items():
            jobs.add_metric([state], count)
        yield jobs
        yield GaugeMetricFamily("faops_queue_depth", "Jobs that wait or run", counts["waiting"] + counts["running"])


class _Memory(Collector):
    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily("faops_daemon_memory_bytes", "Memory of the daemon itself", memory_bytes(os.getpid()))
