"""How long a forward kernel takes until it can be loaded: compiled, read from disk, or found in memory.

    python -m benchmarks.compile_time            every target
    python -m benchmarks.compile_time --quick    two targets; the result goes to build/benchmarks

Cold is NVRTC with an empty cache, its log and the writing of the file included. Warm is a process that finds the file.
In memory is every later call of the process that loads a kernel anew. A call whose kernel is loaded does none of this.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks import record
from faops.backends.cuda_raw import cubin_cache, nvrtc
from faops.backends.cuda_raw.gates.cases import TARGETS, Case, default_configs
from faops.backends.cuda_raw.source import Source
from faops.backends.cuda_raw.targets import Target

NAME = "compile_time"
FOLDER = "static"
HEAD_DIMS = (64, 128, 256)
COLD_RUNS, WARM_RUNS, MEMORY_RUNS = 3, 10, 200


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compile_time", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--quick", action="store_true", help="two targets")
    options = parser.parse_args(arguments)
    if reason := nvrtc.probe():
        print(reason, file=sys.stderr)
        return 2
    targets = [Target(name) for name in (("sm_75", "sm_80") if options.quick else TARGETS)]
    result = record.header(NAME, runs={"cold": COLD_RUNS, "warm": WARM_RUNS, "memory": MEMORY_RUNS}, dtype="float16")
    result["processor"], result["device"]["folder"] = result["device"]["folder"], FOLDER
    result["versions"]["nvrtc"] = nvrtc.version_text()
    result["cases"] = []
    print(f"{'kernel':44} {'cold s':>7} {'warm ms':>8} {'memory us':>9} {'bytes':>7}")
    nvrtc.compile(_case(targets[0], HEAD_DIMS[0]).kernel().source, targets[0])  # loads the compiler
    for target in targets:
        for head_dim in HEAD_DIMS:
            found = measure(_case(target, head_dim))
            result["cases"].append(found)
            cold, warm, memory = (statistics.median(found[name]) for name in ("cold_s", "warm_s", "memory_s"))
            print(
                f"{found['kernel']:44} {cold:7.3f} {warm * 1e3:8.2f} {memory * 1e6:9.1f} {found['bytes']:7}", flush=True
            )
    print(record.write(result, quick=options.quick))
    return 0


def _case(target: Target, head_dim: int) -> Case:
    return Case(target, default_configs(target, head_dim)[0], head_dim, torch.float16)


def measure(case: Case) -> dict[str, Any]:
    """Seconds of each run; those in memory are means of ``MEMORY_RUNS`` calls, since one is too short to time."""
    source = case.kernel().source
    cold, warm, memory, size = [], [], [], 0
    for _ in range(COLD_RUNS):
        with tempfile.TemporaryDirectory() as folder:
            os.environ["FAOPS_CACHE_DIR"] = folder
            cubin_cache.forget()
            seconds, compiled = _timed(case, source)
            assert not compiled.from_cache
            cold.append(seconds)
            for _ in range(WARM_RUNS):
                cubin_cache.forget()
                seconds, compiled = _timed(case, source)
                assert compiled.from_cache
                warm.append(seconds)
            start = time.perf_counter()
            for _ in range(MEMORY_RUNS):
                cubin_cache.compile_cached(source, case.target)
            memory.append((time.perf_counter() - start) / MEMORY_RUNS)
            size = len(compiled.image)
    return {"kernel": str(case), "cold_s": cold, "warm_s": warm, "memory_s": memory, "bytes": size}


def _timed(case: Case, source: Source) -> tuple[float, nvrtc.Compiled]:
    start = time.perf_counter()
    compiled = cubin_cache.compile_cached(source, case.target)
    return time.perf_counter() - start, compiled


if __name__ == "__main__":
    sys.exit(main())
