"""A tuning process killed at random moments: nothing that it measured is lost, and nothing is spoilt."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import select
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from faops import registry
from faops.autotune import tuner
from faops.autotune.cache import TuningCache
from faops.autotune.effort import Budget
from faops.autotune.recording import journal
from faops.autotune.search.candidates import Candidate
from faops.autotune.tuner.events import Event
from faops.device import DeviceProfile
from faops.problem import AttentionProblem

from ..support import PROBLEM, FakeBench, FakeKernel, steady

pytestmark = [
    pytest.mark.usefixtures("only_fakes"),
    pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are made by forking"),
]

KILLS = 100, 15  # in the long run, in the short one
LONGEST_LIFE = 0.04  # seconds of measuring: about two problems
SAMPLE_SECONDS = 0.3e-3
PROBLEMS = [replace(PROBLEM, batch=2**power, head_dim=dim) for power in range(4) for dim in (64, 128)]
Tried = tuple[int, str]  # which problem, which config


class Steady(FakeBench):
    """Blocks take times of their own, which are the same in every process."""

    def __init__(self, problem: AttentionProblem, pause: float) -> None:
        super().__init__(lambda item: steady(1.0 - 0.05 * (item.config.integer("block") * problem.batch % 7)))
        self.pause = pause

    def sample(self, item: Candidate, budget: Budget) -> list[float]:
        time.sleep(self.pause)
        return super().sample(item, budget)


@dataclass
class Life:
    """A process that tunes, and says of each measurement that it was told of, until it is killed."""

    cache: TuningCache
    tried: Counter[Tried] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        ours, theirs = os.pipe()
        self.process = os.fork()
        if self.process == 0:
            with contextlib.suppress(BaseException):
                os.close(ours)
                self._live(theirs)
            os._exit(0)
        os.close(theirs)
        self.lines = ours

    def _live(self, lines: int) -> None:
        def tell(event: Event) -> None:
            if event.kind == "measured":
                os.write(lines, f"{event.index}|{event.message}\n".encode())

        def make(problem: AttentionProblem, *rest: Any) -> Steady:
            return Steady(problem, SAMPLE_SECONDS)

        tuner.tune(PROBLEMS, cache=self.cache, resume=True, on_event=tell, make_bench=make)

    def end(self, seconds: float) -> bool:
        """Let it live so long after its first measurement, kill it, and hear what it said; whether it had finished."""
        assert select.select([self.lines], [], [], 30.0)[0], "it never began to measure"
        time.sleep(seconds)
        os.kill(self.process, signal.SIGKILL)
        _, status = os.waitpid(self.process, 0)
        said = b"".join(iter(lambda: os.read(self.lines, 1 << 16), b"")).decode()
        os.close(self.lines)
        for line in said.split("\n")[:-1]:
            index, config = line.split("|")
            self.tried[int(index), config] += 1
        return os.WIFEXITED(status)


def recorded(cache: TuningCache, device: DeviceProfile) -> Counter[Tried]:
    """The timings in journals."""
    found: Counter[Tried] = Counter()
    for index, problem in enumerate(tuner.distinct(PROBLEMS)):
        with contextlib.suppress(FileNotFoundError):
            _, records = journal.read(journal.path_of(cache.directory(device), problem.key()))
            found.update((index, f"{item.kernel} [{item.config}]") for item in records if item.budget is not None)
    return found


def assert_nothing_is_lost(life: Life, device: DeviceProfile) -> None:
    entries = {entry.key: entry for entry in life.cache.entries(device)}  # a warning would be an error
    in_journals = recorded(life.cache, device)
    for (index, config), count in life.tried.items():
        entry = entries.get(PROBLEMS[index].key())
        if entry is None:
            assert count <= in_journals[index, config], f"{config} of problem {index} was measured and is lost"
        else:
            assert config in {f"{timing.kernel} [{timing.config}]" for timing in entry.timings}


def outcomes(cache: TuningCache, device: DeviceProfile) -> dict[str, dict[str, Any]]:
    return {entry.key: {**entry.as_dict(), "date": ""} for entry in cache.entries(device)}


@pytest.fixture
def fresh(tmp_path: Path) -> Callable[[], TuningCache]:
    numbers = itertools.count()
    return lambda: TuningCache(tmp_path / f"cache-{next(numbers)}")


@pytest.mark.parametrize("kills", [pytest.param(KILLS[0], marks=pytest.mark.full), KILLS[1]])
def test_kills(kills: int, fresh: Callable[[], TuningCache], kernel: FakeKernel, cpu: DeviceProfile) -> None:
    make: Callable[..., Steady] = lambda problem, *rest: Steady(problem, 0)  # noqa: E731
    unmolested, cache = fresh(), fresh()
    expected = tuner.tune(PROBLEMS, cache=unmolested, make_bench=make)  # here, so that children find all imported

    in_the_middle = 0
    for _ in range(kills):
        life = Life(cache)
        finished = life.end(random.uniform(0, LONGEST_LIFE))
        assert_nothing_is_lost(life, cpu)
        in_the_middle += bool(recorded(cache, cpu))
        if finished or len(cache.entries(cpu)) == len(PROBLEMS):
            cache = fresh()
    assert in_the_middle > kills / (2 if kills == KILLS[0] else 5)  # about three quarters, and few kills vary more

    kept = Counter[int]()
    for (index, _), count in recorded(cache, cpu).items():
        kept[index] += count
    done = {entry.key for entry in cache.entries(cpu)}
    results = tuner.tune(PROBLEMS, cache=cache, make_bench=make, resume=True)
    for index, (result, whole) in enumerate(zip(results, expected)):
        assert result.measurements == (0 if result.problem.key() in done else whole.measurements - kept[index])
    assert outcomes(cache, cpu) == outcomes(unmolested, cpu)
    assert tuner.unfinished("cpu", cache) == []
    assert list(cache.directory(cpu).glob("journal/*.jsonl")) == []
    assert registry.get(kernel.id) is kernel
