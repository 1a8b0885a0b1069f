"""Everything there is to find out on an NVIDIA GPU, in one command and without supervision.

    python -m benchmarks.gpu_suite                        everything; some 25 minutes
    python -m benchmarks.gpu_suite --quick                a look in some minutes; results go to build/benchmarks
    python -m benchmarks.gpu_suite --only wrappers        one section; may be given several times
    python -m benchmarks.gpu_suite --emulate a100 --only wrappers     the same kernels on the CPU, without a GPU

Sections: "wrappers" tries each wrapper of csrc/ptx.cuh by itself and records the answers, which tests later hold the
emulator against; "correctness", "raw_decode" and "triton_correctness" hold every kernel and config of a backend to the
accuracy rule; "graph" captures CUDA graphs and launches from streams and threads; "timing" measures forwards of both
backends against PyTorch's, "triton_timing" backwards and decoding, "decode_timing" decoding over batches and lengths,
with both backends. What goes wrong is collected: nothing stops the rest. Exit status: 0
all well, 1 something was wrong, 2 there is nothing to run on.
"""

from __future__ import annotations

import argparse
import os
import secrets
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import record
from benchmarks.gpu import compiling, fixtures, report, triton_compile
from benchmarks.gpu.options import SECTIONS, Options
from benchmarks.gpu.outcome import Outcome
from benchmarks.gpu.supervisor import Section, run_side_by_side
from benchmarks.gpu.wrappers import ANSWER
from faops.architectures import KNOWN_DEVICES
from faops.backends.cuda_raw import emulator, nvrtc, targets
from faops.device import DeviceProfile, detect, known
from faops.files import write_whole

NAME = "gpu"
BUDGET = 1500.0
# Parts of the time left that the sections may take, weighed against those still to come.
WEIGHTS = {
    "wrappers": 2.0, "triton_correctness": 5.0, compiling.SECTION: 4.0, "correctness": 5.0,
    "raw_decode": 3.0, "graph": 2.0, triton_compile.SECTION: 4.0, "timing": 8.0, "triton_timing": 8.0,
    "decode_timing": 5.0,
}  # fmt: skip
# What is compiled beforehand for which sections, and what runs in as many processes as there are cores.
BEFORE = {
    compiling.SECTION: ("correctness",),
    triton_compile.SECTION: ("timing", "triton_timing", "decode_timing"),
}
SIDE_BY_SIDE = ("triton_correctness", "raw_decode", triton_compile.SECTION)
RAW = ("wrappers", "correctness", "raw_decode")  # sections that run nothing but raw CUDA kernels


def main(arguments: Sequence[str] | None = None) -> int:
    parsed = _parse(arguments)
    sections = chosen(parsed.only, parsed.emulate)
    if reason := unusable(parsed.emulate, sections):
        print(reason, file=sys.stderr)
        return 2
    profile = known(parsed.emulate) if parsed.emulate else detect("cuda")
    options = Options(parsed.quick, parsed.emulate, parsed.seed)
    result = record.header(NAME, "cpu" if parsed.emulate else "cuda", seed=parsed.seed, quick=parsed.quick)
    result["emulated"] = parsed.emulate
    result["software"] = _software(parsed.emulate)
    print(report.heading(profile, result), flush=True)
    deadline = time.time() + parsed.budget
    outcomes: list[Outcome] = []
    folder = parsed.out
    for index, section in enumerate(sections):
        print(f"\n== {section}", flush=True)
        until = time.time() + (deadline - time.time()) * _share(sections[index:])
        outcomes += _run(section, options, profile, until, parsed.jobs)
        if section == "wrappers" and not parsed.emulate:
            _record(outcomes, profile, folder)
        _write(result, outcomes, folder, parsed)  # after each: an interrupted run keeps what it has
    print(f"\n{report.table(outcomes)}")
    return int(any(outcome.bad for outcome in outcomes))


def chosen(only: Sequence[str] | None, card: str) -> list[str]:
    """The sections to run, in their order, with those that compile for others before them."""
    sections = [section for section in SECTIONS if not only or section in only]
    for first, users in () if card else BEFORE.items():
        if places := [sections.index(user) for user in users if user in sections]:
            sections.insert(min(places), first)
    return sections


def unusable(card: str, sections: Sequence[str]) -> str:
    """Why ``sections`` cannot run here, on the emulated ``card`` or else on a CUDA device; "" if they can."""
    raw = any(section in RAW for section in sections)
    if card:
        return (emulator.missing() or "") if raw else ""
    if not torch.cuda.is_available() or torch.version.hip:
        return "no NVIDIA GPU: torch.cuda sees none. --emulate a100 runs the same kernels on the CPU, slowly"
    return nvrtc.probe() if raw else ""


def _run(section: str, options: Options, profile: DeviceProfile, until: float, jobs: int) -> list[Outcome]:
    if section == compiling.SECTION:
        kernels = compiling.sources(options, profile)
        return compiling.compile_all(kernels, profile.arch, jobs, until, report.show)
    if section in SIDE_BY_SIDE:
        return run_side_by_side(section, options, until, report.show, jobs)
    return Section(section, options, until, report.show).run()


def _share(sections: Sequence[str]) -> float:
    """The part of the time left that the first of ``sections`` may take."""
    return WEIGHTS[sections[0]] / sum(WEIGHTS[section] for section in sections)


def _record(outcomes: Sequence[Outcome], profile: DeviceProfile, out: Path | None) -> None:
    """Keep what the device answered to the micro-tests."""
    answers = {outcome.name: outcome.data[ANSWER] for outcome in outcomes if ANSWER in outcome.data}
    for path in fixtures.write(out / "fixtures" if out else fixtures.FOLDER, profile, answers):
        print(f"recorded {path}")


def _write(result: dict[str, Any], outcomes: Sequence[Outcome], out: Path | None, parsed: argparse.Namespace) -> None:
    result["outcomes"] = [report.entry(outcome) for outcome in outcomes]
    result["seconds"] = round(sum(outcome.seconds for outcome in outcomes), 1)
    if out is None:
        print(record.write(result, quick=parsed.quick or bool(parsed.only) or bool(parsed.emulate)))
        return
    out.mkdir(parents=True, exist_ok=True)
    write_whole(out / f"{NAME}.json", record.compact(result) + "\n")
    print(out / f"{NAME}.json")


def _software(card: str) -> dict[str, str]:
    """Versions that decide what runs, beside torch's."""
    driver = targets.driver_cuda_version()
    return {
        "nvrtc": "" if card else nvrtc.version_text(),
        "driver_cuda": "" if driver is None else "{}.{}".format(*driver),
        "torch_cuda": torch.version.cuda or "",
        "cudnn": "" if card else str(torch.backends.cudnn.version()),  # type: ignore[no-untyped-call]
    }


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    cards = [name for name, device in KNOWN_DEVICES.items() if device.arch.startswith("sm_")]
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_suite", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer configs, shapes and samples")
    parser.add_argument("--only", action="append", choices=SECTIONS, help="a section to run (default: all)")
    parser.add_argument("--out", type=Path, help="folder for results and recorded answers")
    parser.add_argument("--budget", type=float, default=BUDGET, metavar="SECONDS",
                        help=f"begin nothing new after that time (default {BUDGET:g})")  # fmt: skip
    parser.add_argument("--seed", type=int, default=None, help="of all random inputs (default: a new one)")
    parser.add_argument(
        "--jobs",
        type=int,
        default=os.cpu_count() or 1,
        help="processes side by side",
    )
    parser.add_argument("--emulate", default="", choices=cards, metavar="CARD",
                        help=f"run on the CPU, emulated or interpreted, as one of {', '.join(cards)}")  # fmt: skip
    parsed = parser.parse_args(arguments)
    if parsed.budget <= 0 or parsed.jobs < 1:
        parser.error("--budget and --jobs must be positive")
    if parsed.seed is None:
        parsed.seed = secrets.randbelow(2**31)
    return parsed


if __name__ == "__main__":
    sys.exit(main())
