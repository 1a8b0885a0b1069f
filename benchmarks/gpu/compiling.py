"""Compiling all kernels of the correctness section beforehand, side by side: NVRTC takes seconds for each."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor

import torch

from benchmarks.gpu.attention import prepare
from benchmarks.gpu.correctness import trials
from benchmarks.gpu.options import Options
from benchmarks.gpu.outcome import Outcome
from faops.backends.cuda_raw import cubin_cache, nvrtc
from faops.backends.cuda_raw.source import Source
from faops.device import DeviceProfile
from faops.errors import FaopsError

SECTION = "compile"
CPU = torch.device("cpu")


def sources(options: Options, profile: DeviceProfile) -> list[tuple[str, Source]]:
    """(name, source) of every kernel that the correctness section runs, each once."""
    found: dict[str, tuple[str, Source]] = {}
    for trial in trials(options):
        source = prepare(trial, CPU, profile).kernel.source
        found.setdefault(source.digest(), (str(trial), source))
    return list(found.values())


def compile_all(
    kernels: Sequence[tuple[str, Source]], arch: str, jobs: int, deadline: float, show: Callable[[Outcome], None]
) -> list[Outcome]:
    """Compile ``kernels`` for ``arch`` into the cubin cache, ``jobs`` at a time; one outcome each, in their order."""
    outcomes = []
    # Processes begun afresh: one that has used CUDA must not be forked.
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        waiting = [pool.submit(compile_one, name, source, arch, deadline) for name, source in kernels]
        for one in waiting:
            outcomes.append(one.result())
            show(outcomes[-1])
    return outcomes


def compile_one(name: str, source: Source, arch: str, deadline: float) -> Outcome:
    """Compile one kernel, or say why it does not."""
    if time.time() >= deadline:
        return Outcome(SECTION, name, "not run", "the time was up")
    start = time.perf_counter()
    try:
        compiled = cubin_cache.compile_cached(source, nvrtc.target_of(arch))
    except (FaopsError, ImportError, OSError) as error:
        return Outcome(SECTION, name, "wrong", f"{type(error).__name__}: {error}"[:2000])
    figures = {
        "registers": compiled.registers,
        "spill_store_bytes": compiled.spill_store_bytes,
        "spill_load_bytes": compiled.spill_load_bytes,
        "stack_bytes": compiled.stack_bytes,
        "compile_seconds": round(compiled.seconds, 3),
        "from_cache": compiled.from_cache,
    }
    return Outcome(SECTION, name, "ok", "", round(time.perf_counter() - start, 3), figures)
