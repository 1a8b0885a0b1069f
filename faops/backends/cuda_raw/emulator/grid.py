"""Runs a kernel's grid on the CPU."""

from __future__ import annotations

import ctypes
import functools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from faops.architectures import limits
from faops.backends.cuda_raw.emulator import counters as counts
from faops.backends.cuda_raw.emulator.build import build
from faops.backends.cuda_raw.emulator.compiler import MODES
from faops.backends.cuda_raw.emulator.counters import Counters
from faops.backends.cuda_raw.emulator.errors import FAULTS, EmulatorError
from faops.backends.cuda_raw.source import Source
from faops.errors import ArgumentError

WARP = 32
MAX_THREADS = 1024
MESSAGE_BYTES = 4096


@dataclass(frozen=True)
class Buffer:
    """Host memory that the kernel may touch: address, size in bytes, whether it may be written, and its name."""

    address: int
    bytes: int
    writable: bool
    name: str


@dataclass(frozen=True)
class Report:
    """A launch that went well: its time without compiling, in seconds, and its counts in mode "counters"."""

    seconds: float
    counters: Counters | None


class _Buffer(ctypes.Structure):
    _fields_ = [
        ("address", ctypes.c_uint64),
        ("bytes", ctypes.c_uint64),
        ("writable", ctypes.c_uint64),
        ("name", ctypes.c_char_p),
    ]


class _Launch(ctypes.Structure):
    _fields_ = [
        ("params", ctypes.c_char_p),
        ("params_bytes", ctypes.c_uint64),
        ("grid", ctypes.c_uint32),
        ("threads", ctypes.c_uint32),
        ("shared_bytes", ctypes.c_uint32),
        ("host_threads", ctypes.c_uint32),
        ("buffers", ctypes.POINTER(_Buffer)),
        ("buffer_count", ctypes.c_uint64),
    ]


def run(
    source: Source,
    arch: str,
    params: bytes,
    grid: int,
    shared_bytes: int,
    buffers: Sequence[Buffer],
    mode: str = "run",
    *,
    pointers: Sequence[int] = (),
    host_threads: int = 1,
) -> Report:
    """Run ``grid`` blocks of ``source`` as an ``arch`` device would.

    ``params`` is the packed parameter struct, which holds host addresses inside ``buffers``. Modes: "run" checks every
    access; "counters" counts too; "thread" looks for races and "address" for undefined behaviour, in a process of
    their own, for which ``pointers`` must give the offsets of the addresses in ``params``. ``host_threads`` run
    blocks side by side in mode "run". Raises a FaultError for what is wrong with the kernel, EmulatorError for what
    keeps it from running, ArgumentError for an impossible launch.
    """
    _check_launch(source, arch, grid, shared_bytes)
    file = build(source, arch, mode)
    if MODES[mode].process:
        from faops.backends.cuda_raw.emulator.process import run_process

        return Report(run_process(file, source, params, grid, shared_bytes, buffers, pointers), None)
    table = (_Buffer * len(buffers))(*(_Buffer(b.address, b.bytes, b.writable, b.name.encode()) for b in buffers))
    threads = max(1, host_threads) if mode == "run" else 1
    launch = _Launch(params, len(params), grid, source.threads, shared_bytes, threads, table, len(buffers))
    message = ctypes.create_string_buffer(MESSAGE_BYTES)
    counted = ctypes.c_char_p()
    entry = _load(file)
    start = time.perf_counter()
    number = entry(ctypes.byref(launch), message, MESSAGE_BYTES, ctypes.byref(counted))
    seconds = time.perf_counter() - start
    if number:
        raise FAULTS[number](f"{source.name}: {message.value.decode(errors='replace')}")
    return Report(seconds, counts.parse(counted.value.decode()) if counted.value else None)


def _check_launch(source: Source, arch: str, grid: int, shared_bytes: int) -> None:
    if not 1 <= grid < 2**31:
        raise ArgumentError("grid", grid, "1 to 2**31 - 1 blocks")
    if source.threads % WARP or not WARP <= source.threads <= MAX_THREADS:
        raise ArgumentError("source.threads", source.threads, f"a multiple of {WARP} up to {MAX_THREADS}")
    allowed = limits(arch).shared_per_block
    if not 0 <= shared_bytes <= allowed:
        raise ArgumentError("shared_bytes", shared_bytes, f"at most {allowed} bytes, what a block may have on {arch}")


@functools.cache
def _load(file: Path) -> ctypes._NamedFuncPointer:
    try:
        entry = ctypes.CDLL(str(file)).faops_emulator_launch
    except OSError as error:
        raise EmulatorError(f"{file} cannot be loaded: {error}") from None
    entry.restype = ctypes.c_int
    entry.argtypes = [
        ctypes.POINTER(_Launch),
        ctypes.c_char_p,
        ctypes.c_uint64,
        ctypes.POINTER(ctypes.c_char_p),
    ]
    return entry
