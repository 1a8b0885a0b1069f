"""Compiling a launch ahead of time for an architecture; neither a GPU nor a driver is needed.

Triton's just-in-time compiler does it, told that the architecture asked for is the current device, so that arguments
are specialised exactly as they are at a launch.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from faops.architectures import cuda_number
from faops.backends.triton import versions
from faops.backends.triton.launch import Launch, Tensors
from faops.errors import CompileError, UnavailableError

WARP = 32
TOOL_SECONDS = 60.0

#  Function attention_forward:
#   REG:96 STACK:0 SHARED:0 LOCAL:0 CONSTANT[0]:564 TEXTURE:0 SURFACE:0 SAMPLER:0
_RESOURCES = re.compile(r"REG:(?P<registers>\d+) STACK:(?P<stack>\d+) .*?LOCAL:(?P<local>\d+)")


@dataclass(frozen=True)
class Binary:
    """What the compiler made of a launch for one architecture."""

    ptx: str
    cubin: bytes
    shared_bytes: int  # of a block, dynamic
    threads: int  # of a block; more than num_warps says where warps are specialised
    registers: int  # of a thread
    spill_bytes: int  # that a thread keeps in memory for want of registers
    seconds: float  # that compiling took; next to nothing where Triton's cache had it


class _Target:
    """What the just-in-time compiler asks of the driver of a current device, for one that need not be there."""

    def __init__(self, arch: str) -> None:
        from triton.backends.compiler import GPUTarget

        self._number = cuda_number(arch)
        self._target = GPUTarget("cuda", self._number, WARP)

    def get_current_target(self) -> Any:
        return self._target

    def get_current_device(self) -> int:
        return self._number  # the compiler keeps its kernels by device, and these differ by architecture

    def get_current_stream(self, device: int) -> int:
        return 0


def compile_launch(launch: Launch, tensors: Tensors, arch: str) -> Binary:
    """Compile for ``arch``, such as "sm_90". Of the tensors only dtypes and alignment matter.

    Raises UnavailableError where Triton is missing or interprets its kernels in this process, and CompileError where
    the compiler gives up. For one thread at a time.
    """
    if versions.installed() is None:
        raise UnavailableError(f"Triton is not installed: {versions.INSTALL}")
    if versions.interpreted():
        raise UnavailableError("Triton interprets its kernels in this process (TRITON_INTERPRET=1) and compiles none")
    from triton.runtime.driver import driver

    start = time.perf_counter()
    before = dict(vars(driver))  # what is kept under which name differs by version; asking for it looks for a GPU
    driver.set_active(_Target(arch))
    try:
        arguments = launch.arguments(tensors)
        kernel = launch.function().warmup(*arguments, grid=launch.grid, **launch.compiler_options())
    except Exception as error:  # the compiler raises errors of many classes, and so do the tools that it runs
        cause = _first_cause(error)
        reason = f"{type(cause).__name__}: {cause}"
        raise CompileError(f"{launch.kernel} does not compile for {arch}: {reason}", log=str(error)) from error
    finally:
        vars(driver).update(before)
    seconds = time.perf_counter() - start
    cubin = kernel.asm["cubin"]
    registers, spill_bytes = _resources(cubin)
    return Binary(
        ptx=kernel.asm["ptx"],
        cubin=cubin,
        shared_bytes=kernel.metadata.shared,
        threads=kernel.metadata.num_warps * WARP,
        registers=registers,
        spill_bytes=spill_bytes,
        seconds=seconds,
    )


def _first_cause(error: BaseException) -> BaseException:
    """What lies under the compiler's errors, each of which tells the place in one of the functions called."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _resources(cubin: bytes) -> tuple[int, int]:
    """Registers of a thread, and bytes of its stack frame: kernels have no arrays, so what lies there was spilled."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(tool), "--dump-resource-usage", file.name]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=TOOL_SECONDS, check=True)
        except (OSError, subprocess.SubprocessError) as error:
            raise UnavailableError(f"{tool} does not run: {error}") from error
    found = _RESOURCES.search(done.stdout)
    if found is None:
        raise UnavailableError(f"{tool} prints no resource usage: {done.stdout.strip()}")
    return int(found["registers"]), int(found["stack"]) + int(found["local"])
