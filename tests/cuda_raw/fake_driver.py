"""A CUDA driver without a card: it notes every call, and runs what is launched in the emulator if asked to."""

from __future__ import annotations

import ctypes
import functools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from faops.backends.cuda_raw import cubin_cache, decode_parts, launch, nvrtc, params
from faops.backends.cuda_raw.emulator import Buffer, run
from faops.backends.cuda_raw.emulator.tensors import buffer_of
from faops.backends.cuda_raw.nvrtc import Compiled
from faops.backends.cuda_raw.source import Source
from faops.backends.cuda_raw.targets import Target

STREAM = 0x51
ARGUMENTS_END = 0  # CU_LAUNCH_PARAM_END, and no "extra"
C_TYPES = {"i64": ctypes.c_int64, "int": ctypes.c_int32, "float": ctypes.c_float, "u32": ctypes.c_uint32}


STRUCTS = tuple(
    value for module in (params, decode_parts) for value in vars(module).values() if isinstance(value, params.Struct)
)


@functools.cache
def c_struct(struct: params.Struct) -> type[ctypes.Structure]:
    """The struct as a C compiler lays it out."""
    members = [(name, ctypes.c_uint64 if kind.endswith("*") else C_TYPES[kind]) for name, kind in struct.fields]
    return type("Params", (ctypes.Structure,), {"_fields_": members})


def struct_of(source: Source) -> params.Struct:
    """The struct that a kernel takes."""
    text = dict(source.headers)["params.cuh"]
    return next(struct for struct in STRUCTS if struct.header() == text)


class OnCard(torch.Tensor):
    """A CPU tensor that says it lies on a card."""

    index = 0

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return torch.device("cuda", self.index)

    def get_device(self) -> int:
        return self.index


def on_card(tensor: Tensor, index: int = 0) -> OnCard:
    found = tensor.as_subclass(OnCard)
    found.index = index
    return found


class CUDADriverError(RuntimeError):
    """What CuPy raises for a status of the driver."""


@dataclass
class Launched:
    """One call of launchKernel."""

    function: int
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared_bytes: int
    stream: int
    extra: int
    packed: bytes
    thread: int
    struct: params.Struct

    @property
    def params(self) -> Any:
        """The parameters by name."""
        return c_struct(self.struct).from_buffer_copy(self.packed)


@dataclass
class FakeDriver:
    """The part of CuPy's driver module that the launcher uses, and the parts of torch.cuda beside it.

    ``fail`` names a function that raises instead. ``memory`` holds the tensors that a launch may touch; where it is
    not empty, launches run in the emulator.
    """

    CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES: int = 8
    CUDADriverError: type[Exception] = CUDADriverError
    loaded: list[bytes] = field(default_factory=list)
    attributes: list[tuple[int, int, int]] = field(default_factory=list)
    launched: list[Launched] = field(default_factory=list)
    contexts: list[tuple[int, int]] = field(default_factory=list)  # (thread, device) made current
    sources: dict[bytes, Source] = field(default_factory=dict)  # by image
    memory: list[tuple[Tensor, str, bool]] = field(default_factory=list)
    fail: str = ""
    capturing: bool = False
    current: int = 0
    stream: int = STREAM
    arch: str = "sm_80"

    def _may_fail(self, name: str) -> None:
        if self.fail == name:
            raise CUDADriverError(f"CUDA_ERROR_FROM_{name}: as the test wants")

    def moduleLoadData(self, image: bytes) -> int:  # noqa: N802
        self._may_fail("moduleLoadData")
        assert not self.capturing, "a module is loaded while a graph is captured"
        self.loaded.append(image)
        return len(self.loaded)

    def moduleGetFunction(self, module: int, name: str) -> int:  # noqa: N802
        self._may_fail("moduleGetFunction")
        assert name == self.sources[self.loaded[module - 1]].entry
        return 100 + module

    def funcSetAttribute(self, function: int, attribute: int, value: int) -> None:  # noqa: N802
        self._may_fail("funcSetAttribute")
        self.attributes.append((function, attribute, value))

    def launchKernel(self, function: int, *numbers: int) -> None:  # noqa: N802
        self._may_fail("launchKernel")
        assert (threading.get_ident(), self.current) in self.contexts, "no context is current in this thread"
        *sizes, shared_bytes, stream, arguments, extra = numbers
        first = ctypes.c_uint64.from_address(arguments).value  # an array of one pointer, to the struct
        source = self.sources[self.loaded[function - 101]]
        struct = struct_of(source)
        packed = ctypes.string_at(first, struct.size)
        grid, block = (sizes[0], sizes[1], sizes[2]), (sizes[3], sizes[4], sizes[5])
        self.launched.append(
            Launched(function, grid, block, shared_bytes, stream, extra, packed, threading.get_ident(), struct)
        )
        if self.memory:
            buffers: list[Buffer] = [buffer_of(*one) for one in self.memory]
            run(source, self.arch, packed, grid[0], shared_bytes, buffers)

    def make_current(self, index: int) -> None:
        self.contexts.append((threading.get_ident(), index))
        self.current = index  # as the runtime does

    def compile(self, source: Source, target: Target) -> Compiled:
        image = f"{target}:{source.digest()}".encode()
        self.sources[image] = source
        return Compiled(image, target, "", 0.0)

    @contextmanager
    def on_device(self, index: int) -> Iterator[None]:
        before, self.current = self.current, index
        yield
        self.current = before


def install(patch: pytest.MonkeyPatch) -> FakeDriver:
    """Put a fake driver under the launcher."""
    driver = FakeDriver()
    patch.setattr(launch, "_driver", lambda: driver)
    patch.setattr(launch, "_make_current", driver.make_current)
    patch.setattr(launch, "_thread", threading.local())
    patch.setattr(launch, "_functions", {})
    patch.setattr(cubin_cache, "compile_cached", driver.compile)
    patch.setattr(nvrtc, "supported", lambda: (75, 80, 86, 89, 90))
    patch.setattr(nvrtc, "version", lambda: (13, 0))
    fakes: dict[str, Any] = {
        "current_device": lambda: driver.current,
        "current_stream": lambda index: SimpleNamespace(cuda_stream=driver.stream + index),
        "get_device_capability": lambda index: divmod(int(driver.arch.removeprefix("sm_")), 10),
        "is_current_stream_capturing": lambda: driver.capturing,
        "device": driver.on_device,
    }
    for name, fake in fakes.items():
        patch.setattr(torch.cuda, name, fake)
    return driver
