"""Launching a compiled kernel on torch tensors through the CUDA driver.

No synchronisation and no memory from outside torch's allocator: a call can be captured into a CUDA graph once the
kernel was loaded, which its first call does.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import threading
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from faops.backends.cuda_raw import cubin_cache, nvrtc, targets
from faops.backends.cuda_raw.specialize import Specialised
from faops.backends.cuda_raw.targets import Target
from faops.errors import CaptureError, LaunchError, UnavailableError

DEFAULT_SHARED = 48 * 1024  # bytes a block may have without being asked for


@functools.cache
def _driver() -> Any:
    """CuPy's binding of the driver. Its errors are raised as its CUDADriverError."""
    importlib.import_module("cupy")  # finds the libraries of the wheels
    return importlib.import_module("cupy_backends.cuda.api.driver")


def _make_current(index: int) -> None:
    """Make torch's context of a device current in this thread; torch leaves that to the first call that needs one."""
    _driver()
    importlib.import_module("cupy_backends.cuda.api.runtime").setDevice(index)


class Function:
    """A kernel loaded on one device."""

    def __init__(self, kernel: Specialised, target: Target) -> None:
        """Compiles and loads in the current context. Raises UnavailableError where the driver does not take it."""
        driver = _driver()
        compiled = cubin_cache.compile_cached(kernel.source, target)
        try:
            self._module = driver.moduleLoadData(compiled.image)
            self.handle = driver.moduleGetFunction(self._module, kernel.source.entry)
            if kernel.shared_bytes > DEFAULT_SHARED:
                attribute = driver.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
                driver.funcSetAttribute(self.handle, attribute, kernel.shared_bytes)
        except driver.CUDADriverError as error:
            version, made = targets.driver_cuda_version(), nvrtc.version()
            reason = targets.driver_reason(made, version, compiled.kind) if version else ""
            raise UnavailableError(f"the driver does not load {target} code of NVRTC: {reason or error}") from error
        self.name = kernel.source.name
        self.threads = kernel.source.threads
        self.shared_bytes = kernel.shared_bytes

    def __call__(self, grid: int, stream: int, packed: bytearray) -> None:
        """Enqueue ``grid`` blocks on ``stream``; the driver copies the parameters before this returns."""
        driver = _driver()
        argument = ctypes.addressof((ctypes.c_char * len(packed)).from_buffer(packed))
        arguments = ctypes.c_void_p(argument)
        try:
            driver.launchKernel(
                self.handle, grid, 1, 1, self.threads, 1, 1, self.shared_bytes, stream, ctypes.addressof(arguments), 0
            )
        except driver.CUDADriverError as error:
            raise LaunchError(f"the driver refused to launch {self.name}: {error}") from error


# The device whose context this thread made current last. A new thread has none until a call of the CUDA runtime asks
# for one, and the driver's calls do not.
_thread = threading.local()

_functions: dict[tuple[int, str, int], Function] = {}
_loading = threading.Lock()


def launch(kernel: Specialised, tensors: Sequence[Tensor | None]) -> None:
    """Enqueue ``kernel`` on torch's current stream of the device of its tensors, the first of which is there."""
    assert tensors[0] is not None
    index = tensors[0].get_device()
    if index == torch.cuda.current_device():
        _launch(kernel, tensors, index)
    else:
        with torch.cuda.device(index):
            _launch(kernel, tensors, index)


def _launch(kernel: Specialised, tensors: Sequence[Tensor | None], index: int) -> None:
    if getattr(_thread, "device", None) != index:
        _make_current(index)
        _thread.device = index
    key = (index, kernel.source.digest(), kernel.shared_bytes)
    function = _functions.get(key)
    if function is None:
        with _loading:
            function = _functions.get(key) or _load(key, kernel, index)
    stream = torch.cuda.current_stream(index).cuda_stream  # read anew: a graph's capture has a stream of its own
    function(kernel.grid, stream, kernel.packed(tensors))


def _load(key: tuple[int, str, int], kernel: Specialised, index: int) -> Function:
    if torch.cuda.is_current_stream_capturing():
        raise CaptureError("a kernel cannot be loaded while a CUDA graph is captured: run the call once before")
    major, minor = torch.cuda.get_device_capability(index)
    function = _functions[key] = Function(kernel, nvrtc.target_of(f"sm_{major}{minor}"))
    return function
