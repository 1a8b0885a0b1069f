"""From the name of a model, its config file, shapes or a plan to the list of problems to tune."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from faops.autotune.workloads import hf_config, plan_file
from faops.autotune.workloads.attention_config import PHASES, AttentionConfig, Options, Workload, derive, unique
from faops.autotune.workloads.models import ALIASES, MODELS, resolve
from faops.device import DeviceProfile
from faops.errors import PlanError
from faops.problem import AttentionProblem, parse_shape

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = [
    "PHASES", "PLAN_SCHEMA", "AttentionConfig", "Options", "Workload", "describe", "from_attention_config",
    "from_hf_config", "from_model", "from_plan", "from_plan_text", "from_shapes", "model_names",
]  # fmt: skip

PLAN_SCHEMA = Path(__file__).with_name("plan.schema.json")  # JSON Schema of plan files
GIVEN_CONFIG, GIVEN_PLAN = "config.json", "plan"  # what errors call those that are no files
CLOSE = 0.5  # similarity from which an unknown name may be a misspelt known one


def model_names() -> list[str]:
    """Names that :func:`from_model` knows, sorted. It also knows these models by their names on the hub."""
    return sorted(MODELS)


def describe(name: str) -> str:
    """The attention of a known model in words, such as "32 heads of 128, 8 key/value heads, causal"."""
    return str(MODELS[name].config)


def from_attention_config(name: str, config: AttentionConfig, **options: Unpack[Options]) -> Workload:
    """The problems of a model given by its numbers. Raises PlanError."""
    return Workload(name, derive(config, **options))


def from_model(name: str, **options: Unpack[Options]) -> Workload:
    """The problems of a well-known model, by its own name or that on the hub (meta-llama/Llama-3.1-8B).

    For options see :class:`Options`. Raises PlanError, which lists close names for an unknown one.
    """
    known = resolve(name)
    if known is None:
        raise PlanError(f"model: got {name!r}, which is not known; {_hint(name)}")
    return from_attention_config(known, MODELS[known].config, **options)


def _hint(name: str) -> str:
    names = [*MODELS, *ALIASES]
    own = name.lower().rpartition("/")[2]
    close = difflib.get_close_matches(own, names, n=3, cutoff=CLOSE)
    # Names that begin alike are closer than letters tell: "qwen3" is no misspelt "qwen2.5-3b".
    close = sorted(close, key=lambda known: not known.startswith(own)) or [n for n in names if n.startswith(own)][:3]
    return f"did you mean {' or '.join(close)}?" if close else f"known are {', '.join(model_names())}"


def from_hf_config(path: str | Path | Mapping[str, Any], **options: Unpack[Options]) -> Workload:
    """The problems of the model whose config.json is ``path``, or lies in that folder, or is given by its contents.

    For options see :class:`Options`. Raises PlanError, naming the file and the field.
    """
    if isinstance(path, Mapping):
        return from_attention_config(GIVEN_CONFIG, hf_config.understood(dict(path), GIVEN_CONFIG), **options)
    return from_attention_config(str(path), hf_config.read(path), **options)


def from_shapes(shapes: Sequence[str]) -> Workload:
    """The problems of shapes such as ``b=1,sq=4096,sk=4096,h=32,hk=8,d=128,causal=1``
    (:func:`faops.problem.parse_shape`). Raises PlanError."""
    return Workload("shapes", unique(parse_shape(shape) for shape in shapes))


def from_plan(path: str | Path, *, device: torch.device | str | DeviceProfile = "cpu") -> Workload:
    """The problems of a tuning plan, a YAML file (docs/plan-file.md). Raises PlanError with file and line."""
    return _planned(str(path), plan_file.read(path), device)


def from_plan_text(text: str, *, device: torch.device | str | DeviceProfile = "cpu") -> Workload:
    """The problems of a plan that is no file: a path in it must be absolute. Raises PlanError with "plan:line"."""
    return _planned(GIVEN_PLAN, plan_file.parse(text, GIVEN_PLAN, None), device)


def _planned(name: str, entries: Sequence[plan_file.PlanEntry], device: torch.device | str | DeviceProfile) -> Workload:
    found: list[AttentionProblem] = []
    for entry in entries:
        try:
            found += _plan_entry(entry, device)
        except PlanError as error:
            raise PlanError(f"{entry.place}: {error}") from None
    return Workload(name, unique(found))


def _plan_entry(entry: plan_file.PlanEntry, device: torch.device | str | DeviceProfile) -> list[AttentionProblem]:
    options: Options = {**entry.options, "device": device}
    if entry.source == "model":
        return from_model(entry.value, **options).problems
    if entry.source == "hf_config":
        return from_hf_config(entry.value, **options).problems
    # What the shape itself says comes later and so has the last word.
    given = [f"{name}={entry.options[name]}" for name in ("dtype", "batch") if name in entry.options]
    problem = parse_shape(",".join([*given, entry.value]))
    if not entry.options.get("training"):
        return [problem]
    return [replace(problem, need_lse=True), replace(problem, op="backward", need_lse=True)]
