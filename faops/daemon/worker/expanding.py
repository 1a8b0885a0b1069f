"""From what somebody wants tuned to tasks: a model, its config, a plan or shapes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import cast

from faops.autotune import workloads
from faops.autotune.workloads import Options
from faops.daemon.worker.assessing import Json, problem_of, task_of
from faops.daemon.worker.devices import Place, place_of
from faops.device import detect, named
from faops.errors import ArgumentError, DaemonError, PlanError

SOURCES = ("model", "hf_config", "plan", "shapes")
WITH_OPTIONS = ("model", "hf_config")
MOST_TASKS = 4096  # of one submission


def expand(request: Json) -> Json:
    """The tasks of a submission: ``{"tasks": [task], "refused": [[problem in words, why]]}``.

    ``request`` has one of "model" (a name), "hf_config" (an absolute path, or the config itself), "plan" (the text of
    one) and "shapes" (a list), and may have "device" and, beside the first two, "options". Raises PlanError and
    ArgumentError for what makes no sense as a whole.
    """
    source = _source(request)
    place = _place(request.get("device"))
    options = cast(Options, {**checked(_options(request, source)), "device": place.profile})
    problems = _READERS[source](request[source], options).problems
    if len(problems) > MOST_TASKS:
        raise PlanError(f"{source}: got {len(problems)} problems, expected at most {MOST_TASKS} at once")
    tasks, refused = [], []
    for problem in problems:
        try:
            tasks.append(task_of(problem_of(problem.as_dict()), place).as_dict())
        except DaemonError as error:
            refused.append([str(problem), str(error)])
    return {"tasks": tasks, "refused": refused}


def _source(request: Json) -> str:
    given = [name for name in SOURCES if request.get(name)]
    if len(given) != 1:
        raise ArgumentError("request", " and ".join(given) or "nothing to tune", f"one of {', '.join(SOURCES)}")
    return given[0]


def _place(name: object) -> Place:
    """The device called so, or where several are alike the first of these: their tasks are the same."""
    if not isinstance(name, str | None):
        raise ArgumentError("device", repr(name), "the name of a device, such as cpu or cuda:0")
    return place_of(detect(named(name or None)).identity)


# ------------------------------------------------------------------------------------------------------------ sources


def _from_model(name: object, options: Options) -> workloads.Workload:
    return workloads.from_model(_text("model", name), **options)


def _from_hf_config(config: object, options: Options) -> workloads.Workload:
    if isinstance(config, Mapping):
        return workloads.from_hf_config(config, **options)
    path = _text("hf_config", config)
    if not Path(path).is_absolute():
        raise ArgumentError("hf_config", repr(path), "an absolute path, or the contents of a config.json")
    if not (Path(path).is_file() or Path(path).is_dir()):  # a pipe would be waited for
        raise ArgumentError("hf_config", repr(path), "a file or a folder that is there")
    return workloads.from_hf_config(path, **options)


def _from_plan(text: object, options: Options) -> workloads.Workload:
    return workloads.from_plan_text(_text("plan", text), device=options["device"])


def _from_shapes(shapes: object, options: Options) -> workloads.Workload:
    if not isinstance(shapes, list):
        raise ArgumentError("shapes", repr(shapes), "a list of shapes such as b=1,sq=4096,h=32,d=128")
    return workloads.from_shapes([_text("shapes", shape) for shape in shapes])


_READERS: dict[str, Callable[[object, Options], workloads.Workload]] = {
    "model": _from_model,
    "hf_config": _from_hf_config,
    "plan": _from_plan,
    "shapes": _from_shapes,
}


def _text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise ArgumentError(name, repr(value), "text")
    return value


# ------------------------------------------------------------------------------------------------------------ options


def _options(request: Json, source: str) -> object:
    options = request.get("options")
    if options and source not in WITH_OPTIONS:
        raise ArgumentError("options", repr(options), f"none beside {source}, in which they are written")
    return options or {}


def checked(options: object) -> Json:
    """Options of a model (:class:`faops.autotune.workloads.Options`) of the right types. Raises ArgumentError."""
    if not isinstance(options, Mapping):
        raise ArgumentError("options", repr(options), "names with values")
    for name, value in options.items():
        if name not in _KINDS:
            raise ArgumentError("options", repr(name), f"one of {', '.join(_KINDS)}")
        fits, expected = _KINDS[name]
        if value is not None and not fits(value):
            raise ArgumentError(f"options.{name}", repr(value), expected)
    return {name: value for name, value in options.items() if value is not None}


def _is_number(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_some(one: Callable[[object], bool]) -> Callable[[object], bool]:
    """Whether something is one of a kind, or a list of them."""
    return lambda value: one(value) or (isinstance(value, list) and bool(value) and all(map(one, value)))


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_flag(value: object) -> bool:
    return isinstance(value, bool)


_KINDS: dict[str, tuple[Callable[[object], bool], str]] = {
    "dtype": (_is_text, "the name of a dtype, such as bfloat16"),
    "batch": (_is_number, "a whole number"),
    "prompt": (_is_some(_is_number), "a whole number or a list of them"),
    "context": (_is_some(_is_number), "a whole number or a list of them"),
    "phases": (_is_some(_is_text), f"one or a list of {', '.join(workloads.PHASES)}"),
    "page_size": (_is_some(_is_number), "a whole number or a list of them"),
    "training": (_is_flag, "true or false"),
    "kv_cache": (_is_flag, "true or false"),
    "packed": (_is_flag, "true or false"),
}
