"""Launching a Triton kernel: compiled on a GPU, interpreted on the CPU; cheap when repeated.

The first launch of a key goes through Triton's just-in-time compiler. What that finds out anew at every call, which
is the type, the alignment and the specialisation of some sixty arguments, follows from the key, so repeated launches
hand the compiled kernel its arguments without looking at them.
"""

from __future__ import annotations

import functools
import importlib
import itertools
import threading
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from faops.backends.triton import versions
from faops.device import detect
from faops.errors import CaptureError, LaunchError, UnavailableError

KERNELS = "faops.backends.triton.kernels"
MEMO_LIMIT = 4096  # launches kept a device; emptied when full

Tensors = tuple[Tensor | None, ...]  # in the order of the function's first parameters; the first is there
Value = int | float | bool | str | None
Ready = Callable[[Tensors], None]


@dataclass(frozen=True)
class Launch:
    """One launch without its tensors.

    The function's parameters are the tensors, an absent one None, then the numbers, then the constants.
    """

    kernel: str  # "forward.attention_forward": module below KERNELS, and function
    grid: tuple[int, int, int]
    numbers: Mapping[str, int | float]  # run-time scalars by parameter
    constants: Mapping[str, Value]  # tl.constexpr parameters by name
    options: Mapping[str, int | bool]  # num_warps, num_stages and whatever else the compiler takes

    def function(self) -> Any:
        """The function as triton.jit made it; imports Triton."""
        return kernel_function(self.kernel)

    def compiler_options(self) -> dict[str, int | bool]:
        """The options, and that products and sums may be fused: Triton's default, but not from 3.10 on.

        Scores times a scale less the largest one are then one instruction instead of two.
        """
        return {"enable_fp_fusion": True, **self.options}

    def arguments(self, tensors: Tensors) -> tuple[Any, ...]:
        """Every argument in the order of the parameters. Raises KeyError for one that is missing."""
        values = {**self.numbers, **self.constants}
        return (*tensors, *(values[name] for name in self.function().arg_names[len(tensors) :]))


@functools.cache
def kernel_function(kernel: str) -> Any:
    """The function "module.name" below KERNELS, as triton.jit made it; imports Triton."""
    module, _, name = kernel.rpartition(".")
    return getattr(importlib.import_module(f"{KERNELS}.{module}"), name)


_ready: dict[int, dict[Hashable, Ready]] = {}  # by device index, -1 for the CPU, then by key
_compiled: set[tuple[int, str]] = set()  # kernels that a device has taken, in any config
_preparing = threading.Lock()
_interpreter = threading.Lock()  # it keeps the place in the grid in a global


_numbers: dict[Hashable, int] = {}
_next_number = itertools.count()


def number(key: Hashable) -> int:
    """A number that stands for ``key`` in the keys of a call's launches, so that a long one is hashed once a call."""
    found = _numbers.get(key)
    if found is None:
        if len(_numbers) >= MEMO_LIMIT:
            _numbers.clear()
        found = _numbers[key] = next(_next_number)
    return found


def launch(key: Hashable, tensors: Tensors, build: Callable[[], Launch]) -> None:
    """Enqueue a kernel on the current stream of the tensors' device, or interpret it where they are on the CPU.

    ``key`` stands for all that ``build`` returns, and for each tensor's dtype and whether its address is a multiple
    of 16; ``build`` is only called for a new key.

    Raises UnavailableError where the kernel does not compile or load, CaptureError where it would have to while a CUDA
    graph is captured, and LaunchError where the driver refuses to launch it.
    """
    assert tensors[0] is not None
    index = tensors[0].get_device()
    known = _ready.get(index)
    run = None if known is None else known.get(key)
    if run is None:
        run = _prepare(index, key, tensors, build())
    if index < 0 or index == torch.cuda.current_device():
        run(tensors)
    else:
        with torch.cuda.device(index):
            run(tensors)


def _prepare(index: int, key: Hashable, tensors: Tensors, made: Launch) -> Ready:
    if index < 0:
        ready = _interpreted(made)
    else:
        with torch.cuda.device(index), _preparing:
            ready = _load(index, tensors, made)
    known = _ready.setdefault(index, {})
    if len(known) >= MEMO_LIMIT:
        known.clear()
    known[key] = ready
    return ready


def _interpreted(made: Launch) -> Ready:
    function = made.function()

    def run(tensors: Tensors) -> None:
        with _interpreter:
            function[made.grid](*made.arguments(tensors))

    return run


def _load(index: int, tensors: Tensors, made: Launch) -> Ready:
    """Compile and load in the current context."""
    if torch.cuda.is_current_stream_capturing():
        raise CaptureError("a kernel cannot be loaded while a CUDA graph is captured: run the call once before")
    try:
        kernel = made.function().warmup(*made.arguments(tensors), grid=made.grid, **made.compiler_options())
        ready = _direct(kernel, made, len(tensors))
    except Exception as error:  # the compiler raises errors of many classes, and so do the tools that it runs
        reason = f"{made.kernel} does not compile or load: {type(error).__name__}: {error}"
        # Once a kernel has run here it is not the machine that refuses it, only a config.
        if (index, made.kernel) not in _compiled and type(error).__name__ != "OutOfResources":
            versions.note_broken(detect(torch.device("cuda", index)), reason)
        raise UnavailableError(reason) from error
    _compiled.add((index, made.kernel))
    return ready


def _direct(kernel: Any, made: Launch, count: int) -> Ready:
    """Launches what the compiler returned. Loads it."""
    from triton.runtime.driver import driver

    run, stream_of = kernel.run, driver.active.get_current_stream
    function, metadata, index = kernel.function, kernel.packed_metadata, driver.active.get_current_device()
    rest = made.arguments((None,) * count)[count:]
    grid_x, grid_y, grid_z = made.grid
    official, options, hooked = made.function()[made.grid], made.compiler_options(), _hooks()

    def enqueue(tensors: Tensors) -> None:
        if hooked():
            official(*tensors, *rest, **options)
            return
        # Addresses in place of tensors spare a query of the driver for each; Triton makes it to find CPU tensors.
        pointers = [None if tensor is None else tensor.data_ptr() for tensor in tensors]
        try:
            run(grid_x, grid_y, grid_z, stream_of(index), function, metadata, None, None, None, *pointers, *rest)
        except RuntimeError as error:
            raise LaunchError(f"the driver refused to launch {made.kernel}: {error}") from error

    return enqueue


def _hooks() -> Callable[[], bool]:
    """Tells whether someone, a profiler for example, wants to hear of launches."""
    import triton
    from triton.compiler import CompiledKernel

    # Up to 3.3 hooks are attributes of the class, None or a function; then knobs, later ones with a list of calls.
    holder = triton.knobs.runtime if hasattr(triton, "knobs") else CompiledKernel

    def hooked() -> bool:
        enter, leave = holder.launch_enter_hook, holder.launch_exit_hook
        return bool(getattr(enter, "calls", enter)) or bool(getattr(leave, "calls", leave))

    return hooked
