"""Recorded sweeps: how long every config of every kernel takes on this machine, for searches to be replayed on.

    python -m benchmarks.sweeps              about a quarter of an hour on an otherwise idle machine
    python -m benchmarks.sweeps --estimate   says how long it would take, and measures nothing
    python -m benchmarks.sweeps --quick      two tiny problems; the result goes to build/benchmarks
    python -m benchmarks.sweeps --modelled h200   made up from the cost model, for a device that is not at hand

One file a problem, benchmarks/results/<device>/sweeps/<problem>.jsonl; `python -m benchmarks.regret` reads them.
Made-up sweeps lie in benchmarks/results/modelled-<device>/sweeps and say so in their first line: they are there to try
searches on, and tell nothing about the device.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks import record
from faops import dispatch, registry
from faops.autotune import effort
from faops.autotune.effort import Budget
from faops.autotune.measurement.bench import DeviceBench
from faops.autotune.measurement.load import foreign_cores
from faops.autotune.measurement.remote import call_seconds
from faops.autotune.measurement.synthetic import canonical
from faops.autotune.recording.sweep import PASSES, Sweep, modelled
from faops.autotune.recording.sweep import record as record_sweep
from faops.autotune.search.candidates import Candidate, unranked
from faops.autotune.tuner.pace import timing_seconds
from faops.autotune.workloads import from_model, from_shapes
from faops.device import DeviceProfile, detect, known
from faops.problem import AttentionProblem

# Shapes of three small language models and an encoder. Features that only the blockwise kernels have make block sizes
# matter more.
SHAPES = (
    "sq=512,h=9,hk=3,d=64,dtype=float32,causal=1",  # SmolLM2 135M
    "sq=512,h=9,hk=3,d=64,dtype=float32,causal=1,softcap=1",
    "sq=512,h=12,d=64,dtype=float32,causal=1",  # GPT-2
    "op=backward,sq=512,h=12,d=64,dtype=float32,causal=1,need_lse=1",
    "sq=512,h=12,d=64,dtype=float32",  # BERT base
    "sq=1024,h=14,hk=2,d=64,dtype=float32,causal=1,sinks=1",  # Qwen 2.5 0.5B
    "sq=1024,h=14,hk=2,d=64,dtype=float32,window=255:0",
    "op=decode,sq=1,sk=2048,h=14,hk=2,d=64,dtype=float32",
)
QUICK_SHAPES = ("sq=64,h=2,d=16,dtype=float32,causal=1", "op=decode,sq=1,sk=64,h=2,d=16,dtype=float32")
MODELS = ("llama-3-8b", "qwen2.5-7b", "gemma-2-9b")  # whose sweeps are made up
QUICK = Budget(warmup=0.0, time_cap=0.002, min_samples=3)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sweeps", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="two tiny problems; the result goes to build/benchmarks")
    parser.add_argument("--estimate", action="store_true", help="only say how long it would take")
    parser.add_argument("--modelled", metavar="DEVICE", help="make sweeps up from the cost model, such as for h200")
    options = parser.parse_args(arguments)
    if options.modelled:
        make_up(options.modelled, record.QUICK_RESULTS if options.quick else record.RESULTS)
        return 0
    profile = detect("cpu")
    problems = [canonical(problem) for problem in from_shapes(QUICK_SHAPES if options.quick else SHAPES).problems]
    budget = QUICK if options.quick else effort.SWEEP
    seconds = sum(expected_seconds(problem, profile, budget) for problem in problems)
    print(
        f"{len(problems)} problems, at most about {seconds / 60:.1f} minutes on {profile.threads} threads", flush=True
    )
    if options.estimate:
        return 0
    busy = foreign_cores(effort.BUSY_SECONDS)
    if busy is not None and busy > effort.BUSY_CORES:
        print(f"other programs use {busy:.1f} cores: this is not the machine to record on", file=sys.stderr)
    folder = folder_of(profile, options.quick)
    folder.mkdir(parents=True, exist_ok=True)
    for problem in problems:
        start = time.monotonic()
        found = recorded(problem, profile, budget)
        path = folder / f"{slug(problem)}.jsonl"
        found.write(path)
        print(f"{line(found)}, {time.monotonic() - start:.0f} s: {path}", flush=True)
    return 0


def make_up(device: str, results: Path) -> None:
    """Write a made-up sweep of what each of MODELS asks of ``device``: training, and decoding from a cache."""
    folder = results / f"modelled-{device}" / "sweeps"
    folder.mkdir(parents=True, exist_ok=True)
    for name in MODELS:
        asked = from_model(name, dtype="bfloat16", prompt=4096, context=8192, phases=["training", "decode"])
        for problem in asked.problems:
            found = modelled(canonical(problem), known(device), seed=0)
            found.write(folder / f"{slug(problem)}.jsonl")
            print(f"{name}: {line(found)}", flush=True)


def recorded(problem: AttentionProblem, profile: DeviceProfile, budget: Budget) -> Sweep:
    """A sweep of ``problem`` on the CPU, with a count on the terminal while it is taken."""

    def tell(done: int, total: int, candidate: Candidate) -> None:
        if sys.stderr.isatty():
            print(f"\r{problem}: {done}/{total}", end="\r", file=sys.stderr)

    return record_sweep(problem, profile, DeviceBench(problem, torch.device("cpu"), profile), tell, budget=budget)


def expected_seconds(problem: AttentionProblem, profile: DeviceProfile, budget: Budget) -> float:
    """At most about what a sweep takes: timings end early once the median is known."""
    accepted = dispatch.runnable(registry.kernels(problem.op), problem, profile)
    configs = len(unranked(problem, profile, accepted))
    return configs * (PASSES * timing_seconds(budget, call_seconds(problem, profile)))


def folder_of(profile: DeviceProfile, quick: bool = False) -> Path:
    """Where the sweeps of a device lie."""
    return (record.QUICK_RESULTS if quick else record.RESULTS) / record.device_folder(profile) / "sweeps"


def slug(problem: AttentionProblem) -> str:
    """File name of a problem, such as ``forward-float32-b1-512x512-h9-3-d64-causal``."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", str(problem)).strip("-")


def line(found: Sweep) -> str:
    """What a sweep came to."""
    seconds = found.seconds
    if not seconds:
        return f"{found.problem}: nothing ran"
    best, worst = seconds[found.best], max(seconds.values())
    return (
        f"{found.problem}: {len(seconds)} configs from {best * 1e3:.3g} to {worst * 1e3:.3g} ms, "
        f"best {found.best}, {len(found.failures)} failed"
    )


if __name__ == "__main__":
    sys.exit(main())
