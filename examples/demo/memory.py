"""Peak physical memory of this process over a stretch of code."""

from __future__ import annotations

import threading
from pathlib import Path
from types import TracebackType

MEGABYTE = 1e6
SAMPLE_SECONDS = 0.005


class PeakMemory:
    """Measures within a ``with`` block: ``before`` and ``peak`` in MB, and ``method`` in words.

    Linux keeps a high-water mark that can be reset, so nothing is missed there. Elsewhere the size is sampled.
    """

    STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")

    def __init__(self) -> None:
        self.before = self.peak = 0.0
        self.method = "the kernel's high-water mark, VmHWM"
        self._stop = threading.Event()
        self._sampler: threading.Thread | None = None

    def __enter__(self) -> PeakMemory:
        try:
            self.RESET.write_text("5")  # sets the high-water mark to the present size; see proc(5)
            self.before = self._field("VmRSS")
        except OSError:
            self.method = f"sampled every {SAMPLE_SECONDS * 1000:.0f} ms"
            self.before = self.peak = self._resident()
            self._sampler = threading.Thread(target=self._sample, daemon=True)
            self._sampler.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._sampler is None:
            self.peak = self._field("VmHWM")
        else:
            self._stop.set()
            self._sampler.join()

    def _field(self, name: str) -> float:
        line = next(line for line in self.STATUS.read_text().splitlines() if line.startswith(f"{name}:"))
        return int(line.split()[1]) * 1024 / MEGABYTE

    def _resident(self) -> float:
        import psutil  # comes with accelerate

        return float(psutil.Process().memory_info().rss) / MEGABYTE

    def _sample(self) -> None:
        while not self._stop.wait(SAMPLE_SECONDS):
            self.peak = max(self.peak, self._resident())
