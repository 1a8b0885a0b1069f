"""The options that name what is to be tuned, which `faops tune` and `faops daemon submit` have alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import click

from .page_sizes import page_sizes_option
from .workload import PHASES

Function = TypeVar("Function", bound=Callable[..., Any])
Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

COUNT = click.IntRange(min=1)

# As `--help` shows them.
SOURCES: Sequence[Decorator] = (
    click.option("--model", metavar="NAME", help="Tune for a known model; see `faops tune --list-models`."),
    click.option("--hf-config", metavar="PATH", help="Tune for a model by its config.json, or the folder of it."),
    click.option("--shape", "shapes", multiple=True, metavar="S", help="Tune one problem; may be repeated."),
    click.option("--plan", metavar="FILE", help="Tune the problems of a YAML file."),
)
OF_A_MODEL: Sequence[Decorator] = (
    click.option("--dtype", help="dtype of the model's problems (default: float32 on a CPU, else a 16-bit one)."),
    click.option("--batch", type=COUNT, help="Batch size of the model's problems (default: 1)."),
    click.option("--prompt", type=COUNT, multiple=True, help="Prompt length; may be repeated."),
    click.option("--context", type=COUNT, multiple=True, help="Keys while generating; may be repeated."),
    click.option("--phase", type=click.Choice(PHASES), multiple=True, help="What the model does; may be repeated."),
    click.option("--training", is_flag=True, help="Tune training (forward with lse, and backward) of the model too."),
    click.option("--kv-cache", is_flag=True, help="Tune the model's KV-cache call too."),
    page_sizes_option,
    click.option("--packed", is_flag=True, help="Sequences that are read or trained on are packed without padding."),
)


def source_options(function: Function) -> Function:
    """Add `--model`, `--hf-config`, `--shape` and `--plan`; the shapes arrive as the tuple `shapes`."""
    return _with(function, SOURCES)


def model_options(function: Function) -> Function:
    """Add what is said of the use of a model: `dtype`, `batch`, `prompt`, `context`, `phase`, `training`, `kv_cache`,
    `page_size` and `packed`."""
    return _with(function, OF_A_MODEL)


def _with(function: Function, options: Sequence[Decorator]) -> Function:
    decorated: Callable[..., Any] = function
    for option in reversed(options):
        decorated = option(decorated)
    return cast(Function, decorated)
