"""From problems to tasks: whether one can be tuned here, what a call of it takes and how long tuning will."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from faops import dispatch, registry
from faops.autotune import model, tuner
from faops.autotune.cache import environment
from faops.autotune.cache.validation import is_possible
from faops.autotune.measurement import remote
from faops.autotune.measurement.synthetic import canonical
from faops.daemon.jobs import Task
from faops.daemon.worker.devices import Place, check_environment, place_of, places
from faops.errors import DaemonError, FaopsError, NoKernelError
from faops.problem import AttentionProblem

Json = dict[str, Any]

# What reading a problem raises that is none: fields that are missing, of other types, unknown or absurdly large.
UNREADABLE = (ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RecursionError)


def assess(misses: Sequence[Json]) -> list[Json]:
    """For each miss (``{"identity", "environment", "problem", "threads"?}``) its task as a dict, or
    ``{"refused": why}``."""
    known = places()
    return [_assessed(miss, known) for miss in misses]


def _assessed(miss: Json, known: list[Place]) -> Json:
    try:
        check_environment(str(miss["environment"]))
        place = place_of(str(miss["identity"]), int(miss.get("threads") or 0), known)
        return task_of(problem_of(miss["problem"]), place).as_dict()
    except FaopsError as error:
        return {"refused": str(error)}
    except UNREADABLE as error:
        return {"refused": f"it is no problem that this version knows ({type(error).__name__}: {error})"}


def problem_of(data: object) -> AttentionProblem:
    """The problem in a task or a miss. Raises DaemonError for one that no call asks, and UNREADABLE."""
    if not isinstance(data, dict):
        raise TypeError(f"expected names with values, got {type(data).__name__}")
    problem = AttentionProblem.from_dict(data)
    if not is_possible(problem):
        raise DaemonError("no call can ask its problem")
    if problem.flops() <= 0:
        raise DaemonError("there is no work in its problem")
    if canonical(problem).key() != problem.key():
        raise DaemonError("its window hides nothing, and no call would ask so")
    return problem


def task_of(problem: AttentionProblem, place: Place) -> Task:
    """A problem as a task on a device. Raises DaemonError where no kernel runs it there."""
    profile = place.profile
    try:
        accepted = dispatch.runnable(registry.kernels(problem.op), problem, profile)
    except NoKernelError as error:
        raise DaemonError(f"{str(error).splitlines()[0]}; `faops explain` says why") from None
    (row,) = tuner.estimate([problem], profile, rough=True)
    (cold,) = [row] if row["status"] != "warm" else tuner.estimate([problem], profile, rough=True, force=True)
    return Task(
        identity=profile.identity,
        environment=environment.directory_name(),
        device=place.device,
        threads=place.threads,
        key=problem.key(),
        problem=problem.as_dict(),
        words=str(problem),
        call_seconds=_call_seconds(problem, place, accepted[0]),
        tuning_seconds=float(cold["seconds"]),
        warm=row["status"] == "warm",
    )


def _call_seconds(problem: AttentionProblem, place: Place, kernel: registry.Kernel) -> float:
    """What a call takes that runs the default: as the cost model predicts, or else by a rough guess."""
    said = model.predict(kernel, problem, place.profile, kernel.default_config(problem, place.profile))
    if said is not None and 0 < said.seconds < math.inf:
        return float(said.seconds)
    return float(remote.call_seconds(problem, place.profile))
