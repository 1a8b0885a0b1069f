"""Runs a kernel that was built with a sanitizer, in a process of its own, and reads what the sanitizer says."""

from __future__ import annotations

import ctypes
import os
import shutil
import struct
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from faops.backends.cuda_raw.emulator.errors import FAULTS, EmulatorError
from faops.backends.cuda_raw.emulator.sanitizer import SANITIZER_ENVIRONMENT, fault_of
from faops.backends.cuda_raw.source import Source
from faops.errors import ArgumentError

if TYPE_CHECKING:
    from faops.backends.cuda_raw.emulator.grid import Buffer

RUN_SECONDS = 600.0
POINTER_BYTES = 8


def run_process(
    file: Path,
    source: Source,
    params: bytes,
    grid: int,
    shared_bytes: int,
    buffers: Sequence[Buffer],
    pointers: Sequence[int],
) -> float:
    """Run the program ``file`` on copies of ``buffers`` and copy back what it wrote. Returns seconds.

    Raises a FaultError for what the emulator or the sanitizer found, EmulatorError where the program does not run.
    """
    relocations = _relocations(params, buffers, pointers)
    with tempfile.TemporaryDirectory(prefix="faops-emulator-") as folder:
        case, result = Path(folder) / "launch", Path(folder) / "result"
        with open(case, "wb") as out:
            header = grid, source.threads, shared_bytes, len(buffers), len(relocations), len(params)
            out.write(struct.pack("<6Q", *header))
            for buffer in buffers:
                name = buffer.name.encode()
                out.write(struct.pack("<4Q", buffer.address, buffer.bytes, buffer.writable, len(name)) + name)
                out.write(_contents(buffer))
            for relocation in relocations:
                out.write(struct.pack("<3Q", *relocation))
            out.write(params)
        start = time.perf_counter()
        _call(file, case, result, source.name)
        seconds = time.perf_counter() - start
        _take(result, source.name, buffers)
    return seconds


def _contents(buffer: Buffer) -> bytes:
    return ctypes.string_at(buffer.address, buffer.bytes)


def _relocations(params: bytes, buffers: Sequence[Buffer], pointers: Sequence[int]) -> list[tuple[int, int, int]]:
    """For every pointer in ``params`` into a buffer: its offset, the buffer's index and where in the buffer it points.

    Buffers may overlap; one that starts where the pointer points is the one that was meant.
    """
    found = []
    for offset in pointers:
        if not 0 <= offset <= len(params) - POINTER_BYTES:
            raise ArgumentError("pointers", offset, f"an offset of 8 bytes in the {len(params)} bytes of params")
        (address,) = struct.unpack_from("<Q", params, offset)
        inside = [
            (address - buffer.address, index)
            for index, buffer in enumerate(buffers)
            if 0 <= address - buffer.address < buffer.bytes
        ]
        if inside:
            displacement, index = min(inside)
            found.append((offset, index, displacement))
    return found


def _call(file: Path, case: Path, result: Path, name: str) -> None:
    command = [str(file), str(case), str(result)]
    done = _run(command)
    if "unexpected memory mapping" in done.stderr and (setarch := shutil.which("setarch")):
        done = _run([setarch, os.uname().machine, "-R", *command])  # no randomised addresses
    if done.returncode == 0:
        return
    if fault := fault_of(done.stderr):
        raise type(fault)(f"{name}: {fault}")
    raise EmulatorError(f"{name}: the emulator's process ended with {done.returncode}:\n{done.stderr.strip()}")


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            env={**os.environ, **SANITIZER_ENVIRONMENT},
            timeout=RUN_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EmulatorError(f"the emulator's process does not run: {error}") from None


def _take(result: Path, name: str, buffers: Sequence[Buffer]) -> None:
    """Raise the fault in a result file, or copy the buffers in it back."""
    written = result.read_bytes()
    number, length = struct.unpack_from("<2Q", written)
    message = written[16 : 16 + length].decode(errors="replace")
    if number:
        raise FAULTS[number](f"{name}: {message}")
    position = 16 + length
    for buffer in buffers:
        if buffer.writable:
            ctypes.memmove(buffer.address, written[position : position + buffer.bytes], buffer.bytes)
            position += buffer.bytes
