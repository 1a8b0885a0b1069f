"""A random sample of a test module's parametrisations.

The suite multiplies out to some hundred thousand tests. What is drawn is decided before pytest makes any of them, by
giving each test function a single ``parametrize`` mark with its share.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pytest

Parameters = dict[str, Any]
Test = Callable[..., None]
PART_WEIGHT = 16  # that many numbers of partial results count as one score


@dataclass(frozen=True)
class Share:
    """Of one test function: how many parametrisations there are, how many may be drawn, and those drawn."""

    total: int
    small: int
    drawn: list[Parameters]


def combinations(test: Test) -> Iterator[Parameters]:
    """Every parametrisation of a test function, as pytest would make them; one empty one without any mark."""
    axes = []
    for mark in _marks(test):
        names, values = mark.args[0], mark.args[1]
        names = [name.strip() for name in names.split(",")] if isinstance(names, str) else list(names)
        axes.append([dict(zip(names, _row(value, len(names)))) for value in values])
    for chosen in itertools.product(*axes):
        yield {name: value for part in chosen for name, value in part.items()}


def _marks(test: Test) -> list[Any]:
    return [mark for mark in getattr(test, "pytestmark", []) if mark.name == "parametrize"]


def _row(value: Any, count: int) -> tuple[Any, ...]:
    if hasattr(value, "values") and hasattr(value, "marks"):  # pytest.param()
        return tuple(value.values)
    return (value,) if count == 1 else tuple(value)


def scores(parameters: Parameters) -> int:
    """What a parametrisation costs: its query × key pairs for each head; 0 for a test without lengths."""
    if "seqlen_q" in parameters and "seqlen_k" in parameters:
        return int(parameters["seqlen_q"]) * int(parameters["seqlen_k"])
    if "seqlen" in parameters and "num_splits" in parameters:  # results of parts, put together: no pairs, but memory
        return int(parameters["num_splits"] * parameters["seqlen"] * parameters["d"]) // PART_WEIGHT
    return int(parameters.get("seqlen", 0)) ** 2


def draw(
    tests: Mapping[str, Any], count: int, seed: int, wanted: Callable[[str, Parameters], bool]
) -> dict[str, Share]:
    """The share of each test function among ``tests`` in a sample of ``count``, spread evenly over them.

    Only parametrisations that are ``wanted``, by the name of the test and its parameters, are drawn.
    """
    small: dict[str, tuple[int, list[Parameters]]] = {}
    for name, test in tests.items():
        if name.startswith("test_") and callable(test):
            found = list(combinations(test))
            small[name] = len(found), [parameters for parameters in found if wanted(name, parameters)]
    counts = spread(count, {name: len(found) for name, (_, found) in small.items()})
    shares = {}
    for name, (total, found) in small.items():
        chosen = sorted(random.Random(f"{seed} {name}").sample(range(len(found)), counts[name]))
        shares[name] = Share(total, len(found), [found[index] for index in chosen])
    return shares


def spread(count: int, sizes: dict[str, int]) -> dict[str, int]:
    """``count`` spread over groups as evenly as their sizes allow."""
    counts: dict[str, int] = {}
    for position, name in enumerate(sorted(sizes, key=lambda name: sizes[name])):
        counts[name] = min(sizes[name], (count - sum(counts.values())) // (len(sizes) - position))
    return counts


def apply(test: Test, share: Share) -> None:
    """Leave ``test`` the parametrisations of its share, at least one, and no other."""
    marks = [mark for mark in getattr(test, "pytestmark", []) if mark.name != "parametrize"]
    if _marks(test):
        names = list(next(combinations(test)))
        rows = [tuple(parameters[name] for name in names) for parameters in share.drawn]
        if len(names) == 1:
            rows = [row[0] for row in rows]
        marks.append(pytest.mark.parametrize(names if len(names) > 1 else names[0], rows).mark)
    test.pytestmark = marks  # type: ignore[attr-defined]
