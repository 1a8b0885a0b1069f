"""Which code an architecture gets, and which code a driver takes. Nothing here needs CuPy, NVRTC or a card."""

from __future__ import annotations

import ctypes
import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from faops.architectures import ARCHITECTURES
from faops.errors import ArgumentError

Kind = Literal["cubin", "ptx"]
Version = tuple[int, int]

OLDEST = 75
ARCHS: tuple[str, ...] = tuple(arch for arch in ARCHITECTURES if arch.startswith("sm_"))
# Code for an "a" architecture may use all of it and runs nowhere else. sm_90 gets that since TMA and warpgroup products
# (wgmma, setmaxnreg) exist only there. The Blackwells do not: no kernel here uses what sm_100a or sm_120a add, both
# names give the same machine code for mma.sync, and plain sm_100 code also runs on other chips of compute
# capability 10.
SPECIFIC = frozenset({90})
# First driver of each CUDA major version: NVIDIA, CUDA Compatibility, Minor Version Compatibility, table 1.
FIRST_DRIVERS = {11: 450, 12: 525, 13: 580}


@dataclass(frozen=True)
class Target:
    """What NVRTC compiles for: ``sm_80`` (machine code, a cubin) or ``compute_80`` (PTX, which the driver compiles)."""

    name: str

    @property
    def kind(self) -> Kind:
        return "ptx" if self.name.startswith("compute_") else "cubin"

    def __str__(self) -> str:
        return self.name


def unsupported(arch: str) -> str:
    """Why the kernels cannot run on ``arch`` whatever compiles them; "" if they can."""
    number = _number(arch)
    if number is None:
        return f"{arch} is not an NVIDIA architecture"
    if number < OLDEST:
        capability = f"{number // 10}.{number % 10}"
        return f"{arch} has compute capability {capability}; the kernels need 7.5 (Turing) or newer"
    return ""


def choose(arch: str, supported: Sequence[int]) -> Target:
    """The target for a device of architecture ``arch``, such as "sm_86".

    ``supported`` holds the architectures NVRTC knows, as numbers such as 86. One that it does not know gets PTX of the
    newest that is not above it, always without "a": such PTX runs on nothing newer. Raises ArgumentError where no
    code can be made.
    """
    if reason := unsupported(arch):
        raise ArgumentError("arch", repr(arch), f"an NVIDIA architecture from sm_{OLDEST} on: {reason}")
    number = _number(arch)
    assert number is not None
    if number in supported:
        return Target(f"sm_{number}{'a' if number in SPECIFIC else ''}")
    below = [known for known in supported if OLDEST <= known < number]
    if not below:
        known = ", ".join(f"sm_{known}" for known in sorted(supported))
        raise ArgumentError("arch", repr(arch), f"one that the installed NVRTC compiles for ({known}) or a newer one")
    return Target(f"compute_{max(below)}")


def _number(arch: str) -> int | None:
    found = re.fullmatch(r"sm_(\d+)", arch)
    return int(found.group(1)) if found else None


@functools.cache
def driver_cuda_version() -> Version | None:
    """CUDA version of the NVIDIA driver, such as (12, 8); None without a driver. Opens no context."""
    try:
        query = ctypes.CDLL("libcuda.so.1").cuDriverGetVersion
    except (OSError, AttributeError):
        return None
    number = ctypes.c_int()
    if query(ctypes.byref(number)) != 0:
        return None
    return number.value // 1000, number.value % 1000 // 10


def driver_reason(nvrtc: Version, driver: Version, kind: Kind = "cubin") -> str:
    """Why a driver for CUDA ``driver`` does not take what NVRTC ``nvrtc`` compiles; "" if it does.

    A driver takes everything made by the same or an older CUDA. A cubin may also come from a newer minor version of
    the same major one. PTX may not: the driver's own compiler must know its version. Nothing may come from a newer
    major version. (NVIDIA, CUDA Compatibility, "Minor Version Compatibility" and "Binary Compatibility",
    https://docs.nvidia.com/deploy/cuda-compatibility/.)
    """
    if nvrtc <= driver or (kind == "cubin" and nvrtc[0] == driver[0]):
        return ""
    made, taken = ("{}.{}".format(*version) for version in (nvrtc, driver))
    if nvrtc[0] == driver[0]:
        return f"the driver is for CUDA {taken} and does not take PTX of NVRTC {made}"
    first = FIRST_DRIVERS.get(nvrtc[0])
    needed = f"CUDA {nvrtc[0]}.0 or newer" + (f" ({first} and up)" if first else "")
    return f"the driver is for CUDA {taken}, and what NVRTC {made} compiles needs one for {needed}"
