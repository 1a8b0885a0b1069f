"""A CUDA driver that does nothing: Triton's own launch path runs on a machine without a GPU, minus the driver's work.

A C library named libcuda.so.1 takes the calls of Triton's driver module and of its launchers, succeeds and keeps what
the last launch was given. Triton's Python and C code is the true one: it is built against the stub and loads it. torch
is told that there is a device 0 of capability 9.0 whose current stream is ``STREAM``. Tensors stay on the CPU; the
first of a launch must be :func:`pretended` to lie on the device. All of this changes the whole process: use one of its
own, started without TRITON_INTERPRET.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

STREAM = 0x5EED
CAPABILITY = (9, 0)
MAX_ARGUMENTS = 128
BYTES = {"i1": 1, "i8": 1, "i16": 2, "i32": 4, "i64": 8, "u8": 1, "u16": 2, "u32": 4, "u64": 8, "fp32": 4, "fp64": 8}
POINTER_BYTES = 8

STUBBED = (
    "libcuda.so.1 (every call succeeds and does nothing), torch.cuda.is_available, current_device, device, "
    "get_device_capability, is_current_stream_capturing and torch's getter of the current stream"
)

SOURCE = r"""
#include <string.h>
typedef unsigned long long u64;

struct Launch {
    unsigned grid[3], block[3], shared;
    void *stream, *function;
    int launches, error, shared_limit, count;
    int bytes[128];
    unsigned char values[128][8];
} stub_launch = {.shared_limit = 227 << 10};

struct Config { unsigned grid[3], block[3], shared; void *stream; void *attributes; unsigned count; };

static int keep(const unsigned *grid, const unsigned *block, unsigned shared, void *stream, void *function,
                void **given) {
    struct Launch *l = &stub_launch;
    memcpy(l->grid, grid, sizeof l->grid);
    memcpy(l->block, block, sizeof l->block);
    l->shared = shared, l->stream = stream, l->function = function, l->launches++;
    for (int i = 0; i < l->count; i++) memcpy(l->values[i], given[i], l->bytes[i]);
    return l->error;
}

int cuLaunchKernel(void *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                   unsigned shared, void *stream, void **given, void **extra) {
    unsigned grid[3] = {gx, gy, gz}, block[3] = {bx, by, bz};
    return keep(grid, block, shared, stream, function, given);
}
int cuLaunchKernelEx(const struct Config *c, void *function, void **given, void **extra) {
    return keep(c->grid, c->block, c->shared, c->stream, function, given);
}
int cuInit(unsigned flags) { return 0; }
int cuDriverGetVersion(int *version) { *version = 13000; return 0; }
int cuGetErrorString(int code, const char **text) { *text = "the stub was told to fail"; return 0; }
int cuDeviceGetCount(int *count) { *count = 1; return 0; }
int cuDeviceGet(int *device, int index) { *device = index; return 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    switch (attribute) {
        case 75: *value = 9; break;        /* compute capability, major */
        case 76: *value = 0; break;        /* minor */
        case 97: *value = stub_launch.shared_limit; break; /* shared memory of a block */
        default: *value = 1024;
    }
    return 0;
}
int cuDevicePrimaryCtxRetain(void **context, int device) { *context = &stub_launch; return 0; }
int cuCtxGetCurrent(void **context) { *context = &stub_launch; return 0; }
int cuCtxSetCurrent(void *context) { return 0; }
int cuCtxGetDevice(int *device) { *device = 0; return 0; }
int cuCtxGetLimit(u64 *value, int limit) { *value = 0; return 0; }
int cuCtxSetLimit(int limit, u64 value) { return 0; }
int cuModuleLoadData(void **module, const void *image) { *module = &stub_launch; return 0; }
int cuModuleUnload(void *module) { return 0; }
int cuModuleGetFunction(void **function, void *module, const char *name) { *function = (char *)module + 64; return 0; }
int cuFuncGetAttribute(int *value, int attribute, void *function) { *value = attribute ? 0 : 1024; return 0; }
int cuFuncSetAttribute(void *function, int attribute, int value) { return 0; }
int cuFuncSetCacheConfig(void *function, int config) { return 0; }
int cuPointerGetAttribute(void *value, int attribute, u64 pointer) { *(u64 *)value = pointer; return 0; }
int cuStreamIsCapturing(void *stream, int *status) { *status = 0; return 0; }
int cuOccupancyMaxActiveClusters(int *count, void *function, void *config) { *count = 1; return 0; }
int cuTensorMapEncodeTiled(void *map) { return 0; }
int cuTensorMapEncodeIm2col(void *map) { return 0; }
"""


class _Launch(ctypes.Structure):
    _fields_ = (
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared", ctypes.c_uint),
        ("stream", ctypes.c_void_p),
        ("function", ctypes.c_void_p),
        ("launches", ctypes.c_int),
        ("error", ctypes.c_int),
        ("shared_limit", ctypes.c_int),
        ("count", ctypes.c_int),
        ("bytes", ctypes.c_int * MAX_ARGUMENTS),
        ("values", (ctypes.c_ubyte * 8) * MAX_ARGUMENTS),
    )


@dataclass(frozen=True)
class Recorded:
    """What the driver was given with a launch."""

    grid: tuple[int, ...]
    block: tuple[int, ...]
    shared_bytes: int
    stream: int
    function: int
    arguments: tuple[bytes, ...]


class Stub:
    """The driver of this process."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._launch = _Launch.in_dll(library, "stub_launch")
        self.stream = STREAM  # torch's current one
        self.capturing = False  # whether torch says that a CUDA graph is captured
        self.guarded: list[int] = []  # devices that were made current for a while

    def expect(self, sizes: Sequence[int]) -> None:
        """Keep that many arguments of every launch from now on, each with its bytes."""
        self._launch.count = len(sizes)
        for index, size in enumerate(sizes):
            self._launch.bytes[index] = size

    def fail(self, code: int) -> None:
        """What launches return from now on; 0 is success."""
        self._launch.error = code

    def limit_shared(self, size: int) -> None:
        """The bytes of shared memory that a block may have from now on, for who asks."""
        self._launch.shared_limit = size

    @property
    def launches(self) -> int:
        return int(self._launch.launches)

    def recorded(self) -> Recorded:
        """The last launch."""
        one = self._launch
        arguments = tuple(bytes(one.values[index])[: one.bytes[index]] for index in range(one.count))
        return Recorded(
            tuple(one.grid), tuple(one.block), one.shared, one.stream or 0, one.function or 0, arguments
        )  # fmt: skip


def argument_sizes(kernel: Any) -> list[int]:
    """Bytes of each run-time argument of a kernel that Triton compiled; its hidden ones behind them are left out."""
    types = [kind for kind in kernel.src.signature.values() if kind != "constexpr"]
    return [POINTER_BYTES if kind.startswith("*") else BYTES[kind] for kind in types]


def missing() -> str:
    """Why the stub cannot be built here; "" if it can."""
    if not sys.platform.startswith("linux"):
        return "the stub of the driver is a Linux library"
    return "" if compiler() else "there is no C compiler"


def compiler() -> str | None:
    return shutil.which(os.environ.get("CC", "cc")) or shutil.which("gcc") or shutil.which("clang")


def install(folder: Path) -> Stub:
    """Build the stub in ``folder``, which Triton's cache goes to as well, and let this process take it for a driver."""
    if "triton" in sys.modules:
        raise RuntimeError("Triton was imported before the stub was installed")
    source, library = folder / "stub.c", folder / "libcuda.so.1"
    source.write_text(SOURCE)
    build = [
        str(compiler()),
        "-shared",
        "-fPIC",
        "-O2",
        "-w",
        "-Wl,-soname,libcuda.so.1",
        str(source),
        "-o",
        str(library),
    ]
    subprocess.run(build, check=True)
    (folder / "libcuda.so").symlink_to(library.name)  # the name that old versions of Triton link against
    os.environ["TRITON_LIBCUDA_PATH"] = str(folder)
    os.environ["TRITON_CACHE_DIR"] = str(folder / "cache")
    # What is linked against libcuda.so.1 later finds the library of that name already loaded.
    loaded = ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    stub = Stub(loaded)

    @contextlib.contextmanager
    def device(index: int) -> Iterator[None]:
        stub.guarded.append(index)
        yield

    cuda: Any = torch.cuda
    cuda.is_available = lambda: True
    cuda.current_device = lambda: 0
    cuda.device = device
    cuda.get_device_capability = lambda device=None: CAPABILITY
    cuda.is_current_stream_capturing = lambda: stub.capturing
    internals: Any = torch._C
    internals._cuda_getCurrentRawStream = lambda index: stub.stream
    return stub


class _Pretended(Tensor):
    """A CPU tensor that says it is on a device."""

    __torch_function__ = torch._C._disabled_torch_function_impl
    index = 0

    def get_device(self) -> int:
        return self.index


def pretended(tensor: Tensor, index: int = 0) -> Tensor:
    """``tensor``, as if it were on that device."""
    found = tensor.as_subclass(_Pretended)
    found.index = index
    return found
