"""The space of a problem: which candidates there are, in which order, and which are left out."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest

from faops.autotune.search import candidates
from faops.autotune.search.candidates import Candidate, Space, ranked, space, unranked
from faops.device import DeviceProfile, known
from faops.problem import AttentionProblem
from faops.registry import Config

from ..support import PROBLEM, FakeKernel

H200 = known("h200")


@dataclass
class Said:
    """What a cost model says of a candidate."""

    seconds: float
    obstacle: str = ""


def candidate(block: int, kernel: FakeKernel) -> Candidate:
    return Candidate(kernel, Config(block=block))


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model for which small blocks are slow and odd ones impossible; it knows nothing of kernels called "other"."""

    def rank(found: list[Candidate], problem: AttentionProblem, device: DeviceProfile) -> tuple[list, list]:
        said = [
            (item, None if item.kernel.name == "other" else Said(1 / (1 + block), "odd" if block % 2 else ""))
            for item in found
            if (block := item.config.integer("block")) >= 0
        ]
        hopeful = [(item, word) for item, word in said if word is None or not word.obstacle]
        hopeful.sort(key=lambda pair: pair[1].seconds if pair[1] else 0.0)
        return hopeful, [(item, word) for item, word in said if word is not None and word.obstacle]

    monkeypatch.setattr(candidates.model, "rank", rank)


def test_the_space_of_a_few_configs_is_all_of_them() -> None:
    fake, other = FakeKernel(blocks=5), FakeKernel("other", blocks=4)
    found = space(PROBLEM, H200, [fake, other])
    assert found.defaults == (candidate(0, fake), candidate(0, other))
    assert len(found) == len(set(found.all)) == 9
    assert found.known == found.pruned == ()


def test_what_no_model_ranks_stands_in_a_random_order_in_turns() -> None:
    big, small = FakeKernel(blocks=1000), FakeKernel("small", blocks=9)
    near = candidate(777, big)
    found = space(PROBLEM, H200, [big, small], [near])
    assert len(found) == len(set(found.all)) == 1009
    assert (found.defaults, found.known) == ((candidate(0, big), candidate(0, small)), (near,))
    assert {item.kernel for item in found.others[:2]} == {big, small}
    first = [item.config.integer("block") for item in found.others if item.kernel is big][:20]
    assert max(first) - min(first) > 500  # not the beginning of the list
    assert space(PROBLEM, H200, [big, small], [near]) == found


def test_the_order_of_the_configs_changes_nothing() -> None:
    fake, other = FakeKernel(blocks=50), FakeKernel("other", blocks=10)
    rough = unranked(PROBLEM, H200, [fake, other])
    expected = ranked(PROBLEM, H200, rough)
    for seed in range(5):
        shuffled = tuple(random.Random(seed).sample(rough.others, len(rough.others)))
        assert ranked(PROBLEM, H200, Space(rough.defaults, rough.known, shuffled)) == expected


def test_a_known_winner_that_is_a_default_is_not_timed_twice() -> None:
    kernel = FakeKernel()
    found = space(PROBLEM, H200, [kernel], [candidate(0, kernel)])
    assert len(found) == len(set(found.all)) == kernel.blocks


def test_the_model_ranks_and_prunes_all_but_defaults_and_known_winners(model: None) -> None:
    fake, other = FakeKernel(blocks=8), FakeKernel("other", blocks=2)
    found = space(PROBLEM, H200, [fake, other], [candidate(3, fake)])
    assert found.always == (candidate(0, fake), candidate(0, other), candidate(3, fake))
    assert found.others == (candidate(1, other), candidate(6, fake), candidate(4, fake), candidate(2, fake))
    assert set(found.pruned) == {(candidate(block, fake), "odd") for block in (1, 5, 7)}
    assert found.predicted[candidate(6, fake)] == pytest.approx(1 / 7)
    assert candidate(1, other) not in found.predicted


def test_what_is_barred_is_in_no_part_of_the_space(model: None) -> None:
    fake = FakeKernel(blocks=8)
    barred = {str(candidate(block, fake)) for block in (0, 1, 2, 3)}
    found = space(PROBLEM, H200, [fake], [candidate(2, fake)], barred)
    assert (found.defaults, found.known) == ((), ())
    assert found.others == (candidate(6, fake), candidate(4, fake))
    assert {item for item, _ in found.pruned} == {candidate(5, fake), candidate(7, fake)}
