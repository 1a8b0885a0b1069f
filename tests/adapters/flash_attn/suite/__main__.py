"""The command line: run files of flash-attn's suite, each in a pytest of its own, and print what became of them."""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.adapters.flash_attn.suite.plugin import SETTING, Job

FILES = ("tests/test_flash_attn.py", "tests/test_rotary.py", "hopper/test_flash_attn.py")
# How a backend is asked for: the emulator and the interpreter run GPU kernels on CPU tensors.
BACKENDS = {
    "torch": {},
    "cuda_raw": {"FAOPS_EMULATE": "1"},
    "triton": {"TRITON_INTERPRET": "1"},
}  # fmt: skip
ROOT = Path(__file__).parents[4]


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    seed = random.randrange(2**31) if options.seed is None else options.seed
    print(f"flash-attn's tests in {options.checkout.name}, through {options.backend}, seed {seed}", flush=True)
    files = [file for file in options.file or FILES if (options.checkout / file).exists()]
    if not files:
        print(f"none of {', '.join(options.file or FILES)} in {options.checkout}")
        return 2
    results = {}
    for file in files:
        results[file] = run(options, file, seed, -(-options.sample // len(files)))
    print(table(results))
    return int(any(found is None or found["failures"] for found in results.values()))


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.adapters.flash_attn.suite", description=__doc__)
    parser.add_argument("checkout", type=Path, help="a checkout of Dao-AILab/flash-attention")
    parser.add_argument("--sample", type=int, default=300, help="how many tests to draw, in all (300)")
    parser.add_argument("--seed", type=int, help="of the sample; printed, and random without this option")
    parser.add_argument("--backend", choices=BACKENDS, default="torch", help="whose kernels compute (torch)")
    parser.add_argument(
        "--most-scores", type=int, default=2**18, help="draw no test with more query × key pairs a head (262144)"
    )
    parser.add_argument("--file", action="append", help=f"a file of the checkout, one of {', '.join(FILES)}; all")
    parser.add_argument("--pytest", nargs=argparse.REMAINDER, default=[], help="everything behind it goes to pytest")
    parser.add_argument("--only", default="", help="only test functions with this in their name")
    return parser.parse_args(arguments)


def run(options: argparse.Namespace, file: str, seed: int, count: int) -> dict[str, Any] | None:
    """What became of a sample of ``count`` from one file; None if it could not be run."""
    path = (options.checkout / file).resolve()
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "report.json"
        backend = options.backend
        job = Job(file, str(path), count, seed, options.most_scores, options.only, backend, str(report))
        environment = {
            **os.environ, **BACKENDS[backend], "FAOPS_BACKEND": backend, SETTING: json.dumps(asdict(job)),
            "FAOPS_CACHE_DIR": scratch, "PYTHONDONTWRITEBYTECODE": "1",
        }  # fmt: skip
        ini = Path(scratch) / "pytest.ini"
        ini.write_text("[pytest]\n")
        command = [
            sys.executable, "-m", "pytest", "-q", "--tb=short", "--no-header", "--show-capture=no",
            "-p", "no:cacheprovider", "-p", "tests.adapters.flash_attn.suite.plugin",
            "-c", str(ini), "--rootdir", str(path.parent), "--import-mode=importlib", *options.pytest, str(path),
        ]  # fmt: skip
        ended = subprocess.run(command, env=environment, cwd=ROOT, check=False)
        complete = ended.returncode in (0, 1) and report.exists()
        found: dict[str, Any] | None = json.loads(report.read_text()) if complete else None
    return found


def table(results: dict[str, dict[str, Any] | None]) -> str:
    """One line a test function, then why tests were skipped and left out."""
    rows = [("", "of", "small", "drawn", "passed", "failed", "skipped")]
    skipped: Counter[str] = Counter()
    left_out = []
    totals = [0] * 6
    for file, found in results.items():
        rows.append((file if found else f"{file} could not be run", *[""] * 6))
        for name, counts in (found or {"functions": {}})["functions"].items():
            numbers = in_order(counts)
            totals = [total + number for total, number in zip(totals, numbers)]
            rows.append((f"  {name}", *map(str, numbers)))
            skipped.update(counts["skipped"])
        left_out += [
            f"left out of {file}: {name}, {why}" for name, why in (found or {"left_out": {}})["left_out"].items()
        ]
    rows.append(("all", *map(str, totals)))
    width = max(len(row[0]) for row in rows)
    lines = [f"{row[0]:{width}}" + "".join(f"{cell:>8}" for cell in row[1:]) for row in rows]
    lines += [f"{many} skipped: {reason}" for reason, many in skipped.items()]
    return "\n".join(line.rstrip() for line in lines + left_out)


def in_order(counts: dict[str, Any]) -> list[int]:
    """A test function's numbers as the table has them."""
    skipped = sum(counts["skipped"].values())
    drawn = counts["passed"] + counts["failed"] + skipped
    return [counts["total"], counts["small"], drawn, counts["passed"], counts["failed"], skipped]


if __name__ == "__main__":
    sys.exit(main())
