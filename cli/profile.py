"""`faops profile`: run a problem or a program under the device's profiler, and say whether attention was fused."""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .devices import torch_device
from .output import json_option, print_json, print_line, print_pairs, print_table, seconds
from .tune.workload import problems_of

if TYPE_CHECKING:
    import torch

    from faops.profile import Report, Timeline

STEPS, WARMUP = 3, 1  # of a problem; a program runs once
WITH_MODEL_OPTIONS = ("--model", "--hf-config")
WITH_SCRIPT = ("--device", "--output")
RECORDED = ("--trace", "--kernel-details")
NOT_FUSED = 1

VERDICTS = {
    "fused": "fused",
    "tiled": "not one kernel, but tiled: block by block, and never all scores at once",
    "not fused": "NOT FUSED: all scores were written to memory",
    "no attention": "none was seen",
}


@click.command(
    "profile",
    short_help="Run a problem or a program, and see whether attention was fused.",
    context_settings={"allow_interspersed_args": False},  # what follows the script is the script's
)
@click.option("--shape", "shapes", multiple=True, metavar="S", help="Run one problem; may be repeated.")
@click.option("--model", metavar="NAME", help="Run the problems of a known model.")
@click.option("--hf-config", metavar="PATH", help="Run those of a model by its config.json.")
@click.option("--plan", metavar="FILE", help="Run the problems of a YAML file.")
@click.option("--trace", metavar="FILE", type=click.Path(path_type=Path), help="Read a chrome trace of torch.profiler.")
@click.option(
    "--kernel-details", metavar="FILE", type=click.Path(path_type=Path),
    help="Read the kernel_details.csv of torch_npu's profiler, or the folder that it wrote.",
)  # fmt: skip
@click.option("--dtype", help="dtype of the model's problems.")
@click.option("--batch", type=click.IntRange(min=1), help="Batch size of the model's problems.")
@click.option("--prompt", type=click.IntRange(min=1), multiple=True, help="Prompt length; may be repeated.")
@click.option("--context", type=click.IntRange(min=1), multiple=True, help="Keys while generating; may be repeated.")
@click.option("--training", is_flag=True, help="Run training of the model too.")
@click.option("--backend", default="", help="Force a backend, or a kernel by its id, for the problems.")
@click.option("--device", help="The device of this machine to run on (default: cuda, npu or cpu).")
@click.option(
    "--steps", type=click.IntRange(min=1), help=f"Calls of each problem that are recorded (default: {STEPS})."
)
@click.option("--warmup", type=click.IntRange(min=0), help=f"Calls before those (default: {WARMUP}).")
@click.option("--output", metavar="FOLDER", type=click.Path(path_type=Path), help="Keep what the profiler wrote.")
@click.option("--strict", is_flag=True, help="Exit with 1 for tiled attention, transposes and masks made anew, too.")
@json_option
@click.argument("script", required=False, metavar="[SCRIPT")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="ARGS...]")
def command(
    shapes: tuple[str, ...],
    model: str | None,
    hf_config: str | None,
    plan: str | None,
    trace: Path | None,
    kernel_details: Path | None,
    backend: str,
    device: str | None,
    steps: int | None,
    warmup: int | None,
    output: Path | None,
    strict: bool,
    as_json: bool,
    script: str | None,
    arguments: tuple[str, ...],
    **model_options: Any,
) -> None:
    """Run a problem or a Python script under the profiler of the device, and say whether attention was fused.

    It lists the kernels of attention that ran, sequences of MatMul, Softmax and MatMul in their place, transposed
    copies of their tensors, masks that were made anew for every call, and the bytes that were moved. Exits with 0
    where attention was fused or tiled, and with 1 where it was not fused or where none was seen.

    \b
    Examples:
      faops profile --shape sq=1024,h=8,d=64,causal=1
      faops profile --model smollm2-135m --device cpu --strict
      faops profile train.py --epochs 1
      faops profile --trace trace.json
      faops profile --kernel-details kernel_details.csv --json
    """
    given = {
        "--shape": list(shapes), "--model": model, "--hf-config": hf_config, "--plan": plan, "--trace": trace,
        "--kernel-details": kernel_details, "SCRIPT": script,
    }  # fmt: skip
    source, value = _only(given)
    options = {name: given for name, given in model_options.items() if given}
    others = {"--backend": backend, "--device": device, "--steps": steps, "--warmup": warmup, "--output": output}
    _check(source, options, others)
    if source in RECORDED:
        found = [(str(value), _read(source, value))]
    elif source == "SCRIPT":
        found = [_run_script(Path(value), arguments, torch_device(device), output, as_json)]
    else:
        counts = (STEPS if steps is None else steps, WARMUP if warmup is None else warmup)
        found = _run_problems(source, value, options, torch_device(device), backend, counts, output)
    _report(found, strict, as_json)


def _only(given: dict[str, Any]) -> tuple[str, Any]:
    """The one thing to look at. Raises UsageError for none and for several."""
    named = {name: value for name, value in given.items() if value}
    if len(named) != 1:
        words = f"not {' and '.join(named)}" if named else "none was given"
        raise click.UsageError(f"name what to profile by one of {', '.join(given)}; {words}")
    return next(iter(named.items()))


def _check(source: str, model_options: dict[str, Any], others: dict[str, Any]) -> None:
    """Refuse options that mean nothing beside the source. Raises UsageError."""
    if model_options and source not in WITH_MODEL_OPTIONS:
        raise click.UsageError(f"--{next(iter(model_options))} goes with {' and '.join(WITH_MODEL_OPTIONS)}")
    for name, value in others.items():
        pointless = source in RECORDED or (source == "SCRIPT" and name not in WITH_SCRIPT)
        if pointless and value not in (None, ""):
            raise click.UsageError(f"{name} does not go with {source}")


# --- making and reading recordings ------------------------------------------------------------------------------------


def _read(source: str, path: Path) -> Timeline:
    from faops.profile import read
    from faops.profile.events import TraceError

    if not path.exists():
        raise TraceError(f"{path}: there is no such file")
    if source == "--kernel-details" and path.is_file() and path.suffix != ".csv":
        raise TraceError(f"{path}: a .csv file is expected, or the folder that torch_npu's profiler wrote")
    if source == "--trace" and (path.is_dir() or path.suffix == ".csv"):
        raise TraceError(f"{path}: a chrome trace is expected (.json or .json.gz); for .csv use --kernel-details")
    return read(path)


def _run_script(
    path: Path, arguments: tuple[str, ...], where: torch.device, output: Path | None, as_json: bool
) -> tuple[str, Timeline]:
    from faops.profile import programs, record

    program = programs.of_script(path, arguments)
    with _folder(output) as folder, contextlib.redirect_stdout(sys.stderr if as_json else sys.stdout):
        return str(path), record(program, where, folder)


def _run_problems(
    source: str, value: Any, options: dict[str, Any], where: torch.device, backend: str, counts: tuple[int, int],
    output: Path | None,
) -> list[tuple[str, Timeline]]:  # fmt: skip
    from faops.profile import programs, record

    problems = problems_of(source, value, options, where)
    found = []
    with _folder(output) as folder:
        for number, problem in enumerate(problems):
            own = folder / str(number) if len(problems) > 1 else folder
            found.append((str(problem), record(programs.of_problem(problem, where, backend), where, own, *counts)))
    return found


@contextlib.contextmanager
def _folder(output: Path | None) -> Iterator[Path]:
    """The folder for what the profiler writes: the one asked for, or one that is gone afterwards."""
    if output is not None:
        yield output
        return
    with tempfile.TemporaryDirectory(prefix="faops_profile_") as name:
        yield Path(name)


# --- saying what they show --------------------------------------------------------------------------------------------


def _report(found: list[tuple[str, Timeline]], strict: bool, as_json: bool) -> None:
    """Print what each recording shows, and exit with 1 where one of them did not pass."""
    from faops.profile import analyse

    reports = [(name, analyse(timeline)) for name, timeline in found]
    passed = all(report.passed(strict) for _, report in reports)
    if as_json:
        results = [{"what": name, **report.as_dict(), "passed": report.passed(strict)} for name, report in reports]
        print_json("profile", passed=passed, strict=strict, results=results)
    else:
        for number, (name, report) in enumerate(reports):
            if number:
                print_line()
            _print(name, report)
    if not passed:
        sys.exit(NOT_FUSED)


def _print(name: str, report: Report) -> None:
    pairs = [
        ("profiled", name),
        ("device", report.device),
        ("attention", VERDICTS[report.verdict]),
        ("not fused", _patterns(report)),
        ("transposes", _copies(report.transposes, report.shapes_known)),
        ("masks", _masks(report)),
        ("bytes", _bytes(report)),
    ]
    if report.repeats.count:
        pairs.insert(-2, ("repeated", f"key/value heads, {_copies(report.repeats, report.shapes_known)}"))
    print_pairs(pairs)
    if report.rows:
        print_line()
        print_table(
            ("attention by", "what", "calls", "time"),
            [
                ("\n".join((row.name, *_kernels(row.kernels))), row.label, row.calls, seconds(row.seconds))
                for row in report.rows
            ],
        )


def _kernels(kernels: dict[str, int]) -> list[str]:
    return [f"  {count} x {name[:80]}" for name, count in kernels.items()]


def _patterns(report: Report) -> str:
    if not report.patterns:
        return "no MatMul – Softmax – MatMul"
    counts: dict[str, int] = {}
    for pattern in report.patterns:
        words = f"{pattern}{'' if pattern.certain else ' (by the order of kernels alone; no shapes)'}"
        counts[words] = counts.get(words, 0) + 1
    return "\n".join(f"{count} x {words}" for words, count in counts.items())


def _copies(copies: Any, shapes_known: bool) -> str:
    if not copies.count:
        return "none" if shapes_known else "none is known; no shapes were recorded"
    moved = f", {_size(copies.bytes)}" if copies.bytes else ""
    return f"{copies.count} by copying, {seconds(copies.seconds)}{moved}"


def _masks(report: Report) -> str:
    if not report.masks:
        return "none was made" if report.shapes_known else "none is known; no shapes were recorded"
    return "\n".join(
        f"{'x'.join(map(str, mask.shape))}: made {mask.made} x for {mask.calls} calls"
        f"{', anew for every call' if mask.every_call else ''} ({', '.join(mask.operators)}), {seconds(mask.seconds)}"
        for mask in report.masks
    )


def _bytes(report: Report) -> str:
    moved = report.traffic
    parts = []
    if moved.counted:
        parts.append(f"{_size(moved.counted)} counted from recorded shapes")
    if moved.modelled:
        parts.append(f"{_size(moved.modelled)} modelled from the problem")
    if moved.unknown:
        parts.append(f"shapes of {moved.unknown} calls are not known")
    if moved.counted + moved.modelled > moved.least:
        parts.append(f"fused it would be {_size(moved.least)}")
    return "; ".join(parts) or "not known"


def _size(count: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count} bytes"
