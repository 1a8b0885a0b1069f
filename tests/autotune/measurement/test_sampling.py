"""How sampling meets a device that is disturbed, and calls replayed as a graph; with devices that are made up."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from faops.autotune import effort
from faops.autotune.effort import Budget
from faops.autotune.measurement import bench as bench_module
from faops.autotune.measurement import clocks
from faops.autotune.measurement.bench import DeviceBench
from faops.autotune.measurement.clocks import Call, Clock, EventClock, HostClock, sample
from faops.autotune.measurement.conditions import Batch, Conditions, State
from faops.autotune.measurement.nvml import Gpu
from faops.autotune.search.candidates import Candidate
from faops.device import detect
from faops.problem import AttentionProblem
from faops.registry import Config, Kernel

FAST, SLOW = State(1980, 2619), State(1500, 2619)
HOT = State(1980, 2619, ("heat, by hardware",))
BUDGET = Budget(warmup=0.0, time_cap=1.0, min_samples=4)
TAKES = 0.1  # a batch


def idle() -> None:
    """A call that costs nothing."""


@dataclass
class MadeUpClock(Clock):
    """Each batch holds two equal samples and takes TAKES seconds; its number decides the rest."""

    state: Callable[[int], State | None] = lambda number: FAST
    seconds: Callable[[int], float] = lambda number: 0.01
    others: list[bool | None] = field(default_factory=list)  # answers to foreign(), the first one first
    why_no_graph: str = ""
    batches: int = 0
    calls: list[Call] = field(default_factory=list)
    now: float = 0.0

    def run(self, call: Call) -> float:
        return 0.01

    def batch(self, call: Call, estimate: float) -> Batch:
        self.calls.append(call)
        number, self.batches, self.now = self.batches, self.batches + 1, self.now + TAKES
        return Batch([self.seconds(number)] * 2, self.state(number))

    def captured(self, call: Call) -> Call:
        if self.why_no_graph:
            raise RuntimeError(self.why_no_graph)
        return "the graph of", call  # type: ignore[return-value]

    def foreign(self) -> bool | None:
        return self.others.pop(0) if self.others else None

    def perf_counter(self) -> float:
        """So that it stands for the module ``time``."""
        return self.now


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> Callable[..., clocks.Sampled]:
    def take(clock: MadeUpClock, budget: Budget = BUDGET) -> clocks.Sampled:
        monkeypatch.setattr(clocks, "time", clock)
        return sample(idle, clock, budget)

    return take


Taken = Callable[..., clocks.Sampled]


def test_an_undisturbed_device_is_sampled_until_the_median_is_known(taken: Taken) -> None:
    clock = MadeUpClock()
    found = taken(clock)
    assert found.samples == [0.01] * 4
    assert found.conditions == Conditions(1980, 1980, 2619)


def test_samples_at_a_low_clock_are_taken_again(taken: Taken) -> None:
    """Those taken before the clock rose do not count once it is known to rise."""
    clock = MadeUpClock(state=lambda number: SLOW if number == 0 else FAST, seconds=lambda number: 0.01 + (number == 0))
    found = taken(clock)
    assert found.samples == [0.01] * 4
    assert found.conditions.rejected == 2
    assert clock.batches == 3


def test_a_slowed_device_is_waited_for(taken: Taken) -> None:
    """Longer than the time cap, while there is nothing that counts."""
    cool = round(1.5 * BUDGET.time_cap / TAKES)
    clock = MadeUpClock(state=lambda number: HOT if number < cool else FAST)
    found = taken(clock)
    assert found.conditions.rejected == 2 * cool
    assert found.conditions.notes == ()
    assert len(found.samples) == 2  # the cap is over


def test_a_device_that_stays_slowed_is_timed_as_it_is(taken: Taken) -> None:
    clock = MadeUpClock(state=lambda number: HOT)
    found = taken(clock)
    assert clock.now == pytest.approx(effort.DISTURBED_PATIENCE * BUDGET.time_cap, abs=2 * TAKES)
    assert len(found.samples) == 2 * clock.batches
    assert "slowed all the time: heat, by hardware" in found.conditions.notes[0]


def test_a_timing_beside_another_process_is_taken_again(taken: Taken) -> None:
    clock = MadeUpClock(others=[True, False], seconds=lambda number: 0.02 if number < 2 else 0.01)
    found = taken(clock)
    assert found.samples == [0.01] * 4
    assert found.conditions.notes == ()


def test_another_process_is_not_waited_for_without_end(taken: Taken) -> None:
    clock = MadeUpClock(others=[True] * 100)
    found = taken(clock)
    assert clock.batches == 2 * (1 + effort.FOREIGN_RETRIES)
    assert found.conditions.notes == ("timed although another process computed on the device",)


def test_finalists_are_replayed_as_a_graph(taken: Taken) -> None:
    clock = MadeUpClock()
    taken(clock)
    assert set(clock.calls) == {idle}
    clock.calls.clear()
    found = taken(clock, replace(BUDGET, graph=True))
    assert set(clock.calls) == {("the graph of", idle)}
    assert found.conditions.notes == ()
    assert effort.FINAL.graph and not effort.QUICK.graph and not effort.HALVING.graph


def test_a_call_that_makes_no_graph_is_timed_plainly(taken: Taken) -> None:
    clock = MadeUpClock(why_no_graph="it synchronises")
    found = taken(clock, replace(BUDGET, graph=True))
    assert set(clock.calls) == {idle}
    assert found.conditions.notes == ("timed without a CUDA graph: RuntimeError: it synchronises",)
    assert found.samples == [0.01] * 4


def test_a_cpu_knows_nothing_of_all_this() -> None:
    found = sample(idle, HostClock(), replace(effort.FINAL, warmup=0.0, time_cap=0.0, min_samples=1))
    assert found.conditions == Conditions()
    assert HostClock().captured(idle) is idle
    assert HostClock().foreign() is None


# ------------------------------------------------------------------------------------------ events and graphs


class MadeUpDevice:
    """Stands for a device module such as ``torch.cuda``; notes what is done."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.capturing = False

    def synchronize(self) -> None:
        self.done.append("synchronize")

    def Event(self, enable_timing: bool) -> MadeUpDevice:  # noqa: N802 (the name torch gives it)
        return self

    def record(self) -> None:
        self.done.append("event")

    def elapsed_time(self, end: object) -> float:
        return 1.0

    def CUDAGraph(self) -> MadeUpDevice:  # noqa: N802
        return self

    def replay(self) -> None:
        self.done.append("replay")

    @contextlib.contextmanager
    def graph(self, graph: object) -> Iterator[None]:
        assert graph is self
        self.capturing = True
        yield
        self.capturing = False


class MadeUpGpu:
    def __init__(self, device: MadeUpDevice) -> None:
        self.device = device

    def state(self) -> State:
        self.device.done.append("state")
        return FAST

    def foreign(self) -> bool:
        return True


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> MadeUpDevice:
    made = MadeUpDevice()
    monkeypatch.setattr(torch, "get_device_module", lambda where: made)
    return made


def event_clock(device: MadeUpDevice, kind: str = "cpu") -> EventClock:
    clock = EventClock(torch.device("cpu"), 1000, cast(Gpu, MadeUpGpu(device)))
    clock.device = torch.device(kind)
    return clock


def test_the_state_is_read_while_the_device_works(device: MadeUpDevice) -> None:
    batch = event_clock(device).batch(idle, 1.0)
    assert batch == Batch([1e-3] * effort.EVENT_BATCH, FAST)
    assert device.done[-2:] == ["state", "synchronize"]
    assert device.done.count("state") == 1


def test_the_gpu_tells_of_others(device: MadeUpDevice) -> None:
    assert event_clock(device).foreign() is True
    assert EventClock(torch.device("cpu"), 1000).foreign() is None
    assert EventClock(torch.device("cpu"), 1000).batch(idle, 1.0).state is None


def test_a_graph_is_captured_once_and_replayed(device: MadeUpDevice) -> None:
    captured: list[bool] = []
    replay = event_clock(device, "cuda").captured(lambda: captured.append(device.capturing))
    assert captured == [True]
    replay()
    assert captured == [True]
    assert device.done == ["replay"]


def test_only_cuda_has_graphs(device: MadeUpDevice) -> None:
    assert event_clock(device, "xpu").captured(idle) is idle


# ------------------------------------------------------------------------------------------ the bench


def test_a_bench_collects_conditions(troublesome: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = MadeUpClock(state=lambda number: SLOW if number == 0 else FAST)
    monkeypatch.setattr(bench_module, "watched", lambda device: (None, "not watched"))
    monkeypatch.setattr(bench_module, "clock_for", lambda *given: clock)
    monkeypatch.setattr(clocks, "time", clock)
    problem = AttentionProblem(
        dtype="float32", seqlen_q=16, seqlen_k=16, heads_q=2, heads_kv=1, head_dim=16, head_dim_v=16
    )
    monkeypatch.setattr(effort, "WARMUP_SECONDS", 0.0)
    bench = DeviceBench(problem, torch.device("cpu"), detect("cpu"))
    assert bench.conditions == Conditions()
    candidate = Candidate(troublesome, Config(do=""))
    for _ in range(2):
        assert bench.sample(candidate, BUDGET) == [0.01] * 4
    assert bench.conditions == Conditions(1980, 1980, 2619, rejected=2, notes=("not watched",))


def test_the_device_is_the_current_one_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    """Events are recorded on the current device."""
    entered: list[object] = []

    @contextlib.contextmanager
    def device(where: object) -> Iterator[None]:
        entered.append(where)
        yield

    monkeypatch.setattr(torch, "get_device_module", lambda where: SimpleNamespace(device=device))
    for where in (torch.device("cuda", 1), torch.device("cuda"), torch.device("cpu")):
        with clocks.current(where):
            pass
    assert entered == [torch.device("cuda", 1)]
    monkeypatch.setattr(torch, "get_device_module", lambda where: SimpleNamespace())
    with clocks.current(torch.device("mps", 0)):
        pass


def test_the_gpu_is_watched_before_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or the driver would count this process among those that were there before."""
    order: list[str] = []
    gpu = object()

    def watch(device: object) -> tuple[object, str]:
        order.append("watch")
        return gpu, ""

    def clock(device: object, profile: object, given: object) -> Any:
        assert given is gpu
        order.append("use")

    monkeypatch.setattr(bench_module, "watched", watch)
    monkeypatch.setattr(bench_module, "clock_for", clock)
    monkeypatch.setattr(bench_module, "inputs_for", lambda *given: None)
    DeviceBench(AttentionProblem(), torch.device("cpu"), detect("cpu"))
    assert order == ["watch", "use"]
