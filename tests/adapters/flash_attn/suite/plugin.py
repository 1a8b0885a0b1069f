"""The pytest plugin for a run of one file of flash-attn's tests: faops for flash-attn, the CPU for CUDA, a sample.

``__main__`` passes what it should do in the environment variable ``SETTING``, as JSON, and reads the counts from the
file that it names.
"""

from __future__ import annotations

import builtins
import json
import os
import sys
from collections.abc import Generator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from faops.adapters import flash_attn
from faops.errors import NoKernelError
from tests.adapters.flash_attn.suite import cpu, left_out, sample

SETTING = "FAOPS_FLASH_ATTN_SUITE"
REPEATS = 50  # loops of so many rounds and more look for races between a GPU's threads
ROUNDS = 2  # what is left of them


@dataclass
class Job:
    """One file's run."""

    file: str  # within the checkout
    path: str
    sample: int
    seed: int
    most_scores: int
    only: str
    backend: str
    report: str


@dataclass
class Counts:
    """What became of one test function."""

    total: int = 0
    small: int = 0
    passed: int = 0
    failed: int = 0
    skipped: dict[str, int] = field(default_factory=dict)


def pytest_configure(config: pytest.Config) -> None:
    job = Job(**json.loads(os.environ[SETTING]))
    patch = pytest.MonkeyPatch()
    config.add_cleanup(patch.undo)
    cpu.pretend(patch)
    flash_attn.install(force=True)
    sys.path.append(str(Path(job.path).parent))  # the suite's helper modules lie beside it
    config.pluginmanager.register(Run(job), "faops-flash-attn-suite")


class Run:
    """Hooks of one run."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.counts: dict[str, Counts] = {}
        self.failures: list[tuple[str, str]] = []
        self._shares: dict[str, sample.Share] | None = None

    @pytest.hookimpl(tryfirst=True)
    def pytest_pycollect_makeitem(self, collector: Any, name: str, obj: Any) -> list[Any] | None:
        """Thin out a test function before pytest makes tests of it; nothing drawn makes no test."""
        if not (isinstance(collector, pytest.Module) and name.startswith("test_")):
            return None
        if self._shares is None:
            self._shares = self._draw(collector.obj)
            vars(collector.obj)["range"] = fewer_rounds
        share = self._shares.get(name)
        if share is None or not share.drawn:
            return []
        sample.apply(obj, share)
        return None

    def _draw(self, module: ModuleType) -> dict[str, sample.Share]:
        job, without = self.job, left_out.LEFT_OUT.get(self.job.file, {})
        tests = {name: test for name, test in vars(module).items() if name not in without and job.only in name}
        shares = sample.draw(tests, job.sample, job.seed, self._may_draw)
        self.counts = {name: Counts(share.total, share.small) for name, share in shares.items()}
        return shares

    def _may_draw(self, name: str, parameters: sample.Parameters) -> bool:
        return sample.scores(parameters) <= self.job.most_scores and left_out.drawn(self.job.file, name, parameters)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, Any, Any]:
        with cpu.CudaIsCpu():
            return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
        """What a forced backend has no kernel for is skipped, not failed."""
        report = yield
        if self.job.backend and call.excinfo is not None and call.excinfo.errisinstance(NoKernelError):
            report.outcome = "skipped"
            report.longrepr = (str(item.path), 0, f"no {self.job.backend} kernel for it")
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        counts = self.counts.get(report.location[2].partition("[")[0])
        if counts is None:
            return
        if report.skipped:
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
            reason = reason.removeprefix("Skipped: ") or "by the suite"
            counts.skipped[reason] = counts.skipped.get(reason, 0) + 1
        elif report.failed:
            counts.failed += 1
            self.failures.append((report.nodeid, str(report.longrepr)))
        elif report.when == "call":
            counts.passed += 1

    def pytest_sessionfinish(self) -> None:
        counts = {name: asdict(count) for name, count in self.counts.items()}
        found = {"functions": counts, "failures": self.failures, "left_out": left_out.notes(self.job.file)}
        Path(self.job.report).write_text(json.dumps(found))


def fewer_rounds(*bounds: int) -> range:
    """The ``range`` of the suite: loops of ``REPEATS`` rounds and more make ``ROUNDS``."""
    wanted = builtins.range(*bounds)
    return wanted[:ROUNDS] if len(wanted) >= REPEATS else wanted
