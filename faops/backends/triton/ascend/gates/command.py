"""The gates of the Ascend kernel: ``python -m faops.backends.triton.ascend.gates``; see docs/kernels/triton_ascend.md.

Exits with 1 when a kernel fails, with 2 when `import triton` does not give triton-ascend or an argument is wrong.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from faops.backends.triton.ascend.compile import compile_launch, unavailable
from faops.backends.triton.ascend.gates.cases import DTYPES, FEATURES, HEAD_DIMS, Case, defaults, spaces
from faops.backends.triton.ascend.gates.code import GateResult, check_case
from faops.errors import FaopsError

SAMPLE_HEAD_DIMS = (64, 128)
SAMPLE_DTYPES = ("float16",)
COLUMNS = ("operations", "loops", "unified", "planned", "seconds")
CASE_WIDTH = 52


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    options = _parser().parse_args(arguments)
    if reason := unavailable():
        print(f"The gates cannot be checked: {reason}", file=sys.stderr)
        return 2
    cases = cases_of(options)
    if options.write:
        return write(cases, Path(options.write))
    print("  ".join([f"{'call':<{CASE_WIDTH}}", *(f"{name:>10}" for name in COLUMNS)]))
    failed = 0
    for case in cases:
        result = check_case(case)
        print(row(result), flush=True)
        for failure in result.failures:
            print(f"    {failure}", flush=True)
        failed += bool(result.failures)
    print(f"{len(cases)} kernels checked, {failed} fail")
    return 1 if failed else 0


def write(cases: Sequence[Case], folder: Path) -> int:
    """Compile, and keep the linalg of each case in a file of that name, below a comment that names its arguments."""
    folder.mkdir(parents=True, exist_ok=True)
    failed = 0
    for case in cases:
        try:
            compiled = compile_launch(*case.launch())
        except FaopsError as error:
            print(f"{case}: {error}", file=sys.stderr)
            failed += 1
            continue
        (folder / f"{case}.mlir").write_text(f"// {' '.join(compiled.arguments)}\n{compiled.text}")
    print(f"{len(cases) - failed} of {len(cases)} kernels are in {folder}")
    return 1 if failed else 0


def row(result: GateResult) -> str:
    """One line of the table."""
    cells = [f"{result.case!s:<{CASE_WIDTH}}", *(f"{result.figures.get(name, ''):>10}" for name in COLUMNS)]
    return "  ".join([*cells, "FAILS" if result.failures else "holds"])


def cases_of(options: argparse.Namespace) -> list[Case]:
    """What the command line asks for, each case once."""
    head_dims = options.head_dim or (HEAD_DIMS if options.all else SAMPLE_HEAD_DIMS)
    dtypes = options.dtype or (DTYPES if options.all else SAMPLE_DTYPES)
    features = options.feature or list(FEATURES)
    cases = list(defaults(head_dims, dtypes, features))
    if options.all or options.space:
        cases += spaces(head_dims, dtypes, features if options.feature else ["causal", "everything"])
    return list(dict.fromkeys(cases))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m faops.backends.triton.ascend.gates", description="Checks the Triton kernel for Ascend."
    )
    again = "only this one; may be repeated"
    parser.add_argument("--head-dim", action="append", type=int, choices=HEAD_DIMS, help=again)
    parser.add_argument("--dtype", action="append", choices=DTYPES, help=again)
    parser.add_argument("--feature", action="append", choices=list(FEATURES), help=again)
    parser.add_argument("--space", action="store_true", help="every config of the tuning space, too")
    parser.add_argument("--all", action="store_true", help="all head dims, dtypes, features and configs: minutes")
    parser.add_argument("--write", metavar="FOLDER", help="do not check: keep the linalg in files")
    return parser
