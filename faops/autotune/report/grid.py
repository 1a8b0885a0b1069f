"""The tile space of a kernel as a grid: two options are the axes, others split it into facets, the rest is folded."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from faops.autotune.cache.entry import Entry, Timing
from faops.registry import Config, ConfigValue

# Names that kernels give to the sizes of a tile: those over queries and those over keys, the preferred ones first.
ROWS = ("tile_m", "block_m", "block_q", "block_outer")
COLUMNS = ("tile_n", "block_n", "block_k", "block_inner")

MOST_FACETS = 12
SPARSE = 0.45  # with a smaller share of cells that hold a config, an option is folded instead of making facets

Value = ConfigValue | None  # None: the config does not have the option
Legal = Mapping[str, Sequence[Config]]  # by kernel, every config it has for a problem


@dataclass(frozen=True)
class Cell:
    """A point of the grid with all configs that lie on it.

    ``timing`` is the winner's, or else of the fastest that ran, if any did; ``reason`` says why one failed where none
    ran. ``hidden_default`` is the default's timing where it lies here and is not the one shown.
    """

    configs: tuple[Config, ...]
    timing: Timing | None
    reason: str
    is_winner: bool
    is_default: bool
    hidden_default: Timing | None


@dataclass(frozen=True)
class Facet:
    """The part of a grid in which the options of ``fixed`` have these values."""

    fixed: tuple[tuple[str, Value], ...]
    cells: Mapping[tuple[Value, Value], Cell]

    def __str__(self) -> str:
        return ", ".join(f"{name}={shown(value)}" for name, value in self.fixed)


@dataclass(frozen=True)
class Grid:
    """The tile space of one kernel. ``row_name`` and ``column_name`` are options, or "" where there is none;
    ``folded`` are options of which each cell holds several values."""

    kernel: str
    row_name: str
    column_name: str
    rows: tuple[Value, ...]
    columns: tuple[Value, ...]
    facets: tuple[Facet, ...]
    folded: tuple[str, ...]


def grids(entry: Entry, legal: Legal) -> list[Grid]:
    """A grid for each kernel with more than one config, the winner's first, then by their fastest configs."""
    ordered = sorted(entry.timings, key=lambda timing: timing.p50)
    kernels = dict.fromkeys([entry.kernel, entry.default_kernel, *(timing.kernel for timing in ordered)])
    found = [_grid(entry, kernel, legal.get(kernel, ())) for kernel in kernels]
    return [grid for grid in found if grid is not None]


def shown(value: Value) -> str:
    """A value of an option as text."""
    return "-" if value is None else str(value)


def _grid(entry: Entry, kernel: str, legal: Sequence[Config]) -> Grid | None:
    failed = dropped_configs(entry, kernel)
    timed = {timing.config: timing for timing in entry.timings if timing.kernel == kernel}
    configs = list(dict.fromkeys([*timed, *failed, *legal]))
    options = _varying(configs)
    if not options:
        return None
    row_name, column_name = _axes(options)
    rest = [name for name in options if name not in (row_name, column_name)]
    split = _facet_options(configs, options, row_name, column_name, rest)
    places: dict[tuple[Value, ...], dict[tuple[Value, Value], list[Config]]] = defaultdict(lambda: defaultdict(list))
    for config in configs:
        place = (config.get(row_name), config.get(column_name))
        places[tuple(config.get(name) for name in split)][place].append(config)
    facets = [
        Facet(
            tuple(zip(split, values)),
            {place: _cell(entry, kernel, found, timed, failed) for place, found in places[values].items()},
        )
        for values in sorted(places, key=lambda values: [_order(value) for value in values])
    ]
    rows, columns = options.get(row_name, (None,)), options.get(column_name, (None,))
    folded = tuple(name for name in rest if name not in split)
    return Grid(kernel, row_name, column_name, tuple(rows), tuple(columns), tuple(facets), folded)


def _cell(
    entry: Entry,
    kernel: str,
    configs: Sequence[Config],
    timed: Mapping[Config, Timing],
    failed: Mapping[Config, str],
) -> Cell:
    ran = [timed[config] for config in configs if config in timed]
    winner = (kernel, entry.config) if kernel == entry.kernel else None
    fastest = min(ran, key=lambda timing: ((timing.kernel, timing.config) != winner, timing.p50), default=None)
    default = entry.default_config if kernel == entry.default_kernel and entry.default_config in configs else None
    hides = default is not None and fastest is not None and fastest.config != default
    return Cell(
        configs=tuple(configs),
        timing=fastest,
        reason=next((failed[config] for config in configs if config in failed), "") if fastest is None else "",
        is_winner=winner is not None and entry.config in configs,
        is_default=default is not None and not hides,
        hidden_default=timed.get(default) if default is not None and hides else None,
    )


def _varying(configs: Iterable[Config]) -> dict[str, list[Value]]:
    """Options that have more than one value among the configs, each with its values in order."""
    known = list(configs)
    names = dict.fromkeys(name for config in known for name in config)
    values = {name: sorted({config.get(name) for config in known}, key=_order) for name in names}
    return {name: found for name, found in values.items() if len(found) > 1}


def _order(value: Value) -> tuple[str, float, str]:
    """Sorts numbers as numbers, beside text and absent values."""
    if value is None:
        return "", 0.0, ""
    if isinstance(value, str):
        return "text", 0.0, value
    return "number", float(value), ""


def _axes(options: Mapping[str, Sequence[Value]]) -> tuple[str, str]:
    """The options that make rows and columns: the sizes of a tile, else those with the most values; "" for none."""
    by_count = sorted(options, key=lambda name: -len(options[name]))
    row = next((name for name in ROWS if name in options), "")
    column = next((name for name in COLUMNS if name in options), "")
    row = row or next((name for name in by_count if name != column), "")
    column = column or next((name for name in by_count if name != row), "")
    return (row, column) if column else ("", row)


def _facet_options(
    configs: Sequence[Config], options: Mapping[str, Sequence[Value]], row: str, column: str, rest: Sequence[str]
) -> list[str]:
    """Which of the other options make facets: as many as leave few enough and full enough facets."""
    split = sorted(rest, key=lambda name: len(options[name]))
    while split:
        points = {tuple(config.get(name) for name in (row, column, *split)) for config in configs}
        facets = {point[2:] for point in points}
        cells = len(facets) * max(1, len(options.get(row, ()))) * max(1, len(options.get(column, ())))
        if len(facets) <= MOST_FACETS and len(points) >= SPARSE * cells:
            break
        split.pop()
    return [name for name in rest if name in split]


def dropped_configs(entry: Entry, kernel: str) -> dict[Config, str]:
    """The kernel's configs that failed, each with the reason. Entries keep them as text: "kernel [a=1, b=2]"."""
    found = {}
    for item in entry.dropped:
        match = re.fullmatch(r"(\S+) \[(.*)\]", item.get("config", ""))
        if match and match.group(1) == kernel:
            found[_parsed(match.group(2))] = item.get("reason", "")
    return found


def _parsed(text: str) -> Config:
    pairs = (part.partition("=") for part in text.split(", ") if "=" in part)
    return Config({name: _value(value) for name, _, value in pairs})


def _value(text: str) -> ConfigValue:
    if text in ("True", "False"):
        return text == "True"
    return int(text) if re.fullmatch(r"-?\d+", text) else text


def every_place(grid: Grid) -> list[tuple[Value, Value]]:
    """The cells of one facet in the order of reading."""
    return list(product(grid.rows, grid.columns))
