"""The gates: ``python -m faops.backends.triton.gates`` checks compiled kernels; docs/kernels/triton_gates.md tells how.

Exits with 1 when a kernel fails, with 2 when Triton is missing or an argument is wrong.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context

from faops.backends.triton import versions
from faops.backends.triton.gates.cases import ARCHS, DTYPES, FEATURES, HEAD_DIMS, KERNELS, Case, defaults, spaces
from faops.backends.triton.gates.code import GateResult, check_case

SAMPLE_ARCHS = ("sm_80", "sm_89", "sm_90", "sm_100")
SAMPLE_HEAD_DIMS = (64, 128)
SAMPLE_DTYPES = ("float16",)
SAMPLE_FEATURES = ("causal",)
COLUMNS = ("registers", "spill_bytes", "shared_bytes", "mma.sync", "wgmma.mma_async", "tcgen05.mma", "fma", "copies",
           "seconds")  # fmt: skip
CASE_WIDTH, KERNEL_WIDTH = 52, 28


def check_all(cases: Sequence[Case], processes: int, cache: str = "") -> Iterator[GateResult]:
    """The results in order, as they come. Compiles in processes of its own, which keep Triton's files in ``cache``,
    or in a folder that is deleted at the end.
    """
    with tempfile.TemporaryDirectory(prefix="faops-gates-") as folder, _pool(processes, cache or folder) as pool:
        futures = [pool.submit(check_case, case) for case in cases]
        for case, future in zip(cases, futures):
            try:
                yield from future.result()
            except BrokenProcessPool:  # takes down all that wait, so each of them gets a process of its own
                yield from _check_alone(case, cache or folder)


def _check_alone(case: Case, cache: str) -> list[GateResult]:
    try:
        with _pool(1, cache) as pool:
            return pool.submit(check_case, case).result()
    except BrokenProcessPool:
        return [GateResult(case, "", failures=("the compiler crashes",))]


def _pool(processes: int, cache: str) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(processes, get_context("spawn"), _prepare_process, (cache,))


def _prepare_process(cache: str) -> None:
    os.environ.pop("TRITON_INTERPRET", None)
    os.environ["TRITON_CACHE_DIR"] = cache


def missing() -> str:
    """What this machine lacks to check kernels; "" if nothing."""
    return "" if versions.installed() else f"Triton is not installed: {versions.INSTALL}"


def row(result: GateResult) -> str:
    """One line of the table."""
    cells = [f"{result.case!s:<{CASE_WIDTH}}", f"{result.kernel:<{KERNEL_WIDTH}}"]
    cells += [f"{result.figures.get(name, ''):>{max(len(name), 6)}}" for name in COLUMNS]
    return "  ".join([*cells, "FAILS" if result.failures else "holds"])


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    options = _parser().parse_args(arguments)
    if reason := missing():
        print(f"The gates cannot be checked: {reason}", file=sys.stderr)
        return 2
    cases = cases_of(options)
    print("  ".join([f"{'call':<{CASE_WIDTH}}", f"{'kernel':<{KERNEL_WIDTH}}", *(f"{name:>6}" for name in COLUMNS)]))
    checked = failed = 0
    for result in check_all(cases, options.jobs, options.cache):
        print(row(result), flush=True)
        for failure in result.failures:
            print(f"    {failure}", flush=True)
        checked += 1
        failed += bool(result.failures)
    print(f"{checked} kernels of {len(cases)} calls checked, {failed} fail")
    return 1 if failed else 0


def cases_of(options: argparse.Namespace) -> list[Case]:
    """What the command line asks for, each case once."""
    kernels = options.kernel or list(KERNELS)
    everything = bool(options.all)
    archs = options.arch or (ARCHS if everything else SAMPLE_ARCHS)
    head_dims = options.head_dim or (HEAD_DIMS if everything else SAMPLE_HEAD_DIMS)
    dtypes = options.dtype or (DTYPES if everything else SAMPLE_DTYPES)
    features = options.feature or (list(FEATURES) if everything else SAMPLE_FEATURES)
    cases = list(defaults(archs, kernels, head_dims, dtypes, features))
    if options.all or options.space:
        cases += spaces(archs, kernels, head_dims, dtypes)
    return list(dict.fromkeys(cases))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m faops.backends.triton.gates", description="Checks Triton kernels.")
    again = "only this one; may be repeated"
    parser.add_argument("--arch", action="append", choices=ARCHS, help=again)
    parser.add_argument("--kernel", action="append", choices=list(KERNELS), help=again)
    parser.add_argument("--head-dim", action="append", type=int, choices=HEAD_DIMS, help=again)
    parser.add_argument("--dtype", action="append", choices=DTYPES, help=again)
    parser.add_argument("--feature", action="append", choices=list(FEATURES), help=again)
    parser.add_argument("--space", action="store_true", help="every config of the tuning space, too")
    parser.add_argument("--all", action="store_true", help="everything: hours")
    parser.add_argument("--jobs", type=int, default=2, help="processes (2)")
    parser.add_argument("--cache", default="", help="folder to keep Triton's files in (none are kept)")
    return parser
