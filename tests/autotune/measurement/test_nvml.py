"""What is asked of NVML, with a module that stands for it: no GPU is needed, and none has confirmed this."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from faops.autotune.measurement import nvml
from faops.autotune.measurement.conditions import State
from faops.autotune.measurement.nvml import Gpu, UnwatchedError, watched

GPU = torch.device("cuda", 1)
US, OTHER, ANOTHER = 4000, 4001, 4002  # processes as a driver outside the container numbers them


class Pynvml:
    """Stands for the module ``pynvml``; one GPU."""

    NVML_CLOCK_SM, NVML_CLOCK_MEM = 1, 2

    class NVMLError(Exception):
        pass

    class NVMLError_NotFound(NVMLError):  # noqa: N801, N818 (its name there)
        pass

    def __init__(self) -> None:
        self.clocks = {1: 1980, 2: 2619}
        self.reasons = 0
        self.holders: list[int] = []
        self.uses: list[Any] = []
        self.failing: set[str] = set()
        self.renamed = False  # whether the name of older drivers is the only one

    def _ask(self, name: str) -> None:
        if name in self.failing:
            raise self.NVMLError(f"{name} failed")

    def nvmlInit(self) -> None:  # noqa: N802 (so are the names below)
        self._ask("init")

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:  # noqa: N802
        self._ask("handle")
        assert uuid == "GPU-1234"
        return "handle"

    def nvmlDeviceGetClockInfo(self, handle: str, kind: int) -> int:  # noqa: N802
        assert handle == "handle"
        self._ask("clock")
        return self.clocks[kind]

    def nvmlDeviceGetCurrentClocksEventReasons(self, handle: str) -> int:  # noqa: N802
        if self.renamed:
            raise self.NVMLError("function not found")
        return self.reasons

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle: str) -> int:  # noqa: N802
        assert self.renamed
        return self.reasons

    def nvmlDeviceGetComputeRunningProcesses(self, handle: str) -> list[Any]:  # noqa: N802
        self._ask("holders")
        return [SimpleNamespace(pid=pid) for pid in self.holders]

    def nvmlDeviceGetProcessUtilization(self, handle: str, since: int) -> list[Any]:  # noqa: N802
        self._ask("uses")
        found = [use for use in self.uses if use.timeStamp > since]
        if not found:
            raise self.NVMLError_NotFound("not found")
        return found

    def use(self, pid: int, percent: int, at: int) -> None:
        self.uses.append(SimpleNamespace(pid=pid, smUtil=percent, timeStamp=at))


@pytest.fixture
def pynvml(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pynvml]:
    module = Pynvml()
    monkeypatch.setitem(sys.modules, "pynvml", module)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="1234"))
    watched.cache_clear()
    yield module
    watched.cache_clear()


def computing(pynvml: Pynvml, before: tuple[int, ...] = (), now: tuple[int, ...] = (US,)) -> Gpu:
    """A watched GPU on which this process has begun to compute."""
    pynvml.holders = list(before)
    gpu = Gpu(GPU)
    pynvml.holders = list(now)
    return gpu


def test_clocks_are_read(pynvml: Pynvml) -> None:
    assert Gpu(GPU).state() == State(1980, 2619)


@pytest.mark.parametrize(
    ("bits", "slowed"),
    [
        (0x00, ()),
        (0x01, ()),  # idle
        (0x02, ()),  # clocks that somebody set
        (0x04, ()),  # the power cap
        (0x08, ("hardware slowdown",)),
        (0x20, ("heat, by software",)),
        (0x48, ("hardware slowdown", "heat, by hardware")),
        (0x84, ("power brake",)),
        (0x100, ()),
    ],
)
@pytest.mark.parametrize("renamed", [False, True])
def test_what_slows_the_device_is_told(pynvml: Pynvml, bits: int, slowed: tuple[str, ...], renamed: bool) -> None:
    pynvml.reasons, pynvml.renamed = bits, renamed
    state = Gpu(GPU).state()
    assert state is not None
    assert state.slowed == slowed


def test_the_older_name_serves_older_modules(pynvml: Pynvml, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(Pynvml, "nvmlDeviceGetCurrentClocksEventReasons")
    pynvml.renamed, pynvml.reasons = True, 0x40
    state = Gpu(GPU).state()
    assert state is not None
    assert state.slowed == ("heat, by hardware",)


def test_a_driver_that_tells_no_clocks_is_no_error(pynvml: Pynvml) -> None:
    gpu = Gpu(GPU)
    pynvml.failing = {"clock"}
    assert gpu.state() is None


def test_a_process_that_computes_is_foreign_if_it_is_another(pynvml: Pynvml) -> None:
    gpu = computing(pynvml, before=(OTHER,), now=(OTHER, US))
    assert gpu.foreign() is False  # no use at all
    pynvml.use(US, 99, at=10)
    pynvml.use(OTHER, 0, at=11)
    assert gpu.foreign() is False  # the other one only holds memory
    pynvml.use(OTHER, 5, at=12)
    assert gpu.foreign() is True
    assert gpu.foreign() is False  # that was before
    pynvml.use(ANOTHER, 5, at=13)  # one that came later
    assert gpu.foreign() is True


def test_a_process_outside_a_container_knows_its_number(pynvml: Pynvml) -> None:
    gpu = computing(pynvml, before=(), now=(os.getpid(), OTHER))
    pynvml.use(os.getpid(), 99, at=1)
    assert gpu.foreign() is False
    pynvml.use(OTHER, 99, at=2)
    assert gpu.foreign() is True


def test_the_only_process_is_this_one(pynvml: Pynvml) -> None:
    """Even if it was there before: torch may open the device earlier than it says."""
    gpu = computing(pynvml, before=(US,), now=(US,))
    pynvml.use(US, 99, at=1)
    assert gpu.foreign() is False
    pynvml.use(OTHER, 99, at=2)
    assert gpu.foreign() is True


@pytest.mark.parametrize("now", [(), (OTHER, ANOTHER), (OTHER, ANOTHER, US, US + 100)])
def test_who_cannot_tell_itself_says_nothing_of_others(pynvml: Pynvml, now: tuple[int, ...]) -> None:
    gpu = computing(pynvml, before=(OTHER, ANOTHER), now=now)
    pynvml.use(OTHER, 99, at=1)
    assert gpu.foreign() is None


@pytest.mark.parametrize("failing", ["uses", "holders"])
def test_a_driver_that_tells_no_processes_is_no_error(pynvml: Pynvml, failing: str) -> None:
    gpu = computing(pynvml)
    pynvml.failing = {failing}
    assert gpu.foreign() is None


@pytest.mark.parametrize("failing", ["init", "handle", "holders"])
def test_a_device_that_nvml_does_not_know_is_unwatched(pynvml: Pynvml, failing: str) -> None:
    pynvml.failing = {failing}
    with pytest.raises(UnwatchedError, match=f"were not watched: {failing} failed"):
        Gpu(GPU)


def test_without_the_package_nothing_is_watched(pynvml: Pynvml, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert watched(GPU) == (None, "clocks and other programs were not watched: nvidia-ml-py is not installed")


def test_a_torch_that_tells_no_uuid_leaves_it_unwatched(pynvml: Pynvml, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace())
    gpu, why = watched(GPU)
    assert gpu is None
    assert "uuid" in why


def test_a_gpu_is_watched_once(pynvml: Pynvml) -> None:
    gpu, why = watched(GPU)
    assert isinstance(gpu, Gpu)
    assert why == ""
    assert watched(GPU)[0] is gpu  # it knows who was there before


def test_other_devices_are_not_watched(pynvml: Pynvml, monkeypatch: pytest.MonkeyPatch) -> None:
    assert watched(torch.device("cpu")) == (None, "")
    assert watched(torch.device("xpu", 0)) == (None, "clocks and other programs were not watched")
    monkeypatch.setattr(torch.version, "hip", "6.0")
    assert watched(GPU) == (None, "clocks and other programs were not watched")
    assert nvml.watched.cache_info().currsize == 3
