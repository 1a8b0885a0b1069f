"""Runs the raw CUDA kernels on a CPU, checking all that they do: a fiber for every CUDA thread, compiled by the host's
C++ compiler from the same sources."""

from __future__ import annotations

from faops.backends.cuda_raw.emulator.compiler import missing
from faops.backends.cuda_raw.emulator.counters import Counters
from faops.backends.cuda_raw.emulator.grid import Buffer, Report, run
from faops.backends.cuda_raw.emulator.tensors import launch

__all__ = ["Buffer", "Counters", "Report", "launch", "missing", "run"]
