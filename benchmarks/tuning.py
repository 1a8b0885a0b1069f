"""What tuning brings: calls of faops.attention() with the default plan against calls with the tuned winner.

    python -m benchmarks.tuning
    python -m benchmarks.tuning --quick      two small problems; the result goes to build/benchmarks

Every problem is tuned into an empty cache of its own. The result holds `faops.explain` from before and after, what
tuning again does, and the times of the same public call with tuning switched off and on, in interleaved rounds.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor

import faops
from benchmarks import record
from benchmarks.harness import Candidate, Effort, Phases, batch_of, interleave, speedup, summary
from faops import dispatch
from faops.autotune.measurement.synthetic import inputs_for
from faops.autotune.tuner import tune
from faops.autotune.workloads import from_model, from_shapes
from faops.inputs import AttentionInputs
from faops.problem import AttentionProblem

NAME = "tuning"
MODEL = "smollm2-135m"
# Beside the model's own problems: features that only the blockwise kernels have, so that block sizes matter.
SHAPES = (
    "sq=1024,h=9,hk=3,d=64,dtype=float32,causal=1,softcap=1",
    "sq=1024,h=9,hk=3,d=64,dtype=float32,causal=1,sinks=1",
)
QUICK_SHAPES = ("sq=128,h=9,hk=3,d=64,dtype=float32,causal=1", "sq=1,sk=256,h=9,hk=3,d=64,dtype=float32")
BATCH_SECONDS = 2e-3  # of one batch of calls


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tuning", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="two small problems; the result goes to build/benchmarks")
    options = parser.parse_args(arguments)
    problems = from_shapes(QUICK_SHAPES).problems
    if not options.quick:
        problems = [*from_model(MODEL).problems, *from_shapes(SHAPES).problems]
    effort = Effort(1.0, max_rounds=30) if options.quick else Effort(6.0, max_rounds=100)
    result = record.header(NAME, model=None if options.quick else MODEL)
    result["cases"] = []
    for problem in problems:
        found = measure(problem, effort)
        result["cases"].append(found)
        print(_line(found), flush=True)
    print(f"\n{record.write(result, options.quick)}")
    return 0


def measure(problem: AttentionProblem, effort: Effort) -> dict[str, Any]:
    """Tune one forward problem and time the public call before and after."""
    with empty_cache():
        before = faops.explain(problem)
        start = time.perf_counter()
        tuned = tune([problem])[0]
        seconds = time.perf_counter() - start
        after = faops.explain(problem)
        again = tune([problem])[0]
        call = public_call(problem)
        samples = interleave({"default": switched(call, tuned=False), "tuned": switched(call, tuned=True)}, effort)
    return {
        "case": str(problem),
        "key": problem.key(),
        "before": {"plan": before.as_dict()["plan"], "explain": str(before)},
        "after": {"plan": after.as_dict()["plan"], "explain": str(after)},
        "tuning": {"status": tuned.status, "measurements": tuned.measurements, "seconds": round(seconds, 3),
                   "message": tuned.message},
        "again": {"status": again.status, "measurements": again.measurements},
        "calls": {name: summary(one["call"]) for name, one in samples.items()},
        "speedup": speedup(samples["tuned"]["call"], samples["default"]["call"]),
    }  # fmt: skip


@contextmanager
def empty_cache() -> Iterator[None]:
    """A tuning cache of its own that vanishes afterwards; tuning is on inside."""
    names = ("FAOPS_CACHE_DIR", "FAOPS_TUNING")
    kept = {name: os.environ.get(name) for name in names}
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"FAOPS_CACHE_DIR": folder, "FAOPS_TUNING": "1"}
        dispatch.forget()
        try:
            yield
        finally:
            for name, value in kept.items():
                os.environ.pop(name, None)
                if value is not None:
                    os.environ[name] = value
            dispatch.forget()


def public_call(problem: AttentionProblem) -> Callable[[], Tensor]:
    """faops.attention() on random tensors that ask ``problem``, a dense forward without a mask or bias."""
    inputs = inputs_for(problem, "cpu")
    assert isinstance(inputs, AttentionInputs) and problem.layout == "dense" and not problem.mask and not problem.bias
    q, k, v = inputs.q, inputs.k, inputs.v
    options: dict[str, Any] = {
        "window": (inputs.window_left, inputs.window_right),
        "softcap": inputs.softcap,
        "alibi_slopes": inputs.alibi_slopes,
        "sinks": inputs.sinks,
        "return_lse": problem.need_lse,
    }
    return lambda: faops.attention(q, k, v, **options)


def switched(call: Callable[[], Any], tuned: bool) -> Candidate:
    """A candidate that makes its calls with tuned winners, or without. Planning anew is not timed."""

    def switch() -> None:
        os.environ["FAOPS_TUNING"] = str(int(tuned))
        dispatch.forget()
        call()

    switch()
    seconds = batch_of(call, 1)()["call"]
    batch = batch_of(call, max(1, round(BATCH_SECONDS / seconds)))

    def run() -> Phases:
        switch()
        return batch()

    return run


def _line(found: dict[str, Any]) -> str:
    before, after = found["before"]["plan"], found["after"]["plan"]
    times = " -> ".join(f"{found['calls'][name]['median'] * 1e6:.0f}" for name in ("default", "tuned"))
    return (
        f"{found['case']}\n  {before['kernel']} {before['config']} -> {after['kernel']} {after['config']} "
        f"({after['source']}), {times} µs: {found['speedup']['of_pairs']:.2f}x; "
        f"tuned in {found['tuning']['seconds']:.1f} s with {found['tuning']['measurements']} timings, "
        f"again with {found['again']['measurements']}"
    )


if __name__ == "__main__":
    sys.exit(main())
