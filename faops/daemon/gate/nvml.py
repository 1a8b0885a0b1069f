"""Who uses an NVIDIA GPU and how much, as its driver tells through NVML (package nvidia-ml-py, module pynvml).

No context is made on the device.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

PREFIXES = ("GPU-", "MIG-")  # of the names of whole devices and of instances


class UntoldError(Exception):
    """NVML cannot be asked; the message says why, and what mends it."""


@dataclass(frozen=True)
class Use:
    """What is known of a device's use at one moment; None stands for what the driver does not tell.

    ``utilisation`` is the share of time in which kernels ran, ``shares`` that of each process since the last time it
    was asked, in per cent. ``memory`` is what each process holds, in bytes.
    """

    utilisation: float | None
    shares: dict[int, float] | None
    memory: dict[int, int] | None


class Driver:
    """One GPU, or one instance of it. Raises UntoldError."""

    def __init__(self, uuid: str) -> None:
        if not uuid:
            raise UntoldError("nobody tells which GPU it is: torch is too old to say its UUID")
        try:
            self._nvml: Any = importlib.import_module("pynvml")
        except ImportError:
            raise UntoldError("nvidia-ml-py is not installed: pip install nvidia-ml-py") from None
        self._seen = 0  # time stamp of the last use that was told
        mismatch = getattr(self._nvml, "NVMLLibraryMismatchError", AttributeError)
        self._failed: Any = (self._nvml.NVMLError, mismatch, AttributeError)  # old modules and drivers lack functions
        try:
            self._nvml.nvmlInit()
        except self._failed as error:
            raise UntoldError(f"the driver cannot be asked: {error}") from None
        try:
            self._handle = self._found(uuid)
        except self._failed as error:
            self.close()
            raise UntoldError(f"the driver does not know {uuid}: {error}") from None
        self._shares()  # of what was before, nothing follows

    def use(self) -> Use:
        """What is known now. Raises UntoldError when the driver tells nothing at all."""
        told = Use(self._asked(self._utilisation), self._asked(self._shares), self._asked(self._memory))
        if told == Use(None, None, None):
            raise UntoldError("the driver tells nothing of the GPU")
        return told

    def close(self) -> None:
        """Let go of the library."""
        self._asked(self._nvml.nvmlShutdown)

    def _asked(self, question: Callable[[], Any]) -> Any:
        try:
            return question()
        except self._failed:
            return None

    def _found(self, uuid: str) -> Any:
        """The handle of a UUID, which may lack the prefix that NVML puts before it."""
        if uuid.startswith(PREFIXES):
            return self._nvml.nvmlDeviceGetHandleByUUID(uuid)
        handle = self._asked(lambda: self._nvml.nvmlDeviceGetHandleByUUID(PREFIXES[1] + uuid))
        return handle or self._nvml.nvmlDeviceGetHandleByUUID(PREFIXES[0] + uuid)

    def _utilisation(self) -> float:
        return float(self._nvml.nvmlDeviceGetUtilizationRates(self._handle).gpu)

    def _shares(self) -> dict[int, float] | None:
        """The largest share of each process since the last call. None where they are not told, as on instances."""
        try:
            samples = self._nvml.nvmlDeviceGetProcessUtilization(self._handle, self._seen)
        except self._failed as error:
            # "Not found" means no use since then; some versions raise their code of success.
            idle = type(error).__name__ == "NVMLError_NotFound" or getattr(error, "value", None) == 0
            return {} if idle else None
        found: dict[int, float] = {}
        for sample in samples:
            self._seen = max(self._seen, int(sample.timeStamp))
            if 0 < sample.smUtil <= 100:  # drivers have been seen to tell nonsense
                found[int(sample.pid)] = max(found.get(int(sample.pid), 0.0), float(sample.smUtil))
        return found

    def _memory(self) -> dict[int, int]:
        holders = self._nvml.nvmlDeviceGetComputeRunningProcesses(self._handle)
        return {int(holder.pid): int(holder.usedGpuMemory or 0) for holder in holders}
