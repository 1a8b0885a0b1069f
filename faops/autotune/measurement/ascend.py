"""The clock of an Ascend NPU: events for a first order among configs, the profiler's kernel times for the finals.

The host takes about as long to start an operator of torch_npu as a small one runs, so that the events around a call
may tell the host's time. The profiler tells what each kernel took by itself. A call is all the kernels between two
clearings of the L2 cache: a transpose that a layout costs, a mask that is built and a cast count like the attention.
"""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from faops.autotune import effort
from faops.autotune.measurement.clocks import Call, EventClock
from faops.autotune.measurement.conditions import Batch
from faops.errors import TuningError
from faops.profile import kernel_details


class NpuClock(EventClock):
    """Events in the device's queue, each call with a cold L2 cache; for :meth:`recorded`, the profiler of torch_npu."""

    def __init__(self, device: torch.device, l2_bytes: int) -> None:
        super().__init__(device, l2_bytes or effort.ASSUMED_NPU_L2_BYTES)
        self.unavailable = ""  # why the profiler told nothing, so that it is not asked in vain again and again

    def recorded(self, call: Call) -> Batch:
        """EVENT_BATCH samples of the time that the kernels of ``call`` took. Raises TuningError where the profiler
        tells nothing, or nothing that makes sense, and whatever ``call`` raises."""
        if self.unavailable:
            raise TuningError(self.unavailable)

        def calls() -> None:
            for _ in range(effort.EVENT_BATCH):
                self.flush.zero_()
                call()
            self.flush.zero_()
            self.module.synchronize()

        self.module.synchronize()
        kernels = record(calls)
        if not kernels:
            self.unavailable = f"the profiler of torch_npu left no {kernel_details.FILE} with kernels in it"
            raise TuningError(self.unavailable)
        return Batch(seconds_a_call(kernels, effort.EVENT_BATCH))


@dataclass(frozen=True)
class KernelTime:
    """A kernel that ran on the device: its operator's type and its times in microseconds."""

    type: str
    start: float
    duration: float


def record(run: Callable[[], None]) -> list[KernelTime]:
    """The kernels that ``run`` starts, in the order in which they ran; none where the profiler wrote nothing.

    Takes seconds: the profiler writes files and has them converted.
    """
    profiler: Any = importlib.import_module("torch_npu.profiler")
    config = profiler._ExperimentalConfig(  # the documented way, in spite of its name
        profiler_level=profiler.ProfilerLevel.Level1,  # below it, types of operators may be missing
        aic_metrics=profiler.AiCMetrics.AiCoreNone,  # counters of the cores cost time
    )
    with tempfile.TemporaryDirectory(prefix="faops-recording-") as folder, _undisturbed():
        place = Path(folder).resolve()  # the profiler takes no symbolic links
        with profiler.profile(
            activities=[profiler.ProfilerActivity.NPU],
            on_trace_ready=profiler.tensorboard_trace_handler(str(place)),
            experimental_config=config,
        ):
            run()
        found = [kernel for path in kernel_details.find(place) for kernel in read(path)]
    return sorted(found, key=lambda kernel: kernel.start)


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Undo what the profiler does to the process: it prints, and has new processes forked from then on."""
    method = multiprocessing.get_start_method(allow_none=True)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        multiprocessing.set_start_method(method, force=True)


def read(path: Path) -> list[KernelTime]:
    """The kernels of a kernel_details.csv. Raises TraceError for another file."""
    return [
        KernelTime(row.get("Type") or row["Name"], float(row["Start Time(us)"]), float(row["Duration(us)"]))
        for row in kernel_details.rows(path)
    ]


def seconds_a_call(kernels: Sequence[KernelTime], calls: int) -> list[float]:
    """Device time of each of ``calls`` equal calls, with the same kernels before each of them and after the last.

    Those are what clears the cache, one or two kernels or none that is told of; how many is what is left when the
    kernels are shared out among the calls. Raises TuningError where the kernels do not repeat themselves so.
    """
    clearing = len(kernels) % calls
    period = len(kernels) // calls
    types = [kernel.type for kernel in kernels]
    repeats = types == types[:period] * calls + types[:clearing]
    if not repeats or clearing >= period:
        raise TuningError(f"{len(kernels)} kernels were recorded, which are no {calls} equal calls")
    each = (kernels[first + clearing : first + period] for first in range(0, period * calls, period))
    return [sum(kernel.duration for kernel in own) / 1e6 for own in each]
