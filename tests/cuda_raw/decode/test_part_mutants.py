"""Every fault in the table for append and combine is found, by the check that it is written for."""

from __future__ import annotations

import pytest

from faops.backends.cuda_raw.source import CSRC, Source
from tests.cuda_raw.decode.part_mutants import MUTANTS, SCENARIOS
from tests.cuda_raw.mutants import Mutant, WrongNumbers

pytestmark = pytest.mark.usefixtures("poisoned", "optimised", "emulator_here")

SAMPLE = {mutant.scenario for mutant in MUTANTS if mutant.sample}
BASES = sorted({(mutant.scenario, mutant.mode) for mutant in MUTANTS})


@pytest.mark.parametrize(
    ("scenario", "mode"), [pytest.param(*base, marks=[] if base[0] in SAMPLE else pytest.mark.full) for base in BASES]
)
def test_without_a_fault_nothing_is_found(scenario: str, mode: str) -> None:
    SCENARIOS[scenario](mode, None)


@pytest.mark.parametrize(
    "mutant", [pytest.param(m, marks=[] if m.sample else pytest.mark.full, id=m.name) for m in MUTANTS]
)
def test_mutant_is_caught(mutant: Mutant) -> None:
    applied: list[Source] = []

    def change(source: Source) -> Source:
        applied.append(mutant.apply(source))
        return applied[-1]

    expected = AssertionError if mutant.caught is WrongNumbers else mutant.caught
    with pytest.raises(expected) as caught:
        SCENARIOS[mutant.scenario](mutant.mode, change)
    assert caught.type is expected, str(caught.value)
    assert applied


def test_names_are_unique_and_texts_are_there() -> None:
    """A table that no longer fits the sources fails here, in the short run too."""
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)
    for mutant in MUTANTS:
        text = (CSRC / mutant.file).read_text(encoding="utf-8")
        assert text.count(mutant.old) == mutant.count, f"{mutant.name}: {mutant.file} has {text.count(mutant.old)}"
        assert mutant.new != mutant.old
