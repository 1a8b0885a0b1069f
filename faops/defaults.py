"""Shipped defaults: the configs that kernels start from on devices where nothing was tuned, read from defaults.json.

That file holds two things. ``provenance`` names the ways in which configs were come by. ``rows`` holds one config each,
with the kernel, the name of its provenance, perhaps a note, and what it is for: a row fits where each of its criteria
does, and one it does not name always does. Of a kernel's rows at most one fits.

=============== =========================================================================================
family, dtype,  lists of what is meant
layout, case    (a case is a class of features that the kernel tells apart itself)
head_dim        [least, most], the larger of the head dims of keys and of values
shared_bytes    [least, most] of a device's shared memory for one block, in bytes; null is unlimited
query_rows      [least, most] of the query rows that share a key/value head; null is unlimited
=============== =========================================================================================
"""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from faops.device import DeviceProfile
from faops.errors import DefaultsError
from faops.problem import AttentionProblem

SCHEMA = 1
FILE = Path(__file__).with_suffix(".json")
LISTS = ("family", "dtype", "layout", "case")
RANGES = ("head_dim", "shared_bytes", "query_rows")
HOW = {
    "rule": "chosen by rule, neither compiled nor measured",
    "modelled": "best by the cost model, not measured",
    "compiled": "compiled, not measured",
    "measured": "measured",
}

Range = tuple[int, int | None]


@dataclass(frozen=True)
class Provenance:
    """How configs were come by: one of HOW, for which architectures, on which device (if measured), when, and at
    which commit.
    """

    how: str
    architectures: tuple[str, ...]
    device: str
    date: str  # YYYY-MM-DD
    commit: str
    note: str


@dataclass(frozen=True)
class ShippedDefault:
    """One row: the config of ``kernel`` where all criteria fit."""

    kernel: str
    lists: Mapping[str, tuple[str, ...]]
    ranges: Mapping[str, Range]
    config: Mapping[str, int | str | bool]
    provenance: Provenance
    note: str

    def fits(self, traits: Mapping[str, str | int]) -> bool:
        return all(traits[name] in values for name, values in self.lists.items()) and all(
            low <= int(traits[name]) and (high is None or int(traits[name]) <= high)
            for name, (low, high) in self.ranges.items()
        )

    def serves(self, device: DeviceProfile) -> bool:
        """Whether it is for ``device``, whatever the problem."""
        traits: dict[str, str | int] = {"family": device.family, "shared_bytes": device.shared_bytes}
        lists = {name: self.lists[name] for name in self.lists.keys() & traits.keys()}
        ranges = {name: self.ranges[name] for name in self.ranges.keys() & traits.keys()}
        return replace(self, lists=lists, ranges=ranges).fits(traits)

    def scope(self) -> str:
        """Which problems it is for, in words."""
        told = [f"{name} {' or '.join(self.lists[name])}" for name in ("dtype", "layout", "case") if name in self.lists]
        for name in ("head_dim", "query_rows"):
            if name in self.ranges:
                low, high = self.ranges[name]
                told.append(f"{name} {low} and more" if high is None else f"{name} {low} to {high}")
        return ", ".join(told) or "all"

    def overlaps(self, other: ShippedDefault) -> bool:
        """Whether something exists that both rows fit."""
        return all(
            not set(values).isdisjoint(other.lists.get(name, values)) for name, values in self.lists.items()
        ) and all(_meet(ends, other.ranges.get(name, ends)) for name, ends in self.ranges.items())

    def words(self, device: DeviceProfile) -> str:
        """Where the config comes from, for a person who runs it on ``device``."""
        origin = self.provenance
        if device.arch not in origin.architectures:
            known = ", ".join(origin.architectures)
            return f"shipped default, made for {known}, not for {device.arch} ({HOW[origin.how]})"
        where = f" on {origin.device}, {origin.date}" if origin.how == "measured" else ""
        return f"shipped default for {device.family} ({HOW[origin.how]}{where})"


def lookup(
    kernel: str, problem: AttentionProblem, device: DeviceProfile, case: str = "", query_rows: int = 0
) -> ShippedDefault:
    """The row of ``kernel`` that fits. Raises DefaultsError where there is none, or the file is broken."""
    head_dim = max(problem.head_dim, problem.head_dim_v)
    return _lookup(
        kernel, device.family, device.shared_bytes, problem.dtype, problem.layout, head_dim, case, query_rows
    )


@functools.lru_cache(maxsize=4096)
def _lookup(
    kernel: str, family: str, shared_bytes: int, dtype: str, layout: str, head_dim: int, case: str, query_rows: int
) -> ShippedDefault:
    traits: dict[str, str | int] = {
        "family": family, "shared_bytes": shared_bytes, "dtype": dtype, "layout": layout, "head_dim": head_dim,
        "case": case, "query_rows": query_rows,
    }  # fmt: skip
    for row in table().get(kernel, ()):
        if row.fits(traits):
            return row
    given = ", ".join(f"{name} {value}" for name, value in traits.items() if value)
    raise DefaultsError(f"{FILE} has no row for {kernel} with {given}")


@functools.cache
def table() -> dict[str, tuple[ShippedDefault, ...]]:
    """The rows of every kernel that has some, by the kernel's id. Raises DefaultsError for a broken file."""
    try:
        data = json.loads(FILE.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DefaultsError(f"{FILE} cannot be read: {error}; fix: pip install --force-reinstall faops") from None
    return parse(data)


def parse(data: Any) -> dict[str, tuple[ShippedDefault, ...]]:
    """The table in the file's JSON ``data``. Raises DefaultsError, naming the row."""
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        raise DefaultsError(f"{FILE}: expected an object with schema {SCHEMA}")
    try:
        origins = {name: _provenance(name, value) for name, value in data["provenance"].items()}
        rows = [_row(number, value, origins) for number, value in enumerate(data["rows"], 1)]
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        raise DefaultsError(f"{FILE}: {type(error).__name__}: {error}") from None
    found: dict[str, tuple[ShippedDefault, ...]] = {}
    for row in rows:
        found[row.kernel] = (*found.get(row.kernel, ()), row)
    for own in found.values():
        for first, second in itertools.combinations(own, 2):
            if first.overlaps(second):
                raise DefaultsError(
                    f"{FILE}: two rows of {first.kernel} fit the same: {_brief(first)}, {_brief(second)}"
                )
    return found


def _provenance(name: str, data: dict[str, Any]) -> Provenance:
    origin = Provenance(
        how=data["how"],
        architectures=tuple(data["architectures"]),
        device=data.get("device", ""),
        date=data["date"],
        commit=data["commit"],
        note=data["note"],
    )
    if origin.how not in HOW:
        raise DefaultsError(f"{FILE}: provenance {name}: how is {origin.how!r}, expected one of {', '.join(HOW)}")
    if origin.how == "measured" and not origin.device:
        raise DefaultsError(f"{FILE}: provenance {name}: measured on no device")
    return origin


def _row(number: int, data: dict[str, Any], origins: Mapping[str, Provenance]) -> ShippedDefault:
    known = {"kernel", "config", "provenance", "note", *LISTS, *RANGES}
    if unknown := sorted(set(data) - known):
        raise DefaultsError(f"{FILE}: row {number}: unknown name {unknown[0]!r}")
    missing = [name for name in ("kernel", "config", "provenance") if not data.get(name)]
    if missing:
        raise DefaultsError(f"{FILE}: row {number}: {missing[0]} is missing")
    if data["provenance"] not in origins:
        raise DefaultsError(f"{FILE}: row {number}: no provenance is called {data['provenance']!r}")
    lists = {name: tuple(data[name]) for name in LISTS if name in data}
    ranges = {name: (data[name][0], data[name][1]) for name in RANGES if name in data}
    for name, (low, high) in ranges.items():
        if high is not None and high < low:
            raise DefaultsError(f"{FILE}: row {number}: {name} ends before it begins")
    return ShippedDefault(
        data["kernel"], lists, ranges, data["config"], origins[data["provenance"]], data.get("note", "")
    )


def _meet(one: Range, other: Range) -> bool:
    """Whether two ranges, ends included, have something in common."""
    return (one[1] is None or other[0] <= one[1]) and (other[1] is None or one[0] <= other[1])


def _brief(row: ShippedDefault) -> str:
    return ", ".join(f"{name}={value}" for name, value in row.config.items())
