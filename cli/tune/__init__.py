"""`faops tune`: measure the kernels and configs for given problems and remember the fastest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..devices import torch_device
from ..durations import parse_duration
from ..output import json_option
from .dry_run import dry_run as print_estimate
from .options import model_options, source_options
from .run import STRATEGIES, Wishes, run
from .workload import chosen_source, list_models, nothing_to_do, planned_device, problems_of, words_of


@click.command("tune", short_help="Measure kernels for a workload, remember the fastest.")
@source_options
@click.option("--from-misses", is_flag=True, help="Tune what programs on this machine ran untuned.")
@model_options
@click.option("--device", help="The device of this machine to tune for (default: cuda, npu or cpu); see --dry-run.")
@click.option("--force", is_flag=True, help="Measure again what has been tuned before.")
@click.option("--resume", is_flag=True, help="Go on with the run that was interrupted.")
@click.option("--strategy", type=click.Choice(STRATEGIES), default=STRATEGIES[0], help="How to search.")
@click.option("--time-budget", callback=parse_duration, metavar="TIME", help="Stop after 60s, 2m, 1h...")
@click.option("--report", metavar="FILE", type=click.Path(path_type=Path), help="Write a report, as .html or .png.")
@click.option("--no-isolate", is_flag=True, help="Measure in this process, where a config that crashes ends the run.")
@click.option("--dry-run", is_flag=True, help="Say what would be measured, and how long it takes; for any device.")
@click.option("--list-models", "models", is_flag=True, help="List the models that --model knows.")
@json_option
def command(
    model: str | None,
    hf_config: str | None,
    shapes: tuple[str, ...],
    plan: str | None,
    from_misses: bool,
    device: str | None,
    force: bool,
    resume: bool,
    strategy: str,
    time_budget: float | None,
    report: Path | None,
    no_isolate: bool,
    dry_run: bool,
    models: bool,
    as_json: bool,
    **model_options: Any,
) -> None:
    """Measure the kernels and configs for a workload and remember the fastest, for this device.

    The workload is one of --model, --hf-config, --shape, --plan and --from-misses: the problems that programs ran
    untuned on this device. What was tuned before is reused and not measured. Ctrl-C keeps all that was measured, and
    --resume goes on from there. Exits with 1 when a problem failed or a winner could not be stored.

    \b
    Examples:
      faops tune --model smollm2-135m
      faops tune --model llama-3-8b --dtype bfloat16 --prompt 512 --context 4096 --dry-run
      faops tune --model llama-3-8b --phase decode --page-size 128,256,512
      faops tune --model llama-3-8b --device 910b --dry-run
      faops tune --hf-config path/to/config.json --batch 4 --training
      faops tune --shape b=1,sq=1024,h=8,d=64,causal=1 --shape sq=1,sk=1024,h=8,d=64,op=decode
      faops tune --plan tune.yaml --time-budget 2m --report tune.html
      faops tune --from-misses --dry-run
      faops tune --resume
    """
    if models:
        list_models(as_json)
        return
    sources = {
        "--model": model, "--hf-config": hf_config, "--shape": list(shapes), "--plan": plan,
        "--from-misses": from_misses,
    }  # fmt: skip
    options = {name: value for name, value in model_options.items() if value}
    source, value = chosen_source(sources, options, resume)
    where = planned_device(device) if dry_run else torch_device(device)
    problems = problems_of(source, value, options, where)
    if not problems and not as_json:  # only misses and interrupted runs can be none
        nothing_to_do(source, where)
    elif dry_run:
        print_estimate(problems, where, force, strategy, as_json)
    else:
        workload = words_of(source, value, options)
        wishes = Wishes(workload, device, force, time_budget, strategy, resume, not no_isolate, report, as_json)
        run(problems, torch_device(device), wishes)
