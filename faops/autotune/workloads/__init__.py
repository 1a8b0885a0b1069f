"""From the name of a model, its config file, shapes or a plan to the list of problems to tune."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from faops.autotune.workloads import hf_config, plan_file
from faops.autotune.workloads.attention_config import AttentionConfig, Workload, derive, unique
from faops.autotune.workloads.models import MODELS
from faops.errors import PlanError
from faops.problem import AttentionProblem, parse_shape

__all__ = [
    "AttentionConfig", "Workload", "from_attention_config", "from_hf_config", "from_model", "from_plan", "from_shapes",
    "model_names",
]  # fmt: skip

CLOSE = 0.5  # similarity from which an unknown name may be a misspelt known one


def model_names() -> list[str]:
    """Names that :func:`from_model` knows, sorted."""
    return sorted(MODELS)


def from_attention_config(name: str, config: AttentionConfig, **options: Any) -> Workload:
    """The problems of a model given by its numbers; ``options`` are those of :func:`from_model`."""
    return Workload(name, derive(config, **options))


def from_model(
    name: str,
    *,
    dtype: str | None = None,
    batch: int = 1,
    prompt: int | Sequence[int] | None = None,
    context: int | Sequence[int] | None = None,
    training: bool = False,
    kv_cache: bool = False,
    device: torch.device | str = "cpu",
) -> Workload:
    """The problems of a well-known model.

    ``prompt``: lengths read at once, ``context``: numbers of keys while generating, in tokens; None takes a few
    usual ones. ``training`` adds forward with lse and backward; ``kv_cache`` adds the KV-cache call. ``dtype`` None
    is float32 on a CPU, else the 16-bit type ``device`` is best at. Raises PlanError, listing close names.
    """
    config = MODELS.get(name.lower())
    if config is None:
        close = difflib.get_close_matches(name.lower(), MODELS, n=3, cutoff=CLOSE)
        hint = f"did you mean {' or '.join(close)}?" if close else f"known are {', '.join(model_names())}"
        raise PlanError(f"model: got {name!r}, which is not known; {hint}")
    return from_attention_config(
        name.lower(), config, dtype=dtype, batch=batch, prompt=prompt, context=context, training=training,
        kv_cache=kv_cache, device=device,
    )  # fmt: skip


def from_hf_config(
    path: str | Path,
    *,
    dtype: str | None = None,
    batch: int = 1,
    prompt: int | Sequence[int] | None = None,
    context: int | Sequence[int] | None = None,
    training: bool = False,
    kv_cache: bool = False,
    device: torch.device | str = "cpu",
) -> Workload:
    """The problems of the model whose config.json is ``path``, or lies in that folder; options as in
    :func:`from_model`. Raises PlanError, naming the missing field."""
    return from_attention_config(
        str(path), hf_config.read(path), dtype=dtype, batch=batch, prompt=prompt, context=context, training=training,
        kv_cache=kv_cache, device=device,
    )  # fmt: skip


def from_shapes(shapes: Sequence[str]) -> Workload:
    """The problems of shapes such as ``b=1,sq=4096,sk=4096,h=32,hk=8,d=128,causal=1``
    (:func:`faops.problem.parse_shape`). Raises PlanError."""
    return Workload("shapes", unique(parse_shape(shape) for shape in shapes))


def from_plan(path: str | Path, *, device: torch.device | str = "cpu") -> Workload:
    """The problems of a tuning plan, a YAML file (docs/plan-file.md). Raises PlanError with file and line."""
    found: list[AttentionProblem] = []
    for entry in plan_file.read(path):
        try:
            found += _plan_entry(entry, device)
        except PlanError as error:
            raise PlanError(f"{entry.place}: {error}") from None
    return Workload(str(path), unique(found))


def _plan_entry(entry: plan_file.PlanEntry, device: torch.device | str) -> list[AttentionProblem]:
    if entry.source == "model":
        return from_model(entry.value, device=device, **entry.options).problems
    if entry.source == "hf_config":
        return from_hf_config(entry.value, device=device, **entry.options).problems
    # What the shape itself says comes later and so has the last word.
    given = [f"{name}={entry.options[name]}" for name in ("dtype", "batch") if name in entry.options]
    problem = parse_shape(",".join([*given, entry.value]))
    if not entry.options.get("training"):
        return [problem]
    return [replace(problem, need_lse=True), replace(problem, op="backward", need_lse=True)]
