"""What the tuning cache costs a call: finding a winner among 0, 100 and 1000 entries.

    python -m benchmarks.lookup
    python -m benchmarks.lookup --quick      less repetition; the result goes to build/benchmarks

``repeated`` is a call's plan the second time, one look-up in a dict. The others are what the first call of a new
problem pays: ``exact`` with a winner of its own, ``near`` with that of a near shape, ``none`` without either, each in a
process that has not looked at the cache yet ("first") and in one that has ("known"). ``changed`` is the look-up of a
known problem when another process has just written a winner, and ``recheck`` the question, asked once a second,
whether one has.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks import record
from benchmarks.harness import Candidate, Effort, Phases, batch_of, interleave, summary
from benchmarks.tuning import empty_cache
from faops import dispatch, registry
from faops._version import __version__
from faops.autotune import cache
from faops.autotune.cache import TuningCache, environment
from faops.autotune.cache.entry import Entry, Timing, problem_dict
from faops.device import DeviceProfile, detect
from faops.problem import AttentionProblem
from faops.registry import Config, Kernel

NAME = "lookup"
COUNTS = (0, 100, 1000)
TIMINGS = 32  # of an entry, as many as a search takes
KERNEL = "torch.blockwise_forward"
PROBLEM = AttentionProblem(dtype="float32", seqlen_q=1024, seqlen_k=1024, heads_q=8, heads_kv=8)
NEAR = replace(PROBLEM, batch=2)  # has no entry of its own
LONELY = replace(PROBLEM, batch=1 << 10, seqlen_k=1 << 20)  # has no near one either
CALLS = 200  # of one sample, where a call is short
LONG_AGO = 100.0  # seconds: a directory written then is not looked at again


def problems(count: int) -> list[AttentionProblem]:
    """``count`` problems of different keys, PROBLEM among them."""
    dims = (64, 32, 96, 128, 192)
    lengths = [1 << power for power in range(4, 14)]
    found = [
        replace(PROBLEM, head_dim=dim, head_dim_v=dim, heads_q=heads, heads_kv=heads, seqlen_q=length, seqlen_k=length)
        for dim in dims
        for heads in range(1, 21)
        for length in lengths
    ]
    others = [problem for problem in found if problem.key() != PROBLEM.key()]
    return [PROBLEM, *others][:count]


def fill(count: int, kernel: Kernel, device: DeviceProfile) -> Path | None:
    """Store ``count`` entries in the cache that the settings name; their directory, None for none."""
    stored = TuningCache()
    for problem in problems(count):
        stored.store(device, made_up(problem, kernel, device))
    return stored.directory(device) / "entries" if count else None


def made_up(problem: AttentionProblem, kernel: Kernel, device: DeviceProfile) -> Entry:
    """An entry of the size of a real one."""
    default = kernel.default_config(problem, device)
    winner = Config({**default, "block_q": 32})
    timings = (Timing(kernel.id, winner, 0.9e-3, 1e-3, 1.1e-3, 1e-5, 50, False),) * TIMINGS
    return Entry(
        key=problem.key(), problem=problem_dict(problem), device=device.identity, environment=environment.versions(),
        kernel=kernel.id, source_hash=kernel.source_hash(), config=winner, p50=1e-3, default_kernel=kernel.id,
        default_config=default, default_p50=2e-3, speedup=2.0, timings=timings, dropped=(), measurements=TIMINGS,
        faops_version=__version__, date="2026-01-01",
    )  # fmt: skip


def measure(count: int, effort: Effort) -> dict[str, Any]:
    """Seconds a look-up of each kind among ``count`` entries."""
    device, kernel = detect("cpu"), registry.get(KERNEL)
    assert kernel is not None
    with empty_cache():
        directory = fill(count, kernel, device)
        samples = interleave(dict(_candidates(directory, kernel, device)), effort)
    return {"entries": count, "calls": {name: summary(one["call"]) for name, one in samples.items()}}


def _candidates(directory: Path | None, kernel: Kernel, device: DeviceProfile) -> Iterator[tuple[str, Candidate]]:
    sources = {"exact": PROBLEM, "near": NEAR, "none": LONELY} if directory else {"none": PROBLEM}
    for name, problem in sources.items():
        expected = {"exact": "tuned", "near": "nearest"}.get(name)
        look = _look(problem, kernel, device, expected)
        yield f"{name}, first", _settled(directory, _once(look, before=cache._indices.clear))
        yield f"{name}, known", _settled(directory, _repeated(look))
    if directory:
        look = _look(PROBLEM, kernel, device, "tuned")
        yield "changed", _once(look, before=lambda: (look(), os.utime(directory)))
    yield "recheck", _settled(directory, batch_of(cache.stamp, CALLS))
    yield "repeated", batch_of(lambda: dispatch.plan(PROBLEM, device), CALLS)


def _look(
    problem: AttentionProblem, kernel: Kernel, device: DeviceProfile, expected: str | None
) -> Callable[[], object]:
    def look() -> object:
        winner = cache.lookup(problem, device, [kernel])
        assert (winner.source if winner else None) == expected
        return winner

    return look


def _once(call: Callable[[], object], before: Callable[[], object]) -> Candidate:
    """One call a sample, after something that is not timed."""

    def run() -> Phases:
        before()
        start = time.perf_counter()
        call()
        return {"call": time.perf_counter() - start}

    return run


def _repeated(call: Callable[[], object]) -> Candidate:
    """Many calls a sample, after one that is not timed."""
    batch = batch_of(call, CALLS)

    def run() -> Phases:
        call()
        return batch()

    return run


def _settled(directory: Path | None, candidate: Candidate) -> Candidate:
    """``candidate`` when nobody has written to the cache for a while."""

    def run() -> Phases:
        if directory:
            long_ago = time.time() - LONG_AGO
            os.utime(directory, (long_ago, long_ago))
        return candidate()

    return run


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.lookup", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="less repetition; the result goes to build/benchmarks")
    options = parser.parse_args(arguments)
    effort = (
        Effort(0.3, max_rounds=20, warmup_rounds=2) if options.quick else Effort(5.0, max_rounds=300, warmup_rounds=10)
    )
    result = record.header(NAME, kernel=KERNEL, timings_of_an_entry=TIMINGS)
    result["cases"] = []
    for count in COUNTS:
        found = measure(count, effort)
        result["cases"].append(found)
        print(f"{count} entries: microseconds, median (shortest)")
        for name, one in found["calls"].items():
            print(f"  {name:14}{one['median'] * 1e6:>10.1f} ({one['min'] * 1e6:.1f})", flush=True)
    print(f"\n{record.write(result, options.quick)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
