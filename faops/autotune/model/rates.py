"""What a device can do in a second, from what is published about it."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from faops.autotune.model import estimates
from faops.device import DeviceProfile

EXPONENTIALS_A_CLOCK = 16  # of a multiprocessor: CUDA C++ Programming Guide, throughput of arithmetic instructions


@dataclass(frozen=True)
class _Unit:
    """A multiprocessor: boost clock of the best-known card in Hz, and operations a clock."""

    clock: float
    matrix_flops: int  # 16 bits, dense, sums in float32
    vector_lanes: int  # float32
    shared_bytes: int = 128  # of shared memory


# Clocks and matrix rates: the data sheets and whitepapers named in faops.architectures. Lanes: CUDA C++ Programming
# Guide, throughput of arithmetic instructions. Shared memory: 32 banks of 4 bytes, half of that on Turing (Jia et al.
# 2019, "Dissecting the NVidia Turing T4 GPU via Microbenchmarking").
_UNITS = {
    "sm_75": _Unit(1.59e9, 1024, 64, 64),
    "sm_80": _Unit(1.41e9, 2048, 64),
    "sm_86": _Unit(1.70e9, 512, 128),
    "sm_87": _Unit(1.30e9, 1024, 128),
    "sm_89": _Unit(2.52e9, 512, 128),
    "sm_90": _Unit(1.83e9, 4096, 128),
    "sm_100": _Unit(1.92e9, 8192, 128),
    "sm_103": _Unit(1.92e9, 8192, 128),
    "sm_120": _Unit(2.41e9, 512, 128),
}
_OTHER = _Unit(1.5e9, 512, 64)


@dataclass(frozen=True)
class Rates:
    """Peaks of a whole GPU: FLOP/s, exponentials/s and bytes/s; ``clock`` in Hz."""

    clock: float
    matrix: float
    vector: float
    exponentials: float
    l2: float
    shared: float
    memory: float


@functools.lru_cache(maxsize=256)
def rates(device: DeviceProfile) -> Rates:
    """Published rates where there are any, else those of the architecture's units, else assumed ones."""
    unit, count = _UNITS.get(device.arch, _OTHER), max(1, device.units)
    known = device.vendor == "nvidia"
    a_second = count * unit.clock
    assumed = a_second * unit.matrix_flops if known else estimates.ASSUMED_MATRIX_FLOPS
    return Rates(
        clock=unit.clock,
        matrix=device.matrix_flops or assumed,
        vector=2 * unit.vector_lanes * a_second,
        exponentials=EXPONENTIALS_A_CLOCK * a_second,
        l2=estimates.L2_BYTES_A_CLOCK * a_second,
        shared=unit.shared_bytes * a_second,
        memory=device.bandwidth or estimates.ASSUMED_BANDWIDTH,
    )
