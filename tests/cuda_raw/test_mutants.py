"""Every fault in the table of mutants is found, by the check that it is written for, and only because of the fault."""

from __future__ import annotations

import math

import pytest
import torch

import faops
from faops import reference
from faops.backends.cuda_raw.source import CSRC, Source
from faops.registry import Config
from tests.cuda_raw.mutants import MUTANTS, SCENARIOS, Conflicts, Mutant, Scenario, WrongNumbers
from tests.cuda_raw.support import BACKEND, HALF, Launch, emulated
from tests.support import Case, check, cumulative, make_case, random_mask

pytestmark = pytest.mark.usefixtures("poisoned", "emulator_here")

SAMPLE = [mutant for mutant in MUTANTS if mutant.sample]
BASES = sorted({(mutant.card, mutant.scenario, mutant.mode) for mutant in MUTANTS})
SAMPLE_BASES = {(mutant.card, mutant.scenario, mutant.mode) for mutant in SAMPLE}


def run(scenario: str) -> None:
    """The scenario's call on the card that is emulated; AssertionError where its result is wrong."""
    if scenario == "packed":
        run_packed()
    else:
        check(case_of(SCENARIOS[scenario]), BACKEND, backward=False)


def case_of(scenario: Scenario) -> Case:
    case = make_case(*scenario.features, dtype=HALF, **scenario.shape)
    case.options.update(scenario.options)
    full = (case.batch, case.heads_q, case.seqlen_q, case.seqlen_k)
    if "bias" in scenario.features:  # rows two elements longer than they need be: their pairs are aligned
        case.options["bias"] = torch.randn(*full[:-1], full[-1] + full[-1] % 2).half()[..., : full[-1]]
    if "mask" in scenario.features:
        case.options["mask"] = random_mask(full)
    return case


def run_packed() -> None:
    """Sequences of fixed lengths: random ones may happen to hide a fault."""
    q, k, v = (torch.randn(total, 2, 64).half() for total in (120, 183, 183))  # 20 rows belong to no sequence
    offsets = cumulative([5, 65, 0, 30]), cumulative([20, 70, 3, 90])
    options = {"causal": True, "return_lse": True}
    out, lse = faops.attention_varlen(q, k, v, *offsets, 65, 90, backend=BACKEND, **options)
    exact, exact_lse = reference.attention_varlen(q[:100], k, v, *offsets, causal=True)
    torch.testing.assert_close(out[:100].double(), exact, atol=2e-3, rtol=2e-3)
    torch.testing.assert_close(lse[:, :100].double(), exact_lse, atol=1e-5, rtol=1e-5)
    assert torch.equal(out[100:], torch.zeros(20, 2, 64).half())
    assert torch.equal(lse[:, 100:], torch.full((2, 20), -math.inf))


def config_of(scenario: str) -> Config | None:
    return None if scenario == "packed" else SCENARIOS[scenario].config


@pytest.mark.parametrize(
    ("card", "scenario", "mode"),
    [pytest.param(*base, marks=[] if base in SAMPLE_BASES else pytest.mark.full) for base in BASES],
)
def test_without_a_fault_nothing_is_found(card: str, scenario: str, mode: str) -> None:
    with emulated(card, config_of(scenario), mode) as launches:
        run(scenario)
    if mode == "counters":
        assert conflicts(launches) == 0


@pytest.mark.parametrize(
    "mutant", [pytest.param(m, marks=[] if m.sample else pytest.mark.full, id=m.name) for m in MUTANTS]
)
def test_mutant_is_caught(mutant: Mutant) -> None:
    applied: list[Source] = []

    def change(source: Source) -> Source:
        applied.append(mutant.apply(source))
        return applied[-1]

    with emulated(mutant.card, config_of(mutant.scenario), mutant.mode, change) as launches:
        if mutant.caught is Conflicts:
            run(mutant.scenario)
            assert conflicts(launches) > 0
        elif mutant.caught is WrongNumbers:
            with pytest.raises(AssertionError):
                run(mutant.scenario)
        else:
            with pytest.raises(mutant.caught) as caught:
                run(mutant.scenario)
            assert caught.type is mutant.caught, str(caught.value)
    assert applied


def conflicts(launches: list[Launch]) -> int:
    """Wavefronts that bank conflicts added."""
    counters = [launch.report.counters for launch in launches]
    assert counters and all(counters)
    return sum(site.conflicts for counted in counters if counted for site in counted.shared)


def test_names_are_unique_and_texts_are_there() -> None:
    """A table that no longer fits the sources fails here, in the short run too."""
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)
    for mutant in MUTANTS:
        assert mutant.scenario in SCENARIOS or mutant.scenario == "packed"
        text = (CSRC / mutant.file).read_text(encoding="utf-8")
        assert text.count(mutant.old) == mutant.count, f"{mutant.name}: {mutant.file} has {text.count(mutant.old)}"
        assert mutant.new != mutant.old
