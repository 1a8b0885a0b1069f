"""The problems that `faops tune` is asked for: from a model, a shape, a plan, the misses or an interrupted run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from ..cache.words import waiting_words
from ..devices import torch_device
from ..output import print_json, print_line, print_table

if TYPE_CHECKING:
    import torch

    from faops.device import DeviceProfile
    from faops.problem import AttentionProblem

    Target = torch.device | DeviceProfile  # a device of this machine, or any other that is only planned for

# Those of faops.autotune.workloads, written down here because importing them imports torch.
PHASES = ("prefill", "generate", "decode", "training")

RESUME = "--resume"  # names a workload only where nothing else does
WITH_MODEL_OPTIONS = ("--model", "--hf-config")


def chosen_source(sources: dict[str, Any], options: dict[str, Any], resume: bool | None = None) -> tuple[str, Any]:
    """The one option that names the workload, with its value; ``resume`` is None in a command without `--resume`.

    Raises UsageError for none, several, and for options of a model beside another source.
    """
    given = {name: value for name, value in sources.items() if value}
    if not given and resume:
        given = {RESUME: True}
    if len(given) != 1:
        found = f"not {' and '.join(given)}" if given else "none was given"
        *names, last = [*sources, *([] if resume is None else [RESUME])]
        raise click.UsageError(f"name what to tune by one of {', '.join(names)} or {last}; {found}")
    (source, value), *_ = given.items()
    if options and source not in WITH_MODEL_OPTIONS:
        name = "--" + next(iter(options)).replace("_", "-")
        raise click.UsageError(f"{name} goes with --model and --hf-config; with {source} it is written in there")
    return source, value


def planned_device(name: str | None) -> Target:
    """The profile of a well-known device called `name`, such as 910b, or the device of this machine of that name.

    Raises ArgumentError.
    """
    from faops.architectures import KNOWN_DEVICES
    from faops.device import known

    return known(name) if name is not None and name.lower() in KNOWN_DEVICES else torch_device(name)


def profile_of(where: Target) -> DeviceProfile:
    """What is known of a device."""
    from faops.device import DeviceProfile, detect

    return where if isinstance(where, DeviceProfile) else detect(where)


def identity_of(where: Target) -> str:
    """The name of a device in the cache."""
    return profile_of(where).identity


def words_of(source: str, value: Any, options: dict[str, Any]) -> list[str]:
    """The workload as words of a command line; none for a run that is resumed."""
    if source == RESUME:
        return []
    words = []
    for name, given in {
        source: value,
        **{f"--{name.replace('_', '-')}": given for name, given in options.items()},
    }.items():
        for item in given if isinstance(given, list | tuple) else [given]:
            words += [name] if item is True else [name, str(item)]
    return words


def problems_of(source: str, value: Any, options: dict[str, Any], where: Target) -> list[AttentionProblem]:
    """The problems of a workload, in the order in which they are tuned."""
    from faops.autotune import workloads
    from faops.problem import dtype_name

    if "dtype" in options:
        options = {**options, "dtype": dtype_name(options["dtype"])}
    options = {"phases" if name == "phase" else name: given for name, given in options.items()}
    if source == "--model":
        return workloads.from_model(value, device=where, **options).problems
    if source == "--hf-config":
        return workloads.from_hf_config(value, device=where, **options).problems
    if source == "--plan":
        return workloads.from_plan(value, device=where).problems
    if source == "--from-misses":
        return _waiting(where)
    if source == RESUME:
        return _unfinished(where)
    return workloads.from_shapes(value).problems


def _waiting(where: Target) -> list[AttentionProblem]:
    from faops.autotune.cache import TuningCache, misses

    profile = profile_of(where)
    found = misses.waiting(TuningCache(), profile.identity)
    return [miss.problem for miss in misses.urgent(found, profile)]


def _unfinished(where: Target) -> list[AttentionProblem]:
    from faops.autotune import tuner
    from faops.autotune.cache import TuningCache

    return tuner.unfinished(where, TuningCache())


def nothing_to_do(source: str, where: Target) -> None:
    """Say that no problem waits, and where else some do: a CPU with another number of threads is another device."""
    from faops.autotune.cache import TuningCache, misses

    if source == RESUME:
        print_line(f"nothing to resume: no run was interrupted on {identity_of(where)}")
        return
    print_line(f"nothing to tune: no problem that ran untuned waits on {identity_of(where)}")
    for identity, count in misses.counts(TuningCache()).items():
        print_line(f"{waiting_words(count)} on {identity}")


def list_models(as_json: bool) -> None:
    """The models that --model knows, with their attention in words."""
    from faops.autotune import workloads

    known = {name: workloads.describe(name) for name in workloads.model_names()}
    if as_json:
        print_json("tune", models=list(known), attention=known)
        return
    print_table(("model", "attention"), list(known.items()))
