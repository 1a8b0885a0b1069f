"""Stands for the module ``pynvml``, with one GPU."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any


class Pynvml:
    """``memory`` is what each process holds in bytes; ``use`` notes that one computed."""

    class NVMLError(Exception):
        value = 999

    class NVMLError_NotFound(NVMLError):  # noqa: N801, N818 (its name there)
        value = 6

    class NVMLError_NotSupported(NVMLError):  # noqa: N801, N818
        value = 3

    class NVMLLibraryMismatchError(Exception):
        pass

    def __init__(self, name: str = "GPU-1234") -> None:
        self.name = name
        self.utilisation = 0
        self.memory: dict[int, int | None] = {}
        self.uses: list[Any] = []
        self.time = 0
        self.failing: dict[str, Exception] = {}
        self.open = 0
        self.asked: list[str] = []

    def use(self, pid: int, percent: int) -> None:
        self.time += 1
        self.uses.append(SimpleNamespace(pid=pid, smUtil=percent, memUtil=0, encUtil=0, decUtil=0, timeStamp=self.time))

    def fail(self, *names: str, error: type[Exception] | None = None) -> None:
        self.failing = {name: (error or self.NVMLError_NotSupported)(f"{name} failed") for name in names}

    def _ask(self, name: str) -> None:
        self.asked.append(name)
        if name in self.failing:
            raise self.failing[name]

    def nvmlInit(self) -> None:  # noqa: N802 (so are the names below)
        self._ask("init")
        self.open += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        self._ask("shutdown")
        self.open -= 1

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:  # noqa: N802
        self._ask("handle")
        if uuid != self.name:
            raise self.NVMLError_NotFound("Not Found")
        return "handle"

    def nvmlDeviceGetUtilizationRates(self, handle: str) -> Any:  # noqa: N802
        assert handle == "handle"
        self._ask("rates")
        return SimpleNamespace(gpu=self.utilisation, memory=0)

    def nvmlDeviceGetComputeRunningProcesses(self, handle: str) -> list[Any]:  # noqa: N802
        assert handle == "handle"
        self._ask("processes")
        return [SimpleNamespace(pid=pid, usedGpuMemory=held) for pid, held in self.memory.items()]

    def nvmlDeviceGetProcessUtilization(self, handle: str, since: int) -> list[Any]:  # noqa: N802
        assert handle == "handle"
        self._ask("uses")
        found = [use for use in self.uses if use.timeStamp > since]
        if not found:
            raise self.NVMLError_NotFound("Not Found")
        return found
