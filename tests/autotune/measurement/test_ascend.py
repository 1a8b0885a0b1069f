"""The clock of an NPU, with a made-up device and a made-up profiler of torch_npu that writes what a real one does."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from faops.autotune import effort
from faops.autotune.measurement import ascend, clocks
from faops.autotune.measurement.ascend import KernelTime, NpuClock, read, seconds_a_call
from faops.autotune.measurement.clocks import Sampled, clock_for, sample
from faops.autotune.measurement.conditions import Conditions
from faops.device import known
from faops.errors import TuningError

NPU = known("910b")
FINAL = replace(effort.FINAL, warmup=0.0)
COLUMNS = ("Step Id", "Device_id", "Name", "Type", "Accelerator Core", "Start Time(us)", "Duration(us)", "Block Num")


class Device:
    """Stands for torch.npu and its profiler. Kernels run one after the other, with a microsecond between two."""

    def __init__(self) -> None:
        self.now = 1763770000000000.0  # microseconds since 1970, as the profiler writes them
        self.rows: list[dict[str, Any]] | None = None  # what is being recorded
        self.clearing: tuple[str, ...] = ("ZerosLike",)
        self.sessions = 0
        self.written = True  # whether the profiler writes anything
        self.columns = COLUMNS
        self.settings: list[dict[str, Any]] = []

    def run(self, kernel: str, microseconds: float) -> None:
        if self.rows is not None:
            self.rows.append(
                {"Type": kernel, "Name": f"aclnn{kernel}", "Start Time(us)": f"{self.now:.3f}\t",
                 "Duration(us)": microseconds, "Accelerator Core": "MIX_AIC", "Block Num": 20, "Device_id": 0}
            )  # fmt: skip
        self.now += microseconds + 1

    def clear(self) -> None:
        for kernel in self.clearing:
            self.run(kernel, 200.0)

    # torch.npu

    def synchronize(self) -> None: ...

    def Event(self, enable_timing: bool) -> Event:  # noqa: N802 (the name torch gives it)
        return Event(self)

    # torch_npu.profiler

    def profile(self, **settings: Any) -> Device:
        self.settings.append(settings)
        return self

    def __enter__(self) -> None:
        self.sessions += 1
        self.rows = []

    def __exit__(self, *raised: object) -> None:
        print("[INFO] profiler.py: Start parsing profiling data")
        multiprocessing.set_start_method("fork", force=True)
        rows, self.rows = self.rows or [], None
        if self.written:
            self.settings[-1]["on_trace_ready"](rows)

    def tensorboard_trace_handler(self, folder: str) -> Callable[[list[dict[str, Any]]], None]:
        def write(rows: list[dict[str, Any]]) -> None:
            path = Path(folder) / "host_1_20261121_ascend_pt" / "ASCEND_PROFILER_OUTPUT" / "kernel_details.csv"
            path.parent.mkdir(parents=True)
            # Not in the order in which they ran, as rows of several files are put together.
            lines = [",".join(str(row.get(name, "")) for name in self.columns) for row in reversed(rows)]
            path.write_text("\n".join([",".join(self.columns), *lines]) + "\n", encoding="utf-8")

        return write


class Event:
    def __init__(self, device: Device) -> None:
        self.device = device

    def record(self) -> None:
        self.at = self.device.now

    def elapsed_time(self, end: Event) -> float:
        return (end.at - self.at) / 1e3  # milliseconds


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[Device]:
    made = Device()
    profiler: Any = ModuleType("torch_npu.profiler")
    profiler.profile = made.profile
    profiler.tensorboard_trace_handler = made.tensorboard_trace_handler
    profiler.ProfilerActivity = SimpleNamespace(NPU="npu")
    profiler.ProfilerLevel = SimpleNamespace(Level0="0", Level1="1", Level2="2")
    profiler.AiCMetrics = SimpleNamespace(AiCoreNone="none", PipeUtilization="pipe")
    profiler._ExperimentalConfig = dict
    package = ModuleType("torch_npu")
    package.profiler = profiler  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch_npu", package)
    monkeypatch.setitem(sys.modules, "torch_npu.profiler", profiler)
    monkeypatch.setattr(torch, "get_device_module", lambda where: made)
    monkeypatch.setattr(effort, "ASSUMED_NPU_L2_BYTES", 1000)
    method = multiprocessing.get_start_method(allow_none=True)
    yield made
    multiprocessing.set_start_method(method, force=True)


@pytest.fixture
def clock(device: Device, monkeypatch: pytest.MonkeyPatch) -> NpuClock:
    made = NpuClock(torch.device("cpu"), 0)
    monkeypatch.setattr(type(made.flush), "zero_", lambda tensor: device.clear())
    return made


def transposed(device: Device) -> Callable[[], None]:
    """A call whose layout costs two transposes beside the attention."""

    def call() -> None:
        device.run("Transpose", 30.0)
        device.run("FlashAttentionScore", 100.0)
        device.run("Transpose", 20.0)

    return call


# ------------------------------------------------------------------------------------------ the profiler's samples


def test_finals_are_timed_by_the_profiler(clock: NpuClock, device: Device) -> None:
    found = sample(transposed(device), clock, FINAL)
    assert found.samples == pytest.approx([150e-6] * effort.EVENT_BATCH)
    assert found.conditions == Conditions()
    assert device.sessions == 1


def test_other_rounds_are_timed_by_events(clock: NpuClock, device: Device) -> None:
    for budget in (effort.QUICK, effort.HALVING, effort.SWEEP):
        found = sample(transposed(device), clock, replace(budget, warmup=0.0))
        assert found.samples[0] == pytest.approx(153e-6)  # with the gaps between kernels
    assert device.sessions == 0


def test_the_documented_profiler_is_asked(clock: NpuClock, device: Device) -> None:
    clock.recorded(transposed(device))
    (settings,) = device.settings
    assert settings["activities"] == ["npu"]
    assert settings["experimental_config"] == {"profiler_level": "1", "aic_metrics": "none"}
    assert callable(settings["on_trace_ready"])


def test_it_leaves_the_process_as_it_was(
    clock: NpuClock, device: Device, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    multiprocessing.set_start_method("spawn", force=True)
    clock.recorded(transposed(device))
    assert multiprocessing.get_start_method(allow_none=True) == "spawn"
    assert capsys.readouterr().out == ""  # where a document of JSON may be
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("clearing", [(), ("ZerosLike",), ("Cast", "Fill")])
def test_what_clears_the_cache_does_not_count(clock: NpuClock, device: Device, clearing: tuple[str, ...]) -> None:
    device.clearing = clearing
    batch = clock.recorded(transposed(device))
    assert batch.samples == pytest.approx([150e-6] * effort.EVENT_BATCH)


def test_a_call_may_use_the_kernels_that_clear(clock: NpuClock, device: Device) -> None:
    device.clearing = ("Fill",)

    def call() -> None:
        device.run("Fill", 7.0)
        device.run("Fill", 7.0)
        device.run("FusedInferAttentionScore", 50.0)

    assert clock.recorded(call).samples == pytest.approx([64e-6] * effort.EVENT_BATCH)


def test_each_call_is_a_sample(clock: NpuClock, device: Device) -> None:
    durations = iter(range(1, 100))
    batch = clock.recorded(lambda: device.run("FlashAttentionScore", next(durations)))
    assert batch.samples == pytest.approx([number * 1e-6 for number in range(1, effort.EVENT_BATCH + 1)])


# ------------------------------------------------------------------------------------------ where it tells nothing


def by_events(found: Sampled, *words: str) -> None:
    assert found.samples[0] == pytest.approx(153e-6)
    (note,) = found.conditions.notes
    assert note.startswith("timed by events, with the host's time: ")
    assert all(word in note for word in words), note


def test_without_a_file_events_do_and_it_is_asked_once(clock: NpuClock, device: Device) -> None:
    device.written = False
    for _ in range(3):
        by_events(sample(transposed(device), clock, FINAL), "left no kernel_details.csv")
    assert device.sessions == 1


def test_without_the_profiler_events_do(clock: NpuClock, device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_npu.profiler", None)
    by_events(sample(transposed(device), clock, FINAL), "torch_npu.profiler")


def test_calls_that_differ_are_timed_by_events(clock: NpuClock, device: Device) -> None:
    """A recording that cannot be cut into calls is of this config alone: the next one is recorded again."""
    call, numbers = transposed(device), iter(range(100))

    def uneven() -> None:
        if next(numbers) == 3:
            device.run("Cast", 1.0)
        call()

    with pytest.raises(TuningError, match=r"42 kernels were recorded, which are no 10 equal calls"):
        clock.recorded(uneven)
    assert clock.recorded(call).samples == pytest.approx([150e-6] * effort.EVENT_BATCH)
    assert device.sessions == 2


def test_another_kernel_of_the_same_number_is_no_equal_call() -> None:
    kernels = [KernelTime(kind, start, 1.0) for start, kind in enumerate(["A", "B", "A", "C", "A", "B"])]
    with pytest.raises(TuningError, match="no 3 equal calls"):
        seconds_a_call(kernels, 3)
    assert seconds_a_call(kernels[:2] * 3, 3) == [2e-6] * 3


def test_a_call_without_kernels_has_no_time(clock: NpuClock, device: Device) -> None:
    with pytest.raises(TuningError, match="no 10 equal calls"):
        clock.recorded(lambda: None)


def test_other_columns_are_refused(clock: NpuClock, device: Device) -> None:
    device.columns = ("Name", "Type", "Start Time(us)")
    by_events(sample(transposed(device), clock, FINAL), "kernel_details.csv", "Duration(us)")
    device.columns = COLUMNS
    assert sample(transposed(device), clock, FINAL).conditions.notes == ()


def test_what_the_call_raises_comes_through(clock: NpuClock) -> None:
    def call() -> None:
        raise RuntimeError("561103")

    with pytest.raises(RuntimeError, match="561103"):
        sample(call, clock, FINAL)


def test_types_are_read_or_else_names(tmp_path: Path) -> None:
    """Some versions of CANN write no types at the profiler's lowest level."""
    path = tmp_path / "kernel_details.csv"
    path.write_text("Name,Type,Start Time(us),Duration(us)\naclnnA,A,2.5\t,3\naclnnB,,1.5\t,4\n")
    assert read(path) == [KernelTime("A", 2.5, 3.0), KernelTime("aclnnB", 1.5, 4.0)]


# ------------------------------------------------------------------------------------------ which clock


def test_an_npu_gets_this_clock(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[Any, int]] = []
    monkeypatch.setattr(ascend, "NpuClock", lambda *given: made.append(given))
    npu: Any = SimpleNamespace(type="npu", index=0)
    clock_for(npu, NPU)
    assert made == [(npu, NPU.l2_bytes)]


def test_an_unknown_cache_is_cleared_all_the_same(device: Device) -> None:
    assert NpuClock(torch.device("cpu"), 0).flush.numel() == effort.L2_FLUSH_FACTOR * 1000
    assert NpuClock(torch.device("cpu"), 50).flush.numel() == effort.L2_FLUSH_FACTOR * 50


def test_others_record_nothing() -> None:
    assert clocks.HostClock().recorded(lambda: None) is None
