"""Tuning a list of problems on one device: what is known is skipped, what is not is searched and stored."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from faops import registry
from faops.autotune import effort
from faops.autotune.cache import TuningCache, needs_recheck, serving
from faops.autotune.cache.entry import Entry
from faops.autotune.measurement import npu_smi
from faops.autotune.measurement.bench import DeviceBench
from faops.autotune.measurement.load import foreign_cores
from faops.autotune.measurement.synthetic import canonical
from faops.autotune.recording.journal import discard, path_of
from faops.autotune.search.candidates import Candidate
from faops.autotune.search.strategies import DEFAULT, by_name
from faops.autotune.tuner import pending
from faops.autotune.tuner.benches import Benches, MakeBench
from faops.autotune.tuner.events import Event, Kind, Result, Status
from faops.autotune.tuner.locking import measuring_alone
from faops.autotune.tuner.pace import Pace
from faops.autotune.tuner.pending import Pending
from faops.autotune.tuner.reporting import Place, Reporter
from faops.autotune.tuner.single import Setup, Single
from faops.device import DeviceProfile, detect
from faops.errors import NoKernelError
from faops.problem import AttentionProblem

BUSY_ADVICE = "winners may not hold on an idle machine; tune again with --force when it is"

__all__ = [
    "Candidate", "DeviceBench", "Event", "Kind", "MakeBench", "Result", "Status", "distinct", "estimate", "tune",
    "unfinished",
]  # fmt: skip


def tune(
    problems: Sequence[AttentionProblem],
    device: torch.device | str = "cpu",
    *,
    force: bool = False,
    time_budget: float | None = None,
    on_event: Callable[[Event], None] | None = None,
    cache: TuningCache | None = None,
    make_bench: MakeBench | None = None,
    strategy: str = DEFAULT,
    resume: bool = False,
    isolate: bool = True,
    before_measuring: Callable[[], None] = lambda: None,
    listed: bool = True,
    benches: Benches | None = None,
) -> list[Result]:
    """Tune ``problems`` on ``device`` and store the winners; one result for each problem with a key of its own.

    A problem with a valid entry is not measured, unless ``force``, or with another driver than the present one. Once
    ``time_budget`` seconds are spent no further problem is begun, and the one at work goes to its finals with what it
    has. A problem that cannot run, or a cache that cannot be written, is told in the result. ``strategy`` is one of
    :data:`faops.autotune.search.strategies.NAMES`.

    Whatever ends this early (KeyboardInterrupt, a kill, a power cut but for the last moments), winners that were found
    are stored, and every timing of the problem at work is written down: with ``resume`` it is not taken again.
    :func:`unfinished` names the problems that were left; not those of a run that is not ``listed``, which leaves the
    list of another alone.

    ``before_measuring`` is called before each timing and each check, and before anything else that takes the device's
    time. It may wait, and that counts neither to the time budget nor to any limit; what it raises ends the run.

    Configs are measured in a process of their own (``isolate``), so that one that crashes or hangs costs itself alone;
    it is quarantined in the entry. ``make_bench`` replaces the real device, for simulations. ``benches`` of this device
    stay open: one process measures for several runs then. Raises TuningError when another process measures on this
    device for too long, ArgumentError for an unknown strategy.
    """
    where = torch.device(device)
    profile = detect(where)
    reporter = Reporter(on_event or (lambda event: None), Pace(time_budget), before_measuring)
    with contextlib.ExitStack() as stack:
        serving_benches = benches or stack.enter_context(Benches(where, profile, make_bench, isolate))
        setup = Setup(where, profile, cache or TuningCache(), by_name(strategy), reporter, serving_benches, resume)
        return _Run(setup, force, listed).tune_all(distinct(problems))


def distinct(problems: Sequence[AttentionProblem]) -> list[AttentionProblem]:
    """The first problem of each key, in order, in the form in which a call asks it."""
    found: dict[str, AttentionProblem] = {}
    for problem in map(canonical, problems):
        found.setdefault(problem.key(), problem)
    return list(found.values())


def unfinished(
    device: torch.device | str | DeviceProfile = "cpu", cache: TuningCache | None = None
) -> list[AttentionProblem]:
    """The problems that the last run on ``device`` did not come to, or not to the end of; ``tune(..., resume=True)``
    goes on with them."""
    profile = device if isinstance(device, DeviceProfile) else detect(device)
    return pending.load((cache or TuningCache()).directory(profile)).problems


def estimate(
    problems: Sequence[AttentionProblem],
    device: torch.device | str | DeviceProfile = "cpu",
    *,
    force: bool = False,
    cache: TuningCache | None = None,
    strategy: str = DEFAULT,
    rough: bool = False,
) -> list[dict[str, Any]]:
    """What :func:`tune` would measure, on a device of this machine or one of which only the profile is at hand: a dict
    a problem.

    ``problem``; ``status`` ("warm", "to tune" or "failed"); ``configs``, how many would be timed; ``legal``, of how
    many; ``pruned``, how many of these the cost model leaves out; ``seconds``, a guess; and ``message``. ``rough`` does
    without the cost model, which takes a while for many configs: nothing is pruned then.
    """
    profile = device if isinstance(device, DeviceProfile) else detect(device)
    where = torch.device("meta" if isinstance(device, DeviceProfile) else device)
    reporter, benches = Reporter(lambda event: None, Pace()), Benches(where, profile, None, False)
    run = _Run(Setup(where, profile, cache or TuningCache(), by_name(strategy), reporter, benches), force)
    return [run.estimate_one(problem, rough) for problem in distinct(problems)]


@dataclass
class _Run:
    setup: Setup
    force: bool = False
    listed: bool = True
    forced: set[str] = field(default_factory=set)  # keys of problems that an interrupted run was to measure anew
    pending: Pending | None = None  # what is left to do: by an interrupted run at first, then by this one
    planned: bool = False  # whether the lock is held and it is known what this run will do

    def tune_all(self, problems: list[AttentionProblem]) -> list[Result]:
        """One result a problem. The lock of the device is taken when there is something to measure."""
        if self.setup.resume and self.listed:
            self.pending = pending.load(self._directory)
            self.forced = {problem.key() for problem in self.pending.problems if self.pending.forced}
        results = []
        with contextlib.ExitStack() as stack:
            for index, problem in enumerate(problems):
                place = Place(problem, index, len(problems))
                if not self.planned and self.known(problem) is None:
                    stack.enter_context(self.alone(place))
                    self.plan(problems[index:], index)
                results.append(self.settle(place))
        return results

    def settle(self, place: Place) -> Result:
        """What becomes of a problem, and the event that says so."""
        pace, entry = self.setup.reporter.pace, self.known(place.problem)
        if entry is not None:
            result = Result(place.problem, "warm", 0, entry, "tuned before")
            if self.setup.resume:  # the interrupted run may have ended between storing the winner and tidying up
                discard(path_of(self._directory, place.problem.key()))
        elif pace.spent:
            message = f"the time budget of {pace.budget:g} s was spent"
            result = Result(place.problem, "skipped", 0, None, message)
        else:
            result = self.tune_one(place)
        pace.finish(place.index)
        if result.status != "tuned":
            self.setup.reporter.tell(result.status, place, result.message)
        if result.status != "skipped":
            self.strike_out(place.problem)
        return result

    def tune_one(self, place: Place) -> Result:
        """Search one problem and store the winner; what goes wrong is in the result."""
        return Single(self.setup, place.problem, lambda: self.strike_out(place.problem)).tune(place)

    def strike_out(self, problem: AttentionProblem) -> None:
        """Note that a problem is done with."""
        if self.pending is not None:
            self.pending.done(problem)

    def known(self, problem: AttentionProblem) -> Entry | None:
        """The entry that makes measuring needless: one that is served, and was measured with the driver of now."""
        if self.force or problem.key() in self.forced:
            return None
        entry = self.setup.cache.load(self.setup.profile, problem)
        if entry is None or needs_recheck(entry, self.setup.profile):
            return None
        return entry if serving(entry, registry.kernels(problem.op)) else None

    def estimate_one(self, problem: AttentionProblem, rough: bool = False) -> dict[str, Any]:
        """What :func:`estimate` says of one problem."""
        row: dict[str, Any] = {"problem": problem, "status": "to tune", "configs": 0, "legal": 0, "pruned": 0,
                               "seconds": 0.0, "message": ""}  # fmt: skip
        if self.known(problem) is not None:
            return {**row, "status": "warm"}
        try:
            return {**row, **Single(self.setup, problem).estimate(rough)}
        except NoKernelError as error:
            return {**row, "status": "failed", "message": str(error)}

    @property
    def _directory(self) -> Path:
        return self.setup.cache.directory(self.setup.profile)

    @contextlib.contextmanager
    def alone(self, place: Place) -> Iterator[None]:
        """Hold the lock of the device; tell where another process or other programs are in the way."""
        tell = self.setup.reporter.tell
        message = "another process is measuring on this device"
        with measuring_alone(self._directory.parent, lambda: tell("waiting", place, message)):
            if words := _busy_words(self.setup.device, self.setup.profile):
                tell("busy", place, f"{words}: {BUSY_ADVICE}")
            yield

    def plan(self, problems: Sequence[AttentionProblem], first: int) -> None:
        """Note what is to be done, on disk and for the time left. Whoever held the lock may have tuned some of it."""
        todo = [(index, problem) for index, problem in enumerate(problems, first) if self.known(problem) is None]
        self.planned = True
        if self.listed:
            forced = self.force or bool(self.forced)
            self.pending = Pending(self._directory / pending.FILE_NAME, [problem for _, problem in todo], forced)
            self.pending.save()
        pace = self.setup.reporter.pace
        for index, problem in todo:
            with contextlib.suppress(NoKernelError):
                pace.expect(index, Single(self.setup, problem).costs(rough=True))


def _busy_words(device: torch.device, profile: DeviceProfile) -> str:
    """What other programs do on a device that should be idle; "" where they do nothing, and where nobody can tell."""
    if device.type == "npu":
        return f"{', '.join(found)} on this NPU" if (found := npu_smi.others(device)) else ""
    foreign = foreign_cores(effort.BUSY_SECONDS) if device.type == "cpu" else None
    if foreign is None or foreign <= effort.BUSY_CORES:
        return ""
    return f"other programs use {foreign:.1f} of {profile.units} cores"
