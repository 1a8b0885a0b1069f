"""Making a recording: a program is run under the profiler of the device, and the file that it wrote is read."""

from __future__ import annotations

import contextlib
import importlib
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import torch

from faops.errors import FaopsWarning
from faops.problem import AttentionProblem
from faops.profile import kernel_details, kernels, trace
from faops.profile.events import Event, Kind, Timeline, TraceError
from faops.profile.ranges import marks

TRACE = "trace.json"
# Kineto, PyTorch's profiler, tells on stderr that it starts and stops, up to this level.
QUIET = "6"

Program = Callable[[], object]


def record(program: Program, device: torch.device, folder: Path, steps: int = 1, warmup: int = 0) -> Timeline:
    """Run ``program`` ``warmup`` times, and ``steps`` times under the profiler of ``device``; read the recording.

    What the profiler writes stays in ``folder``: trace.json, or what torch_npu's profiler makes. Raises TraceError
    where it wrote nothing, and whatever the program raises.
    """
    folder = folder.resolve()  # torch_npu's profiler takes no symbolic links
    folder.mkdir(parents=True, exist_ok=True)
    with marks() as launches:
        for _ in range(warmup):
            program()
        synchronise(device)
        launches.clear()
        if device.type != "npu":
            _with_torch(program, device, folder / TRACE, steps)
            return trace.read(folder / TRACE)
        _with_torch_npu(program, device, folder, steps)
    timeline = read_folder(folder)
    timeline.events += [_tiled(*launch) for launch in launches if launch[0].startswith(kernels.TILED)]
    return timeline


def _tiled(kernel: str, problem: AttentionProblem) -> Event:
    """A launch of which an NPU's recording shows nothing but its parts."""
    return Event(kernel, Kind.TILED, ("launches",), problem=problem, inside=kernel, backward=problem.op == "backward")


def read(path: Path) -> Timeline:
    """The recording in a file (.csv: kernel_details, else a chrome trace) or in a folder of torch_npu's profiler."""
    if path.is_dir():
        return read_folder(path)
    return kernel_details.read([path]) if path.suffix == ".csv" else trace.read(path)


def read_folder(folder: Path) -> Timeline:
    """What torch_npu's profiler left in a folder. Raises TraceError."""
    found = kernel_details.find(folder)
    if not found:
        raise TraceError(f"{folder}: holds no {kernel_details.FILE}; torch_npu's profiler did not finish its work")
    return kernel_details.read(found)


def _with_torch(program: Program, device: torch.device, path: Path, steps: int) -> None:
    """Run under torch.profiler, with the shapes of all inputs."""
    from torch.profiler import ProfilerActivity, profile

    os.environ.setdefault("KINETO_LOG_LEVEL", QUIET)
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.type == "cuda" else [])
    with profile(activities=activities, record_shapes=True, **_of_all_threads()) as profiler, _alone():
        for _ in range(steps):
            program()
        synchronise(device)
    profiler.export_chrome_trace(str(path))


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Refuse a second profiler within the block: only one can run at a time, and PyTorch crashes where two do."""

    def refuse(*arguments: object, **options: object) -> NoReturn:
        raise TraceError("the program starts PyTorch's profiler itself, and only one can run at a time")

    owner = torch.autograd.profiler.profile
    prepare = owner._prepare_trace
    setattr(owner, "_prepare_trace", refuse)  # noqa: B010 (a method, which type checkers keep from being assigned)
    try:
        yield
    finally:
        setattr(owner, "_prepare_trace", prepare)  # noqa: B010


def _of_all_threads() -> dict[str, Any]:
    """The option that records threads other than this one too, where this PyTorch has it."""
    try:
        return {"experimental_config": torch._C._profiler._ExperimentalConfig(profile_all_threads=True)}
    except TypeError:
        return {}


def _with_torch_npu(program: Program, device: torch.device, folder: Path, steps: int) -> None:
    """Run under torch_npu.profiler, set up as its user guide says; level 1 is the lowest that records shapes."""
    try:
        npu: Any = importlib.import_module("torch_npu").profiler
    except ImportError as error:
        raise TraceError(f"torch_npu cannot be imported: {error}; `faops doctor npu` says more") from None
    options = npu._ExperimentalConfig(
        profiler_level=npu.ProfilerLevel.Level1, aic_metrics=npu.AiCMetrics.AiCoreNone, data_simplification=True
    )
    with npu.profile(
        activities=[npu.ProfilerActivity.CPU, npu.ProfilerActivity.NPU],
        schedule=npu.schedule(wait=0, warmup=0, active=steps, repeat=1),
        on_trace_ready=npu.tensorboard_trace_handler(str(folder)),
        record_shapes=True,
        experimental_config=options,
    ) as profiler:
        for _ in range(steps):
            program()
            synchronise(device)
            profiler.step()


def synchronise(device: torch.device) -> None:
    """Wait until a device has done all that it was given."""
    if device.type == "cpu":
        return
    module = torch.get_device_module(device)
    if module.is_available():
        module.synchronize()
    else:
        warnings.warn(f"no {device.type} device is available; nothing of it is recorded", FaopsWarning, stacklevel=2)
