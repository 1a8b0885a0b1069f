"""Counters for Prometheus."""

from __future__ import annotations

import math
import re
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from faops.daemon.queue import FullError, Queue
from tests.daemon.http.support import RESULT, FakeControl, task

UNITS = ("seconds", "bytes", "ratio", "total", "info")


@pytest.fixture
def busy(control: FakeControl) -> FakeControl:
    """A daemon in which everything has happened once."""
    first, second, *_ = control.queue.missed([(task(number), 10) for number in range(1, 6)])
    for job, changes in ((first, {}), (second, {"is_default": True, "speedup": 1.0})):
        control.queue.begin(job.id)
        result = {**RESULT, **changes}
        control.queue.finish(job.id, result, "")
        control.metrics.finished(result, "cpu")
    control.queue.begin(control.queue.next().id)
    metrics = control.metrics
    metrics.failed("crash")
    metrics.gate("cpu", SimpleNamespace(open=True, idle_seconds=31.5, figures={"busy_cores": 0.25}))
    metrics.worker("cpu", 300_000_000)
    metrics.refused("user")
    metrics.answered("GET", "/v1/jobs/{id}", 200, 0.003)
    metrics.answered("GET", "/v1/status", 0, 0.003)
    return control


def families(control: FakeControl) -> dict[str, Metric]:
    text, _ = control.metrics.rendered()
    return {family.name: family for family in parse_text(text.decode())}


def shown(found: dict[str, Metric], name: str) -> dict[tuple[str, ...], float]:
    return {tuple(sample.labels.values()): sample.value for sample in found[name].samples}


def values(control: FakeControl, name: str) -> dict[tuple[str, ...], float]:
    return shown(families(control), name)


def test_what_happened_is_counted(busy: FakeControl) -> None:
    found = families(busy)
    assert shown(found, "faops_misses") == {(): 5}
    assert shown(found, "faops_untuned_calls") == {(): 50}
    assert shown(found, "faops_jobs") == {
        ("waiting",): 2, ("running",): 1, ("done",): 2, ("quarantined",): 0, ("cancelled",): 0
    }  # fmt: skip
    assert shown(found, "faops_queue_depth") == {(): 3}
    assert shown(found, "faops_tuning_seconds") == {(): 62}
    assert shown(found, "faops_device_tuning_seconds") == {("cpu",): 62}
    assert shown(found, "faops_measurements") == {(): 118}
    assert shown(found, "faops_rejected_samples") == {(): 6}
    assert shown(found, "faops_winners") == {("faster",): 1, ("default",): 1}
    assert shown(found, "faops_saved_call_seconds")[()] == pytest.approx(0.001)
    assert shown(found, "faops_errors") == {("crash",): 1}
    assert shown(found, "faops_gate_open") == {("cpu",): 1}
    assert shown(found, "faops_device_idle_seconds") == {("cpu",): 31.5}
    assert shown(found, "faops_gate_reading") == {("cpu", "busy_cores"): 0.25}
    assert shown(found, "faops_worker_memory_bytes") == {("cpu",): 300_000_000}
    assert shown(found, "faops_refused_connections") == {("user",): 1}
    assert shown(found, "faops_http_requests") == {
        ("GET", "/v1/jobs/{id}", "200"): 1, ("GET", "/v1/status", "closed"): 1
    }  # fmt: skip
    assert 1e6 < shown(found, "faops_daemon_memory_bytes")[()] < 1e11
    speedups = {sample.labels.get("le"): sample.value for sample in found["faops_speedup_ratio"].samples}
    assert (speedups["1.2"], speedups["1.35"], speedups["+Inf"]) == (0, 1, 1)


def test_a_restart_loses_nothing_that_the_queue_knows(busy: FakeControl) -> None:
    again, before = families(FakeControl(busy.queue)), families(busy)
    for name in ("faops_misses", "faops_winners", "faops_tuning_seconds", "faops_measurements", "faops_jobs"):
        assert shown(again, name) == shown(before, name)


@pytest.mark.parametrize(
    "result", [{"status": "failed"}, {"status": "warm", "speedup": 2.0, "seconds": None}, {**RESULT, "speedup": None}]
)
def test_a_result_may_lack_anything(control: FakeControl, result: dict[str, Any]) -> None:
    control.metrics.finished(result, "cuda:0")
    assert families(control)["faops_speedup_ratio"].samples[-1].value == 0


def test_a_figure_that_is_told_no_more_is_gone(busy: FakeControl) -> None:
    busy.metrics.gate("cuda:0", SimpleNamespace(open=False, idle_seconds=0.0, figures={"others": 2.0}))
    busy.metrics.gate("cpu", SimpleNamespace(open=False, idle_seconds=0.0, figures={"stolen_cores": 0.5}))
    assert values(busy, "faops_gate_reading") == {("cuda:0", "others"): 2, ("cpu", "stolen_cores"): 0.5}


def test_a_child_that_is_gone_holds_nothing(busy: FakeControl) -> None:
    busy.metrics.worker("cpu", None)
    assert values(busy, "faops_worker_memory_bytes") == {("cpu",): 0}


def test_names_follow_the_conventions(busy: FakeControl) -> None:
    """Those of prometheus.io/docs/practices/naming: one prefix, snake case, base units at the end, help everywhere,
    counters end in _total and nothing else does, no label repeats in a name."""
    for name, family in families(busy).items():
        assert re.fullmatch(r"faops(_[a-z]+)+", name) and family.documentation and not name.endswith("_total"), name
        assert family.type in ("counter", "gauge", "histogram"), name
        assert not re.search(r"(milli|micro|minutes|hours|percent|mega|kilo|_mb|_ms)", name), name
        for sample in family.samples:
            assert math.isfinite(sample.value)
            assert (family.type == "counter") == sample.name.endswith("_total"), sample.name
            assert not any(label != "device" and f"_{label}_" in f"{name}_" for label in sample.labels), sample.name
        if re.search(r"seconds|bytes|ratio", name):
            assert name.endswith(UNITS), name


def test_both_formats_say_the_same(busy: FakeControl) -> None:
    openmetrics, media_type = busy.metrics.rendered("application/openmetrics-text; version=1.0.0")
    assert media_type.startswith("application/openmetrics-text")
    names = {family.name for family in parse_openmetrics(openmetrics.decode())}
    assert names == set(families(busy))


def test_a_queue_that_cannot_be_read_leaves_the_rest(busy: FakeControl, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(queue: Queue) -> Any:
        raise FullError("the queue cannot be read: disk I/O error")

    monkeypatch.setattr(Queue, "totals", full)
    families(busy)  # the error is counted while this is written
    found = families(busy)
    assert "faops_jobs" not in found and "faops_gate_open" in found
    assert values(busy, "faops_errors")[("queue",)] >= 1


def test_two_daemons_in_one_process_do_not_mix(busy: FakeControl) -> None:
    assert FakeControl(busy.queue).metrics.registry is not busy.metrics.registry
