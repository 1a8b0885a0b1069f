"""Compiling ahead: what is ready is timed, what does not compile or spills is dropped, and the reserve steps in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from faops.autotune import effort, model
from faops.autotune.cache.entry import Timing
from faops.autotune.model import Prediction
from faops.autotune.search import ahead
from faops.autotune.search.ahead import Ahead, Compiled
from faops.autotune.search.candidates import Candidate, Space
from faops.autotune.search.halving import Halving
from faops.autotune.search.strategies import search
from faops.autotune.search.trial import Drop, Watch
from faops.device import DeviceProfile, known
from faops.errors import CompileError, CrashedError, TuningError
from faops.footprint import Resources
from faops.problem import AttentionProblem
from faops.registry import Config

from ..support import PROBLEM, FakeBench, FakeKernel, steady

H200 = known("h200")
KERNEL = FakeKernel(blocks=60)
SLIM = Resources(registers=64, spill_bytes=0, shared_bytes=1024)
SPILLED = Resources(registers=255, spill_bytes=400, shared_bytes=1024)


def candidate(block: int) -> Candidate:
    return Candidate(KERNEL, Config(block=block))


SPACE = Space((candidate(0),), (candidate(59),), tuple(candidate(block) for block in range(1, 59)))
CHOSEN = {0, 59, *range(1, effort.MAX_CONFIGS - 1)}
RESERVE = range(effort.MAX_CONFIGS - 1, effort.MAX_CONFIGS - 1 + effort.COMPILE_RESERVE)


@dataclass
class FakePool:
    """Compiles the last candidate first. ``results`` by block; after ``lasts`` results the pool is gone."""

    results: dict[int, Compiled] = field(default_factory=dict)
    lasts: int = 1000
    asked: list[Candidate] = field(default_factory=list)
    closed: bool = False

    def compiled(
        self, problem: AttentionProblem, profile: DeviceProfile, candidates: Sequence[Candidate]
    ) -> Iterator[tuple[Candidate, Compiled]]:
        assert (problem, profile) == (PROBLEM, H200)
        self.asked = list(candidates)
        try:
            for item in self.asked[::-1]:
                self.lasts -= 1
                if self.lasts < 0:
                    raise TuningError("no process can be started")
                yield item, self.results.get(item.config.integer("block"), SLIM)
        finally:
            self.closed = True


class Witness(Watch):
    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []

    def timed(self, done: int, timing: Timing) -> None:
        self.told.append(("timed", timing.config.integer("block")))

    def compiled(self, done: int, total: int) -> None:
        self.told.append(("compiled", done, total))


@pytest.fixture(autouse=True)
def spills_rule_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cost model, for a kernel it knows: what spills must not be timed, and of the rest the last is the best."""

    def predict(
        kernel: Any, problem: Any, device: Any, config: Config, resources: Resources | None = None
    ) -> Prediction:
        obstacle = "spills 400 bytes" if resources is not None and resources.spill_bytes else ""
        return Prediction(1.0 / (1 + config.integer("block")), 1, 1.0, "compute", obstacle)

    def rank(found: Sequence[Candidate], *rest: Any) -> Any:
        return [(item, predict(None, None, None, item.config)) for item in sorted(found, key=str, reverse=True)], []

    monkeypatch.setattr(ahead.model, "predict", predict)
    monkeypatch.setattr(ahead.model, "rank", rank)


def run(pool: FakePool, **options: Any) -> tuple[list[int], list[Drop], Witness]:
    """Which blocks were timed in the first round, what was dropped, and what was told."""
    bench, witness = FakeBench(lambda item: steady(1.0)), Witness()
    trusting = Halving(doubt=1000)  # takes the first ones, with nothing drawn at random
    outcome = search(SPACE, bench, trusting, watch=witness, feed=Ahead(pool, PROBLEM, H200), **options)
    quick = [item.config.integer("block") for item, budget in bench.timed if budget is effort.QUICK]
    return quick, outcome.drops, witness


def test_the_chosen_ones_are_timed_as_they_are_compiled() -> None:
    pool = FakePool()
    quick, drops, witness = run(pool)
    assert [item.config.integer("block") for item in pool.asked] == [0, 59, *range(1, RESERVE[-1] + 1)]
    assert set(quick) == CHOSEN and len(quick) == effort.MAX_CONFIGS
    assert quick[0] == RESERVE[0] - 1  # the last of the chosen was ready first
    assert drops == []
    told = [word for word in witness.told if word[0] == "compiled"]
    assert told == [("compiled", done, 40) for done in range(1, 41)]
    first = witness.told.index(("timed", quick[0]))
    assert witness.told[first - 1] == ("compiled", 9, 40)  # timed while the rest was compiling
    assert pool.closed


def test_what_does_not_compile_or_spills_is_dropped_and_the_reserve_steps_in() -> None:
    pool = FakePool(
        {3: CompileError("no such instruction"), 4: SPILLED, 5: CrashedError("SIGSEGV"), RESERVE[-1]: SPILLED}
    )
    quick, drops, _ = run(pool)
    assert {(drop.candidate.config.integer("block"), drop.kind) for drop in drops} == {
        (3, "uncompiled"), (4, "spilled"), (5, "crashed"), (RESERVE[-1], "spilled")
    }  # fmt: skip
    assert next(drop.reason for drop in drops if drop.kind == "spilled") == "spills 400 bytes"
    assert len(quick) == effort.MAX_CONFIGS
    assert set(quick) == (CHOSEN - {3, 4, 5}) | {RESERVE[-2], RESERVE[-3], RESERVE[-4]}  # the best by the model


def test_defaults_and_known_winners_may_spill() -> None:
    quick, drops, _ = run(FakePool({0: SPILLED, 59: SPILLED}))
    assert {0, 59} <= set(quick)
    assert drops == []


def test_kernels_that_compile_nothing_are_timed() -> None:
    quick, drops, _ = run(FakePool(dict.fromkeys(range(60), None)))
    assert set(quick) == CHOSEN
    assert drops == []


@pytest.mark.parametrize("lasts", [0, 20])
def test_without_processes_all_are_timed_and_compile_then(lasts: int) -> None:
    quick, drops, _ = run(FakePool(lasts=lasts))
    assert set(quick) == CHOSEN and len(quick) == len(CHOSEN)
    assert drops == []


def test_when_the_time_is_up_nothing_more_is_compiled() -> None:
    pool = FakePool()
    bench = FakeBench(lambda item: steady(1.0))
    search(
        SPACE, bench, feed=Ahead(pool, PROBLEM, H200), hurry=lambda: candidate(0) in [item for item, _ in bench.timed]
    )
    assert pool.closed


def test_the_model_is_told_what_was_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[Candidate, Resources] = {}

    def rank(found: Sequence[Candidate], problem: Any, device: Any, resources: dict[Candidate, Resources]) -> Any:
        seen.update(resources)
        return [(item, None) for item in found], []

    monkeypatch.setattr(model, "rank", rank)
    quick, _, _ = run(FakePool({3: SPILLED}))
    assert seen[candidate(RESERVE[0])] == SLIM
    assert quick[-1] == RESERVE[0]
