"""`faops tune`: measure the kernels and configs for given problems and remember the fastest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from .cache.words import waiting_words
from .devices import torch_device
from .durations import parse_duration
from .output import json_option, print_json, print_line, print_table, ratio, seconds
from .progress import reporter

if TYPE_CHECKING:
    import torch

    from faops.autotune.entry import Entry, Timing
    from faops.autotune.tuner import Result
    from faops.problem import AttentionProblem


@click.command("tune", short_help="Measure kernels for a workload, remember the fastest.")
@click.option("--model", metavar="NAME", help="Tune for a known model; see --list-models.")
@click.option("--hf-config", metavar="PATH", help="Tune for a model by its config.json, or the folder that holds it.")
@click.option("--shape", "shapes", multiple=True, metavar="S", help="Tune one problem; may be repeated.")
@click.option("--plan", metavar="FILE", help="Tune the problems of a YAML file.")
@click.option("--from-misses", is_flag=True, help="Tune what programs on this machine ran untuned.")
@click.option("--dtype", help="dtype of the model's problems (default: float32 on a CPU, else a 16-bit one).")
@click.option("--batch", type=click.IntRange(min=1), help="Batch size of the model's problems (default: 1).")
@click.option("--prompt", type=click.IntRange(min=1), multiple=True, help="Prompt length; may be repeated.")
@click.option("--context", type=click.IntRange(min=1), multiple=True, help="Keys while generating; may be repeated.")
@click.option("--training", is_flag=True, help="Tune training (forward with lse, and backward) of the model too.")
@click.option("--kv-cache", is_flag=True, help="Tune the model's KV-cache call too.")
@click.option("--device", help="The device of this machine to tune for (default: cuda, npu or cpu).")
@click.option("--force", is_flag=True, help="Measure again what has been tuned before.")
@click.option("--time-budget", callback=parse_duration, metavar="TIME", help="Begin no problem after 60s, 2m, 1h...")
@click.option("--dry-run", is_flag=True, help="Say what would be measured and how long it would take.")
@click.option("--list-models", is_flag=True, help="List the models that --model knows.")
@json_option
def command(
    model: str | None,
    hf_config: str | None,
    shapes: tuple[str, ...],
    plan: str | None,
    from_misses: bool,
    device: str | None,
    force: bool,
    time_budget: float | None,
    dry_run: bool,
    list_models: bool,
    as_json: bool,
    **model_options: Any,
) -> None:
    """Measure the kernels and configs for a workload and remember the fastest, for this device.

    The workload is one of --model, --hf-config, --shape, --plan and --from-misses: the problems that programs ran
    untuned on this device. What was tuned before is reused and not measured. Ctrl-C keeps the problems that were
    finished. Exits with 1 when a problem failed or a winner could not be stored.

    \b
    Examples:
      faops tune --model smollm2-135m
      faops tune --model llama-3-8b --dtype bfloat16 --prompt 512 --context 4096 --dry-run
      faops tune --hf-config path/to/config.json --batch 4 --training
      faops tune --shape b=1,sq=1024,h=8,d=64,causal=1 --shape sq=1,sk=1024,h=8,d=64,op=decode
      faops tune --plan tune.yaml --time-budget 2m --json
      faops tune --from-misses --dry-run
    """
    if list_models:
        _list_models(as_json)
        return
    sources = {
        "--model": model, "--hf-config": hf_config, "--shape": list(shapes), "--plan": plan,
        "--from-misses": from_misses,
    }  # fmt: skip
    given = {name: value for name, value in sources.items() if value}
    options = {name: value for name, value in model_options.items() if value}
    _require_one_source(list(given), options)
    where = torch_device(device)
    problems = _problems(*given.popitem(), options, where)
    if not problems and not as_json:  # only misses can be none
        _nothing_waits(where)
        return
    if dry_run:
        _dry_run(problems, where, force, as_json)
        return
    _tune(problems, where, force, time_budget, as_json)


def _require_one_source(given: list[str], options: dict[str, Any]) -> None:
    if len(given) != 1:
        found = f"not {' and '.join(given)}" if given else "none was given"
        names = "--model, --hf-config, --shape, --plan and --from-misses"
        raise click.UsageError(f"name what to tune by one of {names}; {found}")
    if options and given[0] not in ("--model", "--hf-config"):
        name = "--" + next(iter(options)).replace("_", "-")
        raise click.UsageError(f"{name} goes with --model and --hf-config; with {given[0]} it is written in there")


def _problems(source: str, value: Any, options: dict[str, Any], where: torch.device) -> list[AttentionProblem]:
    from faops.autotune import workloads
    from faops.problem import dtype_name

    if "dtype" in options:
        options = {**options, "dtype": dtype_name(options["dtype"])}
    if source == "--model":
        return workloads.from_model(value, device=where, **options).problems
    if source == "--hf-config":
        return workloads.from_hf_config(value, device=where, **options).problems
    if source == "--plan":
        return workloads.from_plan(value, device=where).problems
    if source == "--from-misses":
        return _waiting(where)
    return workloads.from_shapes(value).problems


def _waiting(where: torch.device) -> list[AttentionProblem]:
    from faops.autotune import misses
    from faops.autotune.cache import TuningCache
    from faops.device import detect

    return [miss.problem for miss in misses.waiting(TuningCache(), detect(where).identity)]


def _nothing_waits(where: torch.device) -> None:
    """Say so, and where else problems wait: a CPU with another number of threads is another device."""
    from faops.autotune import misses
    from faops.autotune.cache import TuningCache
    from faops.device import detect

    print_line(f"nothing to tune: no problem that ran untuned waits on {detect(where).identity}")
    for identity, count in misses.counts(TuningCache()).items():
        print_line(f"{waiting_words(count)} on {identity}")


def _list_models(as_json: bool) -> None:
    from faops.autotune import workloads

    names = workloads.model_names()
    if as_json:
        print_json("tune", models=names)
        return
    for name in names:
        print_line(name)


def _dry_run(problems: list[AttentionProblem], where: torch.device, force: bool, as_json: bool) -> None:
    from faops.autotune import tuner

    estimates = tuner.estimate(problems, where, force=force)
    if as_json:
        rows = [{**row, "problem": row["problem"].as_dict(), "key": row["problem"].key()} for row in estimates]
        print_json("tune", dry_run=True, device=str(where), problems=rows)
        return
    print_table(
        ("problem", "configs", "about", "status"),
        [
            (row["problem"], row["configs"] or "-", seconds(row["seconds"]) if row["configs"] else "-", row["status"])
            for row in estimates
        ],
    )
    for row in estimates:
        if row["message"]:
            print_line(f"\n{row['message']}")
    todo = [row for row in estimates if row["status"] == "to tune"]
    total = sum(row["seconds"] for row in todo)
    print_line(f"\n{len(todo)} of {len(estimates)} problems to tune, about {seconds(total)}; nothing was measured")


def _tune(
    problems: list[AttentionProblem], where: torch.device, force: bool, time_budget: float | None, as_json: bool
) -> None:
    from faops.autotune import misses, tuner
    from faops.autotune.cache import TuningCache
    from faops.device import detect

    cache, profile = TuningCache(), detect(where)
    directory = str(cache.directory(profile))
    try:
        with reporter(as_json) as on_event:
            results = tuner.tune(problems, where, force=force, time_budget=time_budget, on_event=on_event, cache=cache)
    except KeyboardInterrupt:
        click.echo("the problems that were finished are stored; the same command goes on with the rest", err=True)
        raise
    finally:
        waiting = misses.settle(cache, profile.identity)
    if as_json:
        measured = sum(result.measurements for result in results)
        rows = [_as_dict(result) for result in results]
        print_json(
            "tune", device=str(where), path=directory, measurements=measured, problems=rows, misses_waiting=waiting
        )
    else:
        _print_results(results, directory)
        if waiting:
            print_line(waiting_words(waiting))
    if any(result.status == "failed" or _unsaved(result) for result in results):
        raise click.exceptions.Exit(1)


def _unsaved(result: Result) -> bool:
    """Whether a problem was tuned and its winner could not be written."""
    return result.status == "tuned" and (result.entry is None or result.entry.path is None)


def _as_dict(result: Result) -> dict[str, Any]:
    entry = result.entry
    document: dict[str, Any] = {
        "problem": result.problem.as_dict(),
        "key": result.problem.key(),
        "status": result.status,
        "measurements": result.measurements,
        "message": result.message,
        "stored": None if entry is None or entry.path is None else str(entry.path),
        "default": None,
        "winner": None,
        "speedup": None,
        "above_noise": None,
    }
    if entry is not None:
        document["default"] = {
            "kernel": entry.default_kernel, "config": dict(entry.default_config), "seconds": entry.default_p50,
        }  # fmt: skip
        document["winner"] = {"kernel": entry.kernel, "config": dict(entry.config), "seconds": entry.p50}
        document["speedup"] = entry.speedup
        document["above_noise"] = not entry.is_default
    return document


def _print_results(results: list[Result], directory: str) -> None:
    print_line()
    print_table(
        ("problem", "default", "winner", "speed-up", "verdict"),
        [_row(result) for result in results],
    )
    print_line()
    for result in results:
        if result.status in ("failed", "skipped") or _unsaved(result):
            print_line(f"{result.problem}: {result.message}")
    statuses = [result.status for result in results]
    counts = {status: statuses.count(status) for status in ("tuned", "warm", "skipped", "failed")}
    if counts["warm"] == len(results):
        print_line(f"everything was tuned before and is reused: nothing was measured ({directory})")
        return
    measured = sum(result.measurements for result in results)
    print_line(", ".join(f"{n} {status}" for status, n in counts.items() if n) + f"; {measured} measurements")
    if any(result.status == "tuned" and not _unsaved(result) for result in results):
        print_line(f"the winners are stored in {directory}")


def _row(result: Result) -> tuple[str, str, str, str, str]:
    entry = result.entry
    if entry is None:
        return str(result.problem), "-", "-", "-", result.status
    default = f"{entry.default_kernel}\n{entry.default_config}\n{seconds(entry.default_p50)}"
    # The tuner replaces the default only by something faster beyond the noise, so another winner is above it.
    if entry.is_default:
        return str(result.problem), default, "the default", "-", "nothing faster beyond the noise"
    winner = f"{entry.kernel}\n{entry.config}\n{seconds(entry.p50)}"
    noisy = any(timing.noisy for timing in entry.timings if _is_compared(timing, entry))
    verdict = "above the noise\n(noisy timings)" if noisy else "above the noise"
    return str(result.problem), default, winner, ratio(entry.speedup), verdict


def _is_compared(timing: Timing, entry: Entry) -> bool:
    """Whether a timing is the winner's or the default's."""
    pairs = ((entry.kernel, entry.config), (entry.default_kernel, entry.default_config))
    return (timing.kernel, timing.config) in pairs
