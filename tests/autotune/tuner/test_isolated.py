"""Tuning in a child process: real kernels are measured there, and those that only this process knows are not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from faops import registry
from faops.autotune import effort
from faops.autotune.cache import TuningCache
from faops.autotune.measurement import pool
from faops.autotune.measurement.bench import DeviceBench
from faops.autotune.search.ahead import Ahead
from faops.autotune.search.candidates import Candidate, Space
from faops.autotune.search.trial import as_they_stand
from faops.autotune.tuner import tune
from faops.autotune.tuner.benches import Benches
from faops.autotune.tuner.events import Event
from faops.device import DeviceProfile, known
from faops.footprint import Resources
from faops.problem import AttentionProblem
from faops.registry import Config, Kernel

from ..support import PROBLEM, FakeKernel

TINY = AttentionProblem(op="decode", dtype="float32", seqlen_k=64, heads_q=2, heads_kv=1, head_dim=16, head_dim_v=16)


class Borrowed(FakeKernel):
    """A kernel of this process alone, which computes as another one does."""

    op = "decode"

    def launch(self, inputs: Any, config: Config) -> Any:
        kernel = registry.get("torch.blockwise_decode")
        assert kernel is not None
        return kernel.launch(inputs, kernel.default_config(TINY, known("cpu")))


def test_only_what_a_child_does_not_know_is_measured_here(
    cache: TuningCache, register: Callable[[Kernel], Kernel], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("QUICK", "HALVING", "FINAL"):
        monkeypatch.setattr(effort, name, effort.Budget(warmup=0.0, time_cap=0.001, min_samples=1))
    mine = register(Borrowed("borrowed", blocks=2, priority=-1))
    here: list[str] = []
    original = DeviceBench.sampled

    def sampled(self: DeviceBench, item: Candidate, *rest: Any) -> Any:
        here.append(item.kernel.id)
        return original(self, item, *rest)

    monkeypatch.setattr(DeviceBench, "sampled", sampled)
    events: list[Event] = []
    (result,) = tune([TINY], on_event=events.append)
    assert result.status == "tuned", result.message
    assert result.entry is not None
    assert result.entry.dropped == ()
    others = {"torch.blockwise_decode", "torch.sdpa_decode"}
    assert {timing.kernel for timing in result.entry.timings} == {mine.id, *others}
    assert set(here) == {mine.id}
    (told,) = [event for event in events if event.kind == "unisolated"]
    assert told.message == f"a fresh process does not know {mine.id}"


class Compiling(FakeKernel):
    def compile(self, problem: AttentionProblem, device: DeviceProfile, config: Config) -> Resources | None:
        return None


@pytest.mark.parametrize(
    ("device", "kernel", "simulated", "ahead"),
    [
        ("cuda", Compiling(), False, True), ("cuda", FakeKernel(), False, False), ("cpu", Compiling(), False, False),
        ("cuda", Compiling(), True, False),
    ],
)  # fmt: skip
def test_candidates_are_compiled_ahead_where_another_device_measures_meanwhile(
    device: str, kernel: Kernel, simulated: bool, ahead: bool
) -> None:
    space = Space((Candidate(kernel, Config(block=0)),))
    profile = known("h200" if device == "cuda" else "cpu")
    made = (lambda *place: None) if simulated else None
    with Benches(torch.device(device), profile, made, isolate=True) as benches:  # type: ignore[arg-type]
        feed = benches.feed(PROBLEM, space)
        if ahead:
            assert isinstance(feed, Ahead) and isinstance(feed.pool, pool.CompilePool)
            assert benches.feed(PROBLEM, space).pool is feed.pool  # type: ignore[attr-defined]
        else:
            assert feed is as_they_stand
