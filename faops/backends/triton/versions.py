"""Which Triton is installed and what runs with it here, found out without importing it."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import re
import sys
from collections.abc import Iterator

import torch

from faops.architectures import cuda_number
from faops.device import DeviceProfile

PACKAGES = ("triton", "pytorch-triton", "triton-windows")  # released, with torch's nightly builds, for Windows
INSTALL = "pip install 'faops[triton]'"
LEAST = (3, 3)
LEAST_ARCH = 80
TURING = 75
MANY_TRUTHS = (3, 4)  # the first version that reads TRITON_INTERPRET=true like 1
WARP_SPECIALIZATION = (3, 4)  # the first version in which tl.range takes warp_specialize
JOINS = (3, 4)  # the first version that compiles tl.join wherever a kernel has it
TRUTHS = ("1", "true", "yes", "on", "y")
# Interpreters before this version make numbers of arrays in a way that NumPy has refused since 2.4.
NUMPY_SAFE = (3, 7)
STRICT_NUMPY = (2, 4)

_broken: dict[str, str] = {}  # by a device's name: why its kernels turned out not to compile or load


def installed() -> tuple[int, ...] | None:
    """The version of the installed Triton, such as (3, 9, 0); None without one."""
    return next((version for package in PACKAGES if (version := _version(package))), None)


def version_of(package: str) -> tuple[int, ...] | None:
    """The version of an installed package, such as (3, 2, 0); None where it is not installed."""
    try:
        version = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
    release = re.match(r"\d+(\.\d+)*", version)
    return tuple(map(int, release.group().split("."))) if release else (0,)


_version = functools.cache(version_of)


def has_warp_specialization() -> bool:
    """Whether tl.range takes ``warp_specialize``."""
    return (installed() or LEAST) >= WARP_SPECIALIZATION


def compiles_dropout_backward() -> bool:
    """Whether the compiler knows what to do with the layout of tl.join in the backward kernel."""
    return (installed() or LEAST) >= JOINS


def interpreting() -> bool:
    """Whether the environment tells Triton to interpret kernels on the CPU, read as Triton reads it."""
    value = os.environ.get("TRITON_INTERPRET", "0")
    return value == "1" or ((installed() or LEAST) >= MANY_TRUTHS and value.lower() in TRUTHS)


def interpreted() -> bool:
    """Whether kernels of this process are interpreted. Triton's own are from its import on, or not."""
    language = sys.modules.get("triton.language")
    if language is None:
        return interpreting()
    return type(language.sum).__name__ == "InterpretedFunction"


def missing(device: DeviceProfile) -> Iterator[str]:
    """What keeps kernels from running on ``device``; of a card that is not in this machine, what would."""
    version = installed()
    if version is None:
        yield f"Triton is not installed: {INSTALL}"
    elif version < LEAST:
        yield f"Triton {_text(version)} is too old, {_text(LEAST)} or newer is needed: {INSTALL}"
    if device.vendor == "nvidia":
        yield from _missing_on_nvidia(device)
    elif device.torch_type == "cpu":
        yield from _missing_on_cpu(version or LEAST)
    else:
        yield f"it runs on NVIDIA GPUs, not on {device.name}"


def _text(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def _missing_on_cpu(version: tuple[int, ...]) -> Iterator[str]:
    if not interpreting():
        yield "it runs on NVIDIA GPUs; TRITON_INTERPRET=1 runs it on a CPU, slowly"
    elif not interpreted():
        yield "TRITON_INTERPRET=1 came after Triton was imported: set it before the program starts"
    numpy = _version("numpy") or STRICT_NUMPY
    if version < NUMPY_SAFE and numpy >= STRICT_NUMPY:
        yield (
            f"the interpreter of Triton {_text(version)} does not work with NumPy {_text(numpy)}: "
            f"pip install 'numpy<{_text(STRICT_NUMPY)}', or Triton {_text(NUMPY_SAFE)}"
        )


def _missing_on_nvidia(device: DeviceProfile) -> Iterator[str]:
    number = cuda_number(device.arch)
    if number == TURING:
        yield "Triton makes no code for the tensor cores of sm_75"
    elif number < LEAST_ARCH:
        yield f"it needs sm_{LEAST_ARCH} or newer, not {device.arch}"
    if not torch.cuda.is_available():
        return
    if interpreted():
        yield "Triton interprets its kernels in this process (TRITON_INTERPRET=1), on a CPU"
    if reason := _broken.get(device.name, ""):
        yield reason


def note_broken(device: DeviceProfile, reason: str) -> None:
    """Remember why kernels do not run on ``device``, so that no other call of this process tries again."""
    _broken[device.name] = reason
