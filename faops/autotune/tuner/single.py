"""Tuning one problem: its candidates, its search with a journal beside it, and the entry that comes of it."""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from faops import dispatch, registry
from faops._version import __version__
from faops.autotune import effort
from faops.autotune.cache import TuningCache, environment, lookup
from faops.autotune.cache.entry import Entry, problem_dict
from faops.autotune.measurement.remote import call_seconds
from faops.autotune.recording.journal import Journal, JournaledBench, header_of, path_of, resumable
from faops.autotune.search.candidates import Candidate, Space, space, unranked
from faops.autotune.search.finals import Outcome
from faops.autotune.search.strategies import planned, search
from faops.autotune.search.strategy import Strategy
from faops.autotune.search.trial import QUARANTINED, Drop
from faops.autotune.tuner.benches import Benches, Patient, kernels_of
from faops.autotune.tuner.events import Kind, Result
from faops.autotune.tuner.pace import timing_seconds
from faops.autotune.tuner.reporting import Place, Progress, Reporter
from faops.device import DeviceProfile
from faops.errors import CacheError, FaopsError, TuningError
from faops.problem import AttentionProblem
from faops.registry import Kernel


@dataclass
class Setup:
    """What all problems of a run have in common."""

    device: torch.device
    profile: DeviceProfile
    cache: TuningCache
    strategy: Strategy
    reporter: Reporter
    benches: Benches
    resume: bool = False


@dataclass
class Single:
    """One problem of a run. ``on_stored`` is called when its winner is stored and its journal is still there."""

    setup: Setup
    problem: AttentionProblem
    on_stored: Callable[[], None] = lambda: None

    def tune(self, place: Place) -> Result:
        """Search and store the winner; what goes wrong is in the result."""
        try:
            outcome, bench = self._search(place)
            entry = self._entry(outcome, bench.clocks)
        except FaopsError as error:
            return Result(self.problem, "failed", 0, None, str(error))
        entry, message = self._store(entry)
        if entry.path is not None:
            self.on_stored()
            bench.journal.remove()
        self._tell("problem_done", place, message, outcome.measurements, outcome.winner.p50)
        return Result(self.problem, "tuned", outcome.measurements - bench.reused, entry, message)

    # ------------------------------------------------------------------------------------------ candidates

    @cached_property
    def accepted(self) -> list[Kernel]:
        """The kernels that run the problem. Raises NoKernelError when there is none."""
        return dispatch.runnable(registry.kernels(self.problem.op), self.problem, self.setup.profile)

    @cached_property
    def space(self) -> Space:
        """The candidates. Raises NoKernelError when no kernel accepts the problem."""
        near = lookup(self.problem, self.setup.profile, self.accepted, self.setup.cache.root)
        known = [Candidate(near.kernel, near.config)] if near else []
        barred = {item["config"] for item in self.quarantine}
        return space(self.problem, self.setup.profile, self.accepted, known, barred)

    @cached_property
    def quarantine(self) -> tuple[dict[str, str], ...]:
        """What crashed or hung when this problem was tuned before, of kernels whose code is still the same."""
        entry = self.setup.cache.load(self.setup.profile, self.problem)
        if entry is None:
            return ()
        sources = {kernel.source_hash() for kernel in registry.kernels(self.problem.op)}
        return tuple(
            item for item in entry.dropped if item.get("kind") in QUARANTINED and item.get("source") in sources
        )

    def costs(self, rough: bool = False) -> list[float]:
        """Expected seconds of each timing; ``rough`` does without the cost model, which takes a while for many
        configs. Raises NoKernelError when no kernel accepts the problem."""
        return self._costs_in(self._found(rough))

    def _found(self, rough: bool) -> Space:
        return unranked(self.problem, self.setup.profile, self.accepted) if rough else self.space

    def _costs_in(self, found: Space) -> list[float]:
        call = call_seconds(self.problem, self.setup.profile)
        if found.defaults:
            call = found.predicted.get(found.defaults[0], call)
        rounds = planned(self.setup.strategy, found)
        recorded = self.setup.profile.torch_type == "npu" and not self.setup.benches.simulated
        return [timing_seconds(budget, call, recorded) for count, budget in rounds for _ in range(count)]

    def estimate(self, rough: bool = False) -> dict[str, Any]:
        """What tuning would measure, see :func:`faops.autotune.tuner.estimate`. Raises NoKernelError."""
        found = self._found(rough)
        return {
            "configs": len(self.setup.strategy.shortlist(found).chosen),
            "legal": len(found) + len(found.pruned),
            "pruned": len(found.pruned),
            "seconds": effort.WARMUP_SECONDS + sum(self._costs_in(found)),
        }

    # ------------------------------------------------------------------------------------------ search

    def _search(self, place: Place) -> tuple[Outcome, JournaledBench]:
        """What the search found, and the bench that answered it."""
        setup = self.setup
        costs = self.costs()
        setup.reporter.pace.expect(place.index, costs)
        progress = Progress(setup.reporter, place, len(costs))
        progress.tell("problem_started", "")
        for item in self.quarantine:
            progress.tell("quarantined", f"{item['config']} is not tried again: {item['reason']}")
        setup.reporter.wait_for_leave()  # to start a process, and to make inputs on the device
        real = Patient(setup.benches.bench(self.problem), setup.reporter.wait_for_leave)
        outsiders = setup.benches.outsiders(kernels_of(self.space))
        if outsiders:
            progress.tell("unisolated", f"a fresh process does not know {', '.join(outsiders)}")
        header = header_of(self.problem, setup.profile, self.space, setup.strategy.name)
        path = path_of(setup.cache.directory(setup.profile), self.problem.key())
        records = resumable(path, header) if setup.resume else []
        if records:
            progress.tell("resumed", f"{len(records)} timings and checks of an interrupted run count")
        with contextlib.closing(Journal(path, header, records)) as journal:
            bench = JournaledBench(real, journal, records)
            feed = setup.benches.feed(self.problem, self.space)
            hurry = setup.reporter.pace.is_spent
            setup.reporter.pace.begin()
            outcome = search(self.space, bench, setup.strategy, progress, hurry, feed)
        return outcome, bench

    def _tell(self, kind: Kind, place: Place, message: str, done: int, best: float) -> None:
        self.setup.reporter.pace.finish(place.index)
        self.setup.reporter.tell(kind, place, message, done, done, best)

    # ------------------------------------------------------------------------------------------ entry

    def _entry(self, outcome: Outcome, clocks: dict[str, Any]) -> Entry:
        kernel = registry.get(outcome.winner.kernel)
        if kernel is None:
            raise TuningError(f"kernel {outcome.winner.kernel} was removed while it was measured")
        return Entry(
            key=self.problem.key(),
            problem=problem_dict(self.problem),
            device=self.setup.profile.identity,
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
            dropped=(*map(_dropped, outcome.drops), *self.quarantine),
            measurements=outcome.measurements,
            faops_version=__version__,
            date=datetime.date.today().isoformat(),
            strategy=self.setup.strategy.name,
            pruned=len(self.space.pruned),
            decision=outcome.decision,
            driver=environment.driver(self.setup.profile.vendor),
            clocks=clocks,
        )

    def _store(self, entry: Entry) -> tuple[Entry, str]:
        words = "the default stays" if entry.is_default else f"{entry.speedup:.2f}x over the default"
        try:
            stored = self.setup.cache.store(self.setup.profile, entry)
        except CacheError as error:
            return entry, f"{words}; not stored: {error}"
        dispatch.forget()  # this process uses the new winner from now on
        return stored, words


def _dropped(drop: Drop) -> dict[str, str]:
    """A drop as an entry keeps it."""
    source = drop.candidate.kernel.source_hash()
    return {"config": str(drop.candidate), "reason": drop.reason, "kind": drop.kind, "source": source}
