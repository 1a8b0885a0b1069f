"""Running the tuner: progress while it goes on, what is kept after Ctrl-C, the results and the report at its end."""

from __future__ import annotations

import shlex
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..cache.words import waiting_words
from ..output import print_json, print_line
from ..progress import reporter
from . import page_sizes
from .results import as_dict, print_results, unsaved

# Names of faops.autotune.search.strategies, the default first: written down here because importing them imports torch.
STRATEGIES = ("halving", "random", "exhaustive")

if TYPE_CHECKING:
    import torch

    from faops.autotune.cache import TuningCache
    from faops.autotune.tuner.events import Event, Result
    from faops.device import DeviceProfile
    from faops.problem import AttentionProblem


@dataclass(frozen=True)
class Wishes:
    """How a run is to go about it. ``workload`` are the words of the command line that name the problems."""

    workload: list[str]
    device: str | None
    force: bool
    time_budget: float | None
    strategy: str
    resume: bool
    isolate: bool
    report: Path | None
    as_json: bool

    def resuming_command(self) -> str:
        """The command that goes on with this run once it was interrupted.

        What is left to do, and whether to measure it anew, the run has written down. Only a report needs the workload:
        it is to have the finished problems too.
        """
        words = ["faops", "tune", *(self.workload if self.report else []), "--resume"]
        words += ["--device", self.device] if self.device else []
        words += ["--strategy", self.strategy] if self.strategy != STRATEGIES[0] else []
        words += ["--no-isolate"] if not self.isolate else []
        words += ["--time-budget", f"{self.time_budget:g}"] if self.time_budget is not None else []
        words += ["--report", str(self.report)] if self.report else []
        return shlex.join(words)


@dataclass
class Tally:
    """Counts what a run has finished, for the case that it is interrupted."""

    total: int
    begun: bool = False
    finished: int = 0
    timings: int = 0  # of the problem in work

    def note(self, event: Event) -> None:
        if event.kind == "problem_started":
            self.begun = True
        elif event.kind == "measured":
            self.timings = event.done
        elif event.kind in ("problem_done", "warm"):
            self.finished, self.timings = self.finished + 1, 0


def run(problems: list[AttentionProblem], where: torch.device, wishes: Wishes) -> None:
    """Tune the problems and print what was found. Exits with 1 when a problem failed or a winner was not stored."""
    from faops.autotune import report, tuner
    from faops.autotune.cache import TuningCache, misses
    from faops.device import detect

    if wishes.report is not None:
        report.check_path(wishes.report)
    cache, profile, start = TuningCache(), detect(where), time.monotonic()
    tally = Tally(len(tuner.distinct(problems)))
    try:
        with reporter(wishes.as_json) as show:

            def on_event(event: Event) -> None:
                tally.note(event)
                show(event)

            results = tuner.tune(
                problems, where, force=wishes.force, time_budget=wishes.time_budget, on_event=on_event, cache=cache,
                strategy=wishes.strategy, resume=wishes.resume, isolate=wishes.isolate,
            )  # fmt: skip
    except KeyboardInterrupt:
        click.echo(_kept(tally, where, cache, wishes), err=True)
        raise
    finally:
        waiting = misses.settle(cache, profile.identity)
    _print(results, where, cache, profile, time.monotonic() - start, waiting, wishes)
    if wishes.report is not None:
        write_report(results, wishes.report, profile)
        click.echo(f"the report is {wishes.report}", err=wishes.as_json)
    if any(result.status == "failed" or unsaved(result) for result in results):
        raise click.exceptions.Exit(1)


def _kept(tally: Tally, where: torch.device, cache: TuningCache, wishes: Wishes) -> str:
    """What an interrupted run has kept, and how to go on with it."""
    from faops.autotune import tuner

    if tally.finished == tally.total:
        return "all problems were tuned already"
    if tuner.unfinished(where, cache):
        timings = f", and {tally.timings} timings of the next one are kept" if tally.timings else ""
        done = f"{tally.finished} of {tally.total} problems are tuned and stored{timings}"
        return f"{done}; go on with: {wishes.resuming_command()}"
    if tally.begun:
        return f"what was measured could not be written to {cache.root}; `faops doctor cache` says more"
    return "nothing was measured yet; the same command begins again"


def write_report(results: list[Result], path: Path, profile: DeviceProfile) -> None:
    """Write the report of a run: its entries, and the problems that have none."""
    from faops.autotune import report

    entries = [result.entry for result in results if result.entry is not None]
    notes = [(str(result.problem), f"{result.status}: {result.message}") for result in results if result.entry is None]
    report.write(entries, path, [profile], notes)


def _print(
    results: list[Result],
    where: torch.device,
    cache: TuningCache,
    profile: DeviceProfile,
    elapsed: float,
    waiting: int,
    wishes: Wishes,
) -> None:
    directory = str(cache.directory(profile))
    if wishes.as_json:
        print_json(
            "tune",
            device=str(where),
            path=directory,
            strategy=wishes.strategy,
            seconds=elapsed,
            measurements=sum(result.measurements for result in results),
            problems=[as_dict(result) for result in results],
            page_sizes=[page_sizes.as_dict(found) for found in page_sizes.comparisons(results)],
            misses_waiting=waiting,
            report=None if wishes.report is None else str(wishes.report),
        )
        return
    print_results(results, directory, elapsed)
    if any(result.status == "skipped" for result in results):
        print_line(f"go on with: {wishes.resuming_command()}")
    if waiting:
        print_line(waiting_words(waiting))
