"""The parts of the GPU suite that time and launch on a device, run in the emulator under a torch.cuda that is none."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.gpu import contenders, graph, timing
from benchmarks.gpu.contenders import Shape
from benchmarks.gpu.options import Options
from benchmarks.gpu.outcome import SkipError, WrongError
from faops.backends.cuda_raw import emulator, nvrtc
from faops.backends.cuda_raw.specialize import Specialised
from faops.device import known
from faops.errors import CaptureError
from faops.operands import Operands

A100 = known("a100")
SHAPE = Shape(48, 32, True, "float16")


class FakeEvent:
    """Device time is the host's."""

    def __init__(self, enable_timing: bool = False) -> None:
        self.at = 0.0

    def record(self) -> None:
        self.at = time.perf_counter()

    def synchronize(self) -> None:
        pass

    def query(self) -> bool:
        return False

    def elapsed_time(self, other: FakeEvent) -> float:
        return 1e3 * (other.at - self.at)


class FakeCuda:
    """A device that is the emulator: captures keep launches for their replays, and refuse kernels not yet loaded."""

    def __init__(self) -> None:
        self.loaded: set[str] = set()
        self.capture: list[tuple[Specialised, Operands]] | None = None
        self.broken = False  # launches do nothing

    def launch(self, kernel: Specialised, operands: Operands) -> None:
        if self.capture is not None:
            if kernel.source.digest() not in self.loaded:
                raise CaptureError("a graph is being captured")
            self.capture.append((kernel, operands))
            return
        self.loaded.add(kernel.source.digest())
        if not self.broken:
            emulator.launch(kernel, operands, A100.arch)

    @contextlib.contextmanager
    def graph(self, made: list[tuple[Specialised, Operands]]) -> Iterator[None]:
        self.capture = made
        yield
        self.capture = None

    def new_graph(self) -> Any:
        fake = self

        class Graph(list[tuple[Specialised, Operands]]):
            def replay(self) -> None:
                for kernel, operands in self:
                    fake.launch(kernel, operands)

        return Graph()


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> FakeCuda:
    if reason := emulator.missing():
        pytest.skip(f"NOT TESTED, nothing was launched: {reason}")
    cache = getattr(request.config, "cache", None)
    if cache is not None:
        monkeypatch.setenv("FAOPS_CACHE_DIR", str(cache.mkdir("gpu_suite")))
    fake = FakeCuda()
    for module in (contenders, graph, timing):
        monkeypatch.setattr(module, "detect", lambda device: A100)
    for module in (contenders, graph):
        monkeypatch.setattr(module, "DEVICE", "cpu")
        monkeypatch.setattr(module, "launch", fake.launch)
    small = {"seqlen_q": 40, "seqlen_k": 50, "head_dim": 16, "head_dim_v": 16}
    for name, value in {"SHAPE": small, "FAR": 10_000, "MANY_HEADS": 30, "REPEATS": 2}.items():
        monkeypatch.setattr(graph, name, value)
    monkeypatch.setattr(contenders, "TOKENS", 96)
    monkeypatch.setattr(contenders, "WIDTH", 64)
    monkeypatch.setattr(contenders, "MIN_TIMED", 1e-6)
    monkeypatch.setattr(timing, "QUICK_EFFORT", timing.Effort(0.01, 2, 3, 0))
    nothing = lambda *rest: None  # noqa: E731
    fakes: dict[str, Any] = {
        "CUDAGraph": fake.new_graph, "graph": fake.graph, "Event": FakeEvent, "Stream": FakeEvent,
        "stream": lambda stream: contextlib.nullcontext(), "synchronize": nothing, "_sleep": nothing,
        "set_sync_debug_mode": nothing, "reset_peak_memory_stats": nothing, "memory_allocated": lambda: 0,
        "max_memory_allocated": lambda: 0, "mem_get_info": lambda: (2**60, 2**60), "device_count": lambda: 1,
    }  # fmt: skip
    for name, function in fakes.items():
        monkeypatch.setattr(torch.cuda, name, function)
    return fake


# ---------------------------------------------------------------------------------------------- launching


def tried() -> list[Any]:
    """Every item of the section for one family."""
    return [item for item in graph.items(Options()) if item.name.startswith("sm80")]


@pytest.mark.parametrize("item", tried(), ids=lambda item: item.name)
def test_launching_items(cuda: FakeCuda, item: Any) -> None:
    """Each goes through on a device that does right, and finds out one that computes nothing."""
    if "second device" in item.name:
        with pytest.raises(SkipError, match="one device"):
            item.run()
        return
    assert item.run() == {}
    if "no memory" in item.name or "no synchronisation" in item.name:
        return  # these look at other things than results
    cuda.broken = True
    with pytest.raises(AssertionError):
        item.run()


def test_a_capture_that_loads_is_found(cuda: FakeCuda) -> None:
    cuda.loaded = _Everything()
    with pytest.raises(AssertionError, match="CaptureError"):
        graph.loading_under_capture("sm80", 1)


class _Everything(set[str]):
    def __contains__(self, key: object) -> bool:
        return True


def test_a_launch_that_takes_memory_is_found(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 512)
    with pytest.raises(AssertionError, match="memory from torch"):
        graph.no_memory("sm80", 1)


def test_a_launch_that_waits_is_found(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeEvent, "query", lambda self: True)
    with pytest.raises(AssertionError, match="waited"):
        graph.no_synchronisation("sm80", 1)


# ---------------------------------------------------------------------------------------------- timing


def _no_flex(*rest: Any) -> Tensor:
    raise RuntimeError("not compiled here")


def test_race(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contenders, "_flex", _no_flex)
    data = timing.race(SHAPE, quick=True)
    assert {"sm80", "sm75", "faops", "flash"} <= data["times"].keys()
    assert "not compiled here" in data["absent"]["flex"] and "flex" not in data["times"]
    assert data["ratios"]["sm80"]["flash"]["of_pairs"] > 0
    assert data["shape"]["flops"] == 4 * 2 * 2 * 48 * 48 * 32 / 2
    for name, figure in data["times"].items():
        assert figure["n"] >= 2 and data["difference"][name] <= timing.TOLERANCE["float16"]
        assert data["teraflops"][name] == pytest.approx(SHAPE.flops / figure["median"] / 1e12, abs=0.01)


def test_race_with_a_wrong_kernel(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not timed, and what the others took is kept."""
    monkeypatch.setattr(contenders, "_flex", _no_flex)
    monkeypatch.setattr(contenders, "launch", lambda kernel, operands: operands.out.fill_(0.5))
    with pytest.raises(WrongError, match="sm80: its result differs") as caught:
        timing.race(SHAPE, quick=True)
    assert "sm80" not in caught.value.data["times"] and "flash" in caught.value.data["times"]


def test_configs(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "CONFIG_LENGTH", 48)
    monkeypatch.setattr(timing, "space", lambda *rest: list(graph.FRESH[:1]))
    data = timing.configs("sm80", 32, quick=True)
    assert len(data["configs"]) == 2 and data["default"] in {one["config"] for one in data["configs"]}
    medians = [one["times"]["median"] for one in data["configs"]]
    assert medians == sorted(medians) and not data["absent"]


def test_host_time(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "HOST_CALLS", 10)
    monkeypatch.setenv("FAOPS_EMULATE", "a100")
    found = timing.host_time()
    assert {"faops", "faops forced", "sdpa", "sm80 launch", "sm75 launch"} == found.keys()
    assert all(one["median"] > 0 for one in found.values())


def test_first_call(cuda: FakeCuda) -> None:
    if reason := nvrtc.probe():
        pytest.skip(f"NOT TESTED, no kernel was compiled: {reason}")
    for figures in timing.first_call().values():
        assert 0 < figures["from_disk"] < figures["compile"]


def test_items_of_both_sections() -> None:
    assert len(timing.items(Options(quick=True))) < len(timing.items(Options()))
    for item in (*graph.items(Options(card="a100"))[:1], *timing.items(Options(card="a100"))[:1]):
        with pytest.raises(SkipError, match="emulator"):
            item.run()
