"""Which samples count, and what is kept of the conditions."""

from __future__ import annotations

import json

import pytest

from faops.autotune import effort
from faops.autotune.measurement.conditions import Batch, Conditions, State, conditions_of, undisturbed

FAST, SLOW = State(1980, 2619), State(1500, 2619)
HOT = State(1980, 2619, ("heat, by hardware",))


def batches(*states: State | None) -> list[Batch]:
    return [Batch([1.0 + number, 2.0 + number], state) for number, state in enumerate(states)]


def test_samples_at_a_lower_clock_do_not_count() -> None:
    found = batches(SLOW, FAST, SLOW, FAST)
    assert undisturbed(found) == [found[1], found[3]]
    assert undisturbed(batches(SLOW, SLOW)) == batches(SLOW, SLOW)  # nothing is known of a higher one


@pytest.mark.parametrize(("part", "counts"), [(0.5 * effort.CLOCK_DROP, True), (1.5 * effort.CLOCK_DROP, False)])
def test_clocks_may_differ_a_little(part: float, counts: bool) -> None:
    found = batches(FAST, State(round(1980 * (1 - part)), 2619))
    assert (found[1] in undisturbed(found)) is counts


def test_samples_of_a_slowed_device_do_not_count() -> None:
    found = batches(HOT, FAST)
    assert undisturbed(found) == [found[1]]
    assert undisturbed(batches(HOT, HOT)) == []


def test_where_nothing_is_known_everything_counts() -> None:
    assert undisturbed(batches(None, None)) == batches(None, None)
    assert undisturbed(batches(None, FAST)) == batches(None, FAST)
    assert undisturbed([]) == []


def test_conditions_are_those_of_the_samples_that_count() -> None:
    found = conditions_of(batches(SLOW, FAST, HOT, State(1950, 2600)), ["a note", "a note"])
    assert found == Conditions(sm_mhz_lowest=1950, sm_mhz_highest=1980, memory_mhz=2619, rejected=4, notes=("a note",))
    assert conditions_of(batches(None, None)) == Conditions()
    assert conditions_of([]) == Conditions()


def test_samples_that_had_to_do_are_noted() -> None:
    found = conditions_of(batches(HOT, HOT))
    assert found.rejected == 0
    assert found.sm_mhz_lowest == 1980
    assert found.notes == ("timed although the device was slowed all the time: heat, by hardware",)


def test_conditions_merge() -> None:
    one = Conditions(1900, 1980, 2600, 3, ("a", "b"))
    other = Conditions(1950, 2000, 2619, 4, ("b", "c"))
    assert one.merged(other) == Conditions(1900, 2000, 2619, 7, ("a", "b", "c"))
    assert one.merged(Conditions()) == Conditions().merged(one) == one


@pytest.mark.parametrize("conditions", [Conditions(), Conditions(1900, 1980, 2600, 3, ("a", "b")), Conditions(0, 1)])
def test_conditions_survive_json(conditions: Conditions) -> None:
    assert Conditions.from_dict(json.loads(json.dumps(conditions.as_dict()))) == conditions


def test_what_is_unknown_is_not_written() -> None:
    assert Conditions().as_dict() == {}
    assert Conditions(rejected=2, notes=("a",)).as_dict() == {"rejected": 2, "notes": ["a"]}
