"""The gates: ``python -m faops.backends.cuda_raw.gates`` checks compiled kernels; docs/kernels/gates.md explains them.

Exits with 1 when a kernel fails, with 2 when something that checking takes is missing or an argument is wrong.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from multiprocessing import get_context
from typing import NamedTuple

from faops.backends.cuda_raw import emulator, nvrtc
from faops.backends.cuda_raw.gates import sass
from faops.backends.cuda_raw.gates.cases import FEATURES, HEAD_DIMS, TARGETS, Case, defaults, everything
from faops.backends.cuda_raw.gates.code import check_code
from faops.backends.cuda_raw.gates.counts import check_counts
from faops.backends.cuda_raw.gates.decode_cases import PAGES, DecodeCase, decode_defaults, decode_everything
from faops.backends.cuda_raw.gates.decode_code import check_decode_code
from faops.backends.cuda_raw.gates.decode_counts import check_decode_counts
from faops.backends.cuda_raw.gates.result import GateResult
from faops.backends.cuda_raw.targets import Target
from faops.errors import FaopsError

SAMPLE_HEAD_DIMS = (64, 128)
SAMPLE_FEATURES = ("causal", *PAGES)
COLUMNS = ("registers", "spill_bytes", "shared_bytes", "blocks", "products", "fragments", "copies", "wavefronts",
           "conflicts", "loaded", "stored")  # fmt: skip
KERNEL_WIDTH = 56

AnyCase = Case | DecodeCase


class Job(NamedTuple):
    """A kernel to check, and whether the emulator runs it too."""

    case: AnyCase
    counted: bool


def jobs_of(cases: Iterable[AnyCase], counts: bool = True) -> Iterator[Job]:
    """Each case once. The emulator runs a kernel for the first target that has it: it does the same for all others."""
    seen, counted = set[AnyCase](), set[AnyCase]()
    for case in cases:
        if case in seen:
            continue
        seen.add(case)
        same = replace(case, target=Target(f"sm_{case.family.arch}"))
        yield Job(case, counts and same not in counted)
        counted.add(same)


def check(job: Job) -> GateResult:
    """All gates of one kernel. What keeps a kernel from being compiled or run is a failure of its gates."""
    code = _guarded(_code, job.case)
    if not job.counted:
        return code
    counts = _guarded(_counts, job.case)
    return GateResult(job.case, {**code.figures, **counts.figures}, (*code.failures, *counts.failures))


def _code(case: AnyCase) -> GateResult:
    return check_code(case) if isinstance(case, Case) else check_decode_code(case)


def _counts(case: AnyCase) -> GateResult:
    return check_counts(case) if isinstance(case, Case) else check_decode_counts(case)


def _guarded(gate: Callable[[AnyCase], GateResult], case: AnyCase) -> GateResult:
    try:
        return gate(case)
    except FaopsError as error:
        return GateResult(case, {}, (str(error),))


def check_all(jobs: Sequence[Job], processes: int) -> Iterator[GateResult]:
    """The results in order, as they come."""
    if processes <= 1 or len(jobs) <= 1:
        yield from map(check, jobs)
        return
    with get_context("spawn").Pool(processes) as pool:
        yield from pool.imap(check, jobs, chunksize=4)


def missing(counts: bool) -> str:
    """What this machine lacks to check kernels; "" if nothing."""
    return nvrtc.probe() or sass.missing() or (emulator.missing() or "" if counts else "")


def row(result: GateResult) -> str:
    """One line of the table."""
    cells = [f"{result.case!s:<{KERNEL_WIDTH}}"]
    for name in COLUMNS:
        value = result.figures.get(name)
        text = "" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)
        cells.append(f"{text:>{max(len(name), 6)}}")
    return "  ".join([*cells, "FAILS" if result.failures else "holds"])


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    options = _parser().parse_args(arguments)
    if reason := missing(options.counts):
        print(f"The gates cannot be checked: {reason}", file=sys.stderr)
        return 2
    jobs = list(jobs_of(_chosen(options), options.counts))
    print("  ".join([f"{'kernel':<{KERNEL_WIDTH}}", *(f"{name:>6}" for name in COLUMNS)]))
    failed = 0
    for result in check_all(jobs, options.jobs):
        print(row(result), flush=True)
        for failure in result.failures:
            print(f"    {failure}", flush=True)
        failed += bool(result.failures)
    print(f"{len(jobs)} kernels checked, {failed} fail")
    return 1 if failed else 0


def _chosen(options: argparse.Namespace) -> Iterator[AnyCase]:
    targets = [Target(name) for name in options.target or TARGETS]
    if options.all:
        head_dims = options.head_dim or HEAD_DIMS
        yield from everything(targets, head_dims)
        yield from decode_everything(targets, head_dims)
        return
    head_dims = options.head_dim or SAMPLE_HEAD_DIMS
    features = options.feature or SAMPLE_FEATURES
    yield from defaults(targets, head_dims, [feature for feature in features if feature in FEATURES])
    yield from decode_defaults(targets, head_dims, [feature for feature in features if feature in PAGES])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m faops.backends.cuda_raw.gates", description="Checks CUDA kernels.")
    parser.add_argument("--target", action="append", choices=TARGETS, help="only this one; may be repeated")
    parser.add_argument(
        "--head-dim", action="append", type=int, choices=HEAD_DIMS, help="only this one; may be repeated"
    )
    parser.add_argument(
        "--feature", action="append", choices=(*FEATURES, *PAGES), help="of the default configs; may be repeated"
    )
    parser.add_argument("--all", action="store_true", help="every feature, and every config of the tuning space: hours")
    parser.add_argument("--no-counts", dest="counts", action="store_false", help="read the machine code only")
    parser.add_argument("--jobs", type=int, default=2, help="processes (2)")
    return parser
