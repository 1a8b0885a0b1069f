"""Host time of launching a Triton kernel: Triton's own way, and the backend's.

    python -m benchmarks.triton_launch
    python -m benchmarks.triton_launch --quick      less repetition; the result goes to build/benchmarks

``triton`` is ``kernel[grid](*arguments)``, which looks at every argument of every call. ``launch`` is
faops.backends.triton.launch with its key ready. ``call`` is the whole of the registry's kernel: allocating the results,
making the key and launching every kernel of the call.

Without a GPU the calls run on a stub of the CUDA driver: benchmarks.driver_stub says what is stubbed. What is measured
then is Triton's true Python and C code and ours, and nothing of the driver: on a GPU each launch costs both of them the
same time more.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import driver_stub, record
from benchmarks.harness import Effort, batch_of, interleave, summary
from benchmarks.host_time import one_thread
from faops.autotune.measurement.synthetic import inputs_for
from faops.backends.triton import launch, versions
from faops.backends.triton.forward import TritonForward, launches
from faops.backends.triton.launch import kernel_function
from faops.device import detect, known
from faops.inputs import AttentionInputs
from faops.problem import AttentionProblem, Band

NAME = "triton_launch"
KERNEL = "forward.attention_forward"
STUBBED_CARD = "h100"
BATCH_SECONDS = 1e-3
CALLS = ("triton", "launch", "call")

PLAIN = AttentionProblem(
    batch=2, seqlen_q=256, seqlen_k=256, heads_q=4, heads_kv=2, head_dim=64, head_dim_v=64, need_lse=True
)
PROBLEMS = {
    "plain": PLAIN,
    "causal": replace(PLAIN, band=Band(right=0)),
    "causal, ALiBi, bias and dropout": replace(PLAIN, band=Band(right=0), alibi=True, bias="bhmn", dropout=True),
    "causal, varlen": replace(PLAIN, band=Band(right=0), layout="varlen"),
}


def calls(problem: AttentionProblem, stubbed: bool) -> dict[str, Callable[[], Any]]:
    """What is compared, warmed up."""
    inputs = inputs_for(problem, "cpu" if stubbed else "cuda")
    assert isinstance(inputs, AttentionInputs)
    if stubbed:
        inputs.q = driver_stub.pretended(inputs.q)
    kernel, config = TritonForward(), _config(problem, stubbed)
    ((made, tensors),) = launches(inputs, config)
    function, arguments, options = made.function(), made.arguments(tensors), made.compiler_options()
    # Triton's own way gets tensors that say nothing about where they are: it does not ask.
    plain = tuple(each.as_subclass(Tensor) if isinstance(each, Tensor) else each for each in arguments)

    def triton() -> None:
        function[made.grid](*plain, **options)

    found = {
        "triton": triton,
        "launch": lambda: launch.launch("benchmark", tensors, lambda: made),
        "call": lambda: kernel.launch(inputs, config),
    }
    launch._ready.clear()
    for call in found.values():
        call()
    return found


def _config(problem: AttentionProblem, stubbed: bool) -> Any:
    return TritonForward().default_config(problem, known(STUBBED_CARD) if stubbed else detect("cuda"))


def measure(name: str, problem: AttentionProblem, stubbed: bool, effort: Effort) -> dict[str, Any]:
    """Seconds a call of each."""
    rounds = {}
    for call, run in calls(problem, stubbed).items():
        once = batch_of(run, 20)
        estimate = min(once()["call"] for _ in range(5))
        rounds[call] = batch_of(run, max(1, round(BATCH_SECONDS / estimate)))
        if not stubbed:
            torch.cuda.synchronize()
    samples = interleave(rounds, effort)
    return {
        "case": {"name": name, "arguments": len(kernel_function(KERNEL).arg_names)},
        "calls": {call: summary(one["call"]) for call, one in samples.items()},
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.triton_launch", description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument("--quick", action="store_true", help="less repetition; the result goes to build/benchmarks")
    options = parser.parse_args(arguments)
    stubbed = not torch.cuda.is_available()
    if reason := _missing(stubbed):
        print(reason, file=sys.stderr)
        return 2
    effort = (
        Effort(0.5, max_rounds=50, warmup_rounds=5) if options.quick else Effort(5.0, max_rounds=300, warmup_rounds=20)
    )
    result = record.header(
        NAME,
        "cpu" if stubbed else "cuda",
        driver=f"a stub: {driver_stub.STUBBED}" if stubbed else "CUDA",
        batch_seconds=BATCH_SECONDS,
    )
    result["versions"]["triton"] = ".".join(map(str, versions.installed() or ()))
    with tempfile.TemporaryDirectory() as folder, one_thread():
        if stubbed:
            driver_stub.install(Path(folder))
        print(f"microseconds, shortest batch (median)\n{'':40}" + "".join(f"{name:>18}" for name in CALLS))
        result["cases"] = []
        for name, problem in PROBLEMS.items():
            found = measure(name, problem, stubbed, effort)
            result["cases"].append(found)
            print(_line(found), flush=True)
    print(f"\n{record.write(result, options.quick)}")
    return 0


def _missing(stubbed: bool) -> str:
    if versions.installed() is None:
        return f"Triton is not installed: {versions.INSTALL}"
    if versions.interpreting():
        return "TRITON_INTERPRET is set: kernels would be interpreted"
    return driver_stub.missing() if stubbed else ""


def _line(found: dict[str, Any]) -> str:
    name = f"{found['case']['name']} ({found['case']['arguments']} arguments)"
    times = (found["calls"][call] for call in CALLS)
    return f"{name:40}" + "".join(f"{one['min'] * 1e6:>9.1f} ({one['median'] * 1e6:.1f})".rjust(18) for one in times)


if __name__ == "__main__":
    sys.exit(main())
