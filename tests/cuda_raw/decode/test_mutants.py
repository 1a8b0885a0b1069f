"""Every fault in the table for attention over a KV cache is found, by the check that it is written for."""

from __future__ import annotations

import pytest

from faops.backends.cuda_raw.source import CSRC, Source
from tests import kvcache
from tests.cuda_raw.decode.mutants import MUTANTS, SCENARIOS
from tests.cuda_raw.decode.support import KERNELS
from tests.cuda_raw.mutants import Conflicts, Mutant, WrongNumbers
from tests.cuda_raw.support import BACKEND, Launch, emulated

pytestmark = pytest.mark.usefixtures("poisoned", "emulator_here")

SAMPLE = {(mutant.card, mutant.scenario, mutant.mode) for mutant in MUTANTS if mutant.sample}
BASES = sorted({(mutant.card, mutant.scenario, mutant.mode) for mutant in MUTANTS})


def run(scenario: str) -> None:
    kvcache.check(SCENARIOS[scenario].call(), BACKEND, scenario)


@pytest.mark.full
@pytest.mark.parametrize(("card", "scenario", "mode"), BASES)
def test_without_a_fault_nothing_is_found(card: str, scenario: str, mode: str) -> None:
    with emulated(card, SCENARIOS[scenario].config, mode, kernels=KERNELS) as launches:
        run(scenario)
    if mode == "counters":
        assert conflicts(launches) == 0


@pytest.mark.parametrize(
    "mutant", [pytest.param(m, marks=[] if m.sample else pytest.mark.full, id=m.name) for m in MUTANTS]
)
def test_mutant_is_caught(mutant: Mutant) -> None:
    applied: list[Source] = []

    def change(source: Source) -> Source:
        if source.entry != "attention_decode":
            return source
        applied.append(mutant.apply(source))
        return applied[-1]

    config = SCENARIOS[mutant.scenario].config
    with emulated(mutant.card, config, mutant.mode, change, KERNELS) as launches:
        if mutant.caught is Conflicts:
            run(mutant.scenario)
            assert conflicts(launches) > 0
        else:
            expected = AssertionError if mutant.caught is WrongNumbers else mutant.caught
            with pytest.raises(expected) as caught:
                run(mutant.scenario)
            assert caught.type is expected, str(caught.value)
    assert applied


def conflicts(launches: list[Launch]) -> int:
    """Wavefronts that bank conflicts added."""
    counters = [launch.report.counters for launch in launches]
    assert counters and all(counters)
    return sum(counted.conflicts for counted in counters if counted)


def test_names_are_unique_and_texts_are_there() -> None:
    """A table that no longer fits the sources fails here, in the short run too."""
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)
    for mutant in MUTANTS:
        text = (CSRC / mutant.file).read_text(encoding="utf-8")
        assert text.count(mutant.old) == mutant.count, f"{mutant.name}: {mutant.file} has {text.count(mutant.old)}"
        assert mutant.new != mutant.old
