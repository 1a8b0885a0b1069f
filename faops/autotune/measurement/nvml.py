"""What the NVIDIA driver tells of a GPU while it is measured, through NVML (package nvidia-ml-py, module pynvml)."""

from __future__ import annotations

import functools
import importlib
import os
from typing import Any

import torch

from faops.autotune.measurement.conditions import State

# Why a GPU may run slower than it could, as bits (source: NVML API reference, "clocks event reasons"). Left out are
# those that say nothing of a disturbance: idleness, clocks that somebody set, and the power cap, under which a GPU
# that multiplies matrices works as a rule. Where that lowers the clock, the clock tells.
SLOWED = {
    0x08: "hardware slowdown",
    0x20: "heat, by software",
    0x40: "heat, by hardware",
    0x80: "power brake",
}


class UnwatchedError(Exception):
    """Nobody tells the state of a device; the message says why."""


class Gpu:
    """One GPU, and who computes on it. Raises UnwatchedError when NVML is missing or does not know the device."""

    def __init__(self, device: torch.device) -> None:
        try:
            self.nvml: Any = importlib.import_module("pynvml")
        except ImportError:
            raise UnwatchedError("clocks and other programs were not watched: nvidia-ml-py is not installed") from None
        try:
            self.nvml.nvmlInit()
            uuid = torch.cuda.get_device_properties(device).uuid
            self.handle = self.nvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
            self.before = self._holders()
        except (self.nvml.NVMLError, AttributeError) as error:  # old torch tells no UUID
            raise UnwatchedError(f"clocks and other programs were not watched: {error}") from None
        self.seen = 0  # time stamp of the last use by a process that was looked at

    def state(self) -> State | None:
        """The clocks at this moment, and what slows them; None where the driver does not tell."""
        try:
            return State(
                sm_mhz=self.nvml.nvmlDeviceGetClockInfo(self.handle, self.nvml.NVML_CLOCK_SM),
                memory_mhz=self.nvml.nvmlDeviceGetClockInfo(self.handle, self.nvml.NVML_CLOCK_MEM),
                slowed=tuple(reason for bit, reason in SLOWED.items() if self._event_reasons() & bit),
            )
        except self.nvml.NVMLError:
            return None

    def _event_reasons(self) -> int:
        """Bits that say why clocks are lower than they could be. Older drivers call the same thing throttling."""
        try:
            return int(self.nvml.nvmlDeviceGetCurrentClocksEventReasons(self.handle))
        except (self.nvml.NVMLError, AttributeError):
            return int(self.nvml.nvmlDeviceGetCurrentClocksThrottleReasons(self.handle))

    def foreign(self) -> bool | None:
        """Whether another process has computed since the last time this was asked; None where that is unknown.

        The driver counts a process's use about once a second, so a short use may be missed.
        """
        own = self._own()
        if own is None:
            return None
        try:
            uses = self.nvml.nvmlDeviceGetProcessUtilization(self.handle, self.seen)
        except self.nvml.NVMLError_NotFound:  # no use since then
            return False
        except self.nvml.NVMLError:
            return None
        self.seen = max([self.seen, *(int(use.timeStamp) for use in uses)])
        return any(use.smUtil > 0 and use.pid != own for use in uses)

    @functools.cached_property
    def _first_holders(self) -> set[int]:
        return self._holders()

    def _own(self) -> int | None:
        """This process as the driver numbers it, once it computes. In a container that is another number than here:
        the only one, or the one that came when this process began. None where two came."""
        try:
            holders = self._first_holders
        except self.nvml.NVMLError:
            return None
        if os.getpid() in holders:
            return os.getpid()
        candidates = holders if len(holders) == 1 else holders - self.before
        return next(iter(candidates)) if len(candidates) == 1 else None

    def _holders(self) -> set[int]:
        """The processes that hold memory of the device to compute with."""
        return {int(process.pid) for process in self.nvml.nvmlDeviceGetComputeRunningProcesses(self.handle)}


@functools.cache
def watched(device: torch.device) -> tuple[Gpu | None, str]:
    """The GPU behind a torch device, or why nobody can tell of it. Kept: it must know who was there before."""
    if device.type != "cuda" or torch.version.hip:
        return None, "" if device.type == "cpu" else "clocks and other programs were not watched"
    try:
        return Gpu(device), ""
    except UnwatchedError as reason:
        return None, str(reason)
