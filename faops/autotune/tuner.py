"""Tuning a list of problems on one device: what is known is skipped, what is not is searched and stored."""

from __future__ import annotations

import contextlib
import datetime
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import filelock
import torch

from faops import dispatch, registry
from faops._version import __version__
from faops.autotune import effort, environment
from faops.autotune.cache import TuningCache, lookup, serving
from faops.autotune.entry import Entry, Timing, problem_dict
from faops.autotune.measurement.bench import DeviceBench
from faops.autotune.measurement.load import foreign_cores
from faops.autotune.measurement.synthetic import canonical
from faops.autotune.search.candidates import Bench, Candidate, Space, space
from faops.autotune.search.halving import Outcome, planned, search
from faops.device import DeviceProfile, detect
from faops.errors import CacheError, FaopsError, NoKernelError, TuningError
from faops.problem import AttentionProblem

Kind = Literal["problem_started", "measured", "problem_done", "warm", "skipped", "failed", "waiting", "busy"]
Status = Literal["tuned", "warm", "failed", "skipped"]
MakeBench = Callable[[AttentionProblem, torch.device, DeviceProfile], Bench]


@dataclass(frozen=True)
class Event:
    """Progress. ``index`` counts problems from 0 up to ``total``; ``done`` of about ``planned`` timings of this
    problem are taken; ``best`` is the shortest median so far, in seconds a call. "waiting": another process is
    measuring on this device. "busy": other programs use the CPU, so that timings on it are not to be trusted."""

    kind: Kind
    problem: AttentionProblem
    index: int
    total: int
    done: int = 0
    planned: int = 0
    best: float | None = None
    message: str = ""


@dataclass(frozen=True)
class Result:
    """What became of one problem. ``measurements`` is the number of timings taken, 0 when warm or skipped."""

    problem: AttentionProblem
    status: Status
    measurements: int
    entry: Entry | None
    message: str


def tune(
    problems: Sequence[AttentionProblem],
    device: torch.device | str = "cpu",
    *,
    force: bool = False,
    time_budget: float | None = None,
    on_event: Callable[[Event], None] | None = None,
    cache: TuningCache | None = None,
    make_bench: MakeBench = DeviceBench,
) -> list[Result]:
    """Tune ``problems`` on ``device`` and store the winners; one result for each problem with a key of its own.

    A problem with a valid entry is not measured, unless ``force``. Once ``time_budget`` seconds are spent no further
    problem is begun. A problem that cannot run, or a cache that cannot be written, is told in the result. On
    KeyboardInterrupt what was finished is stored already. Raises TuningError when another process measures on this
    device for too long. ``make_bench`` replaces the real device, for simulations.
    """
    where = torch.device(device)
    run = _Run(where, detect(where), cache or TuningCache(), force, make_bench, on_event or (lambda event: None))
    unique = distinct(problems)
    deadline = None if time_budget is None else time.monotonic() + time_budget
    results = []
    with contextlib.ExitStack() as stack:
        locked = False
        for index, problem in enumerate(unique):
            place = (problem, index, len(unique))
            entry = run.known(problem)
            if entry is None and not locked:
                stack.enter_context(run.measuring_alone(place))
                locked = True
                entry = run.known(problem)  # whoever held the lock may have tuned it
            if entry is not None:
                results.append(run.finish(place, "warm", Result(problem, "warm", 0, entry, "tuned before")))
            elif deadline is not None and time.monotonic() >= deadline:
                message = f"the time budget of {time_budget:g} s was spent"
                results.append(run.finish(place, "skipped", Result(problem, "skipped", 0, None, message)))
            else:
                results.append(run.tune_one(place))
    return results


def distinct(problems: Sequence[AttentionProblem]) -> list[AttentionProblem]:
    """The first problem of each key, in order, in the form in which a call asks it."""
    found: dict[str, AttentionProblem] = {}
    for problem in map(canonical, problems):
        found.setdefault(problem.key(), problem)
    return list(found.values())


def estimate(
    problems: Sequence[AttentionProblem],
    device: torch.device | str = "cpu",
    *,
    force: bool = False,
    cache: TuningCache | None = None,
) -> list[dict[str, Any]]:
    """What :func:`tune` would measure: a dict a problem with ``problem``, ``status`` ("warm", "to tune" or
    "failed"), ``configs`` (number of them), ``seconds`` (a rough guess from assumed rates) and ``message``."""
    profile = detect(device)
    run = _Run(torch.device(device), profile, cache or TuningCache(), force, DeviceBench, lambda event: None)
    found = []
    for problem in distinct(problems):
        row: dict[str, Any] = {"problem": problem, "status": "to tune", "configs": 0, "seconds": 0.0, "message": ""}
        if run.known(problem) is not None:
            row["status"] = "warm"
        else:
            try:
                row["configs"] = len(run.space(problem))
                row["seconds"] = _guess_seconds(problem, profile, row["configs"])
            except NoKernelError as error:
                row.update(status="failed", message=str(error))
        found.append(row)
    return found


def _guess_seconds(problem: AttentionProblem, profile: DeviceProfile, configs: int) -> float:
    assumed = effort.ASSUMED_CPU_FLOPS_A_THREAD * max(1, profile.threads or profile.units)
    rate = assumed if profile.torch_type == "cpu" else profile.matrix_flops or effort.ASSUMED_DEVICE_FLOPS
    call = effort.ASSUMED_CALL_SECONDS + problem.flops() / rate
    rounds = planned(configs)
    return sum(count * (max(budget.warmup, call) + max(budget.time_cap, call)) for count, budget in rounds)


Place = tuple[AttentionProblem, int, int]  # problem, index, total


@dataclass
class _Run:
    device: torch.device
    profile: DeviceProfile
    cache: TuningCache
    force: bool
    make_bench: MakeBench
    on_event: Callable[[Event], None]

    def known(self, problem: AttentionProblem) -> Entry | None:
        """The entry that makes measuring needless."""
        if self.force:
            return None
        entry = self.cache.load(self.profile, problem)
        return entry if entry is not None and serving(entry, registry.kernels(problem.op)) else None

    def space(self, problem: AttentionProblem) -> Space:
        """The candidates of a problem. Raises NoKernelError when no kernel accepts it."""
        accepted = dispatch.runnable(registry.kernels(problem.op), problem, self.profile)
        near = lookup(problem, self.profile, accepted, self.cache.root)
        return space(problem, self.profile, accepted, [Candidate(near.kernel, near.config)] if near else [])

    def finish(self, place: Place, kind: Kind, result: Result) -> Result:
        self.on_event(Event(kind, *place, message=result.message))
        return result

    @contextlib.contextmanager
    def measuring_alone(self, place: Place) -> Iterator[None]:
        """Hold the lock of the device's directory, so that two processes do not disturb each other's timings.

        Where the directory cannot be written there is nothing to lock, and measuring goes on. Raises TuningError when
        the lock is not free after LOCK_TIMEOUT_SECONDS.
        """
        path = self.cache.directory(self.profile).parent / "measuring.lock"
        lock = filelock.FileLock(path)
        with contextlib.suppress(OSError, NotImplementedError):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire(timeout=0)
            except filelock.Timeout:
                self.on_event(Event("waiting", *place, message="another process is measuring on this device"))
                self._wait_for(lock, path)
        try:
            self._warn_if_busy(place)
            yield
        finally:
            lock.release()

    def _warn_if_busy(self, place: Place) -> None:
        foreign = foreign_cores(effort.BUSY_SECONDS) if self.device.type == "cpu" else None
        if foreign is not None and foreign > effort.BUSY_CORES:
            message = (
                f"other programs use {foreign:.1f} of {self.profile.units} cores: winners may not hold on an idle "
                "machine; tune again with --force when it is"
            )
            self.on_event(Event("busy", *place, message=message))

    def _wait_for(self, lock: filelock.BaseFileLock, path: Path) -> None:
        try:
            lock.acquire(timeout=effort.LOCK_TIMEOUT_SECONDS, poll_interval=effort.LOCK_POLL_SECONDS)
        except filelock.Timeout:
            raise TuningError(
                f"another process has been measuring on this device for {effort.LOCK_TIMEOUT_SECONDS:g} s "
                f"(it holds {path}); try again when it is done"
            ) from None

    def tune_one(self, place: Place) -> Result:
        """Search one problem and store the winner; what goes wrong is in the result."""
        problem = place[0]
        try:
            candidates = self.space(problem)
            total = sum(count for count, _ in planned(len(candidates)))
            self.on_event(Event("problem_started", *place, planned=total))
            best: list[float] = []

            def on_timing(done: int, timing: Timing) -> None:
                best[:] = [min([*best, timing.p50])]
                self.on_event(Event("measured", *place, done, total, best[0], f"{timing.kernel} [{timing.config}]"))

            outcome = search(candidates, self.make_bench(problem, self.device, self.profile), on_timing)
        except FaopsError as error:
            return self.finish(place, "failed", Result(problem, "failed", 0, None, str(error)))
        entry, message = self._store(self._entry(problem, outcome))
        self.on_event(
            Event("problem_done", *place, outcome.measurements, outcome.measurements, outcome.winner.p50, message)
        )
        return Result(problem, "tuned", outcome.measurements, entry, message)

    def _entry(self, problem: AttentionProblem, outcome: Outcome) -> Entry:
        kernel = registry.get(outcome.winner.kernel)
        if kernel is None:
            raise TuningError(f"kernel {outcome.winner.kernel} was removed while it was measured")
        return Entry(
            key=problem.key(),
            problem=problem_dict(problem),
            device=self.profile.identity,
            environment=environment.versions(),
            kernel=kernel.id,
            source_hash=kernel.source_hash(),
            config=outcome.winner.config,
            p50=outcome.winner.p50,
            default_kernel=outcome.default.kernel,
            default_config=outcome.default.config,
            default_p50=outcome.default.p50,
            speedup=outcome.default.p50 / outcome.winner.p50,
            timings=tuple(outcome.timings),
            dropped=tuple({"config": str(candidate), "reason": reason} for candidate, reason in outcome.dropped),
            measurements=outcome.measurements,
            faops_version=__version__,
            date=datetime.date.today().isoformat(),
        )

    def _store(self, entry: Entry) -> tuple[Entry, str]:
        words = "the default stays" if entry.is_default else f"{entry.speedup:.2f}x over the default"
        try:
            stored = self.cache.store(self.profile, entry)
        except CacheError as error:
            return entry, f"{words}; not stored: {error}"
        dispatch.forget()  # this process uses the new winner from now on
        return stored, words
