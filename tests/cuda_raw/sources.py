"""Small kernels for the tests of the compiler."""

from __future__ import annotations

import pytest

from faops.backends.cuda_raw.source import Source

SPECIALIZATION = "constexpr int FACTOR = {};\nconstexpr bool TWICE = true;\n"
MAIN = """\
#include "specialization.cuh"
#include "scale.cuh"

extern "C" __global__ void scale_all(float* values) {
    __shared__ float kept[64];
    kept[threadIdx.x] = values[threadIdx.x];
    __syncthreads();
    values[threadIdx.x] = scaled(kept[63 - threadIdx.x]);
}
"""
HEADER = """\
#pragma once
__device__ float scaled(float value) {
    return value * FACTOR;
}
"""


def small(factor: int = 3, text: str = MAIN, header: str = HEADER) -> Source:
    """A kernel that compiles in 50 ms, has 256 bytes of shared memory, and differs with ``factor``."""
    headers = (("scale.cuh", header), ("specialization.cuh", SPECIALIZATION.format(factor)))
    return Source("scale", "scale_all", headers, text, threads=64)


def need_compiler() -> None:
    """Skips a test module, and says what it takes, where CuPy or NVRTC is missing."""
    from faops.backends.cuda_raw import nvrtc

    if reason := nvrtc.probe():
        pytest.skip(f"NOT TESTED, no CUDA kernel was compiled: {reason}", allow_module_level=True)
