"""The tile space of each kernel as tables of coloured cells. Every cell says in text what its colour says."""

from __future__ import annotations

from faops.autotune.cache.entry import Entry
from faops.autotune.report.colours import SLOWEST, colour, hexadecimal, position, text_on
from faops.autotune.report.grid import Cell, Facet, Grid, Legal, Value, grids, shown
from faops.autotune.report.markup import Markup, tag
from faops.quantities import seconds

WINNER, DEFAULT = "★", "◇"


def heat_maps(entry: Entry, legal: Legal) -> list[Markup]:
    """A heading, a legend and the facets of each kernel that has more than one config."""
    found: list[Markup] = []
    for grid in grids(entry, legal):
        facets = tag("div", [_facet(grid, facet, entry.p50) for facet in grid.facets], class_="facets")
        found += [tag("h3", f"Tile space of {grid.kernel}"), tag("p", _legend(grid), class_="soft"), facets]
    return [*found, _scale(entry.p50)] if found else []


def _scale(best: float) -> Markup:
    """The colours with the times they stand for."""
    times = [best * SLOWEST ** (step / 4) for step in range(5)]
    spans = [tag("span", seconds(time), style=_coloured(time, best)) for time in times]
    return tag("p", ["Scale: ", spans, " and more"], class_="scale soft")


def _legend(grid: Grid) -> str:
    axes = f"{grid.row_name} down, {grid.column_name} across" if grid.row_name else f"{grid.column_name} across"
    folded = f" Each cell is the fastest {' and '.join(grid.folded)} that was timed." if grid.folded else ""
    return f"{axes}; {WINNER} winner, {DEFAULT} default; the darker the faster.{folded}"


def _facet(grid: Grid, facet: Facet, best: float) -> Markup:
    corner = f"{grid.row_name} \\ {grid.column_name}" if grid.row_name else grid.column_name
    heading = tag("tr", [tag("th", corner), *(tag("th", shown(value), scope="col") for value in grid.columns)])
    rows = [_row(grid, facet, value, best) for value in grid.rows]
    caption = [tag("caption", str(facet))] if facet.fixed else []
    return tag("table", [*caption, tag("thead", heading), tag("tbody", rows)], class_="map")


def _row(grid: Grid, facet: Facet, row: Value, best: float) -> Markup:
    label = tag("th", shown(row) if grid.row_name else "", scope="row")
    return tag("tr", [label, *(_cell(grid, facet.cells.get((row, column)), best) for column in grid.columns)])


def _cell(grid: Grid, cell: Cell | None, best: float) -> Markup:
    if cell is None:
        return tag("td", class_="empty", title="no such config")
    marks = f"{WINNER if cell.is_winner else ''}{DEFAULT if cell.is_default else ''}"
    prefix = f"{marks} " if marks else ""
    if cell.timing is None and cell.reason:
        return tag("td", f"{prefix}failed", class_="failed", title=cell.reason)
    if cell.timing is None:
        return tag("td", f"{prefix}not timed", class_="untimed", title=str(cell.configs[0]))
    small = [", ".join(f"{name}={shown(cell.timing.config.get(name))}" for name in grid.folded)]
    if cell.hidden_default is not None:
        small.append(f"{DEFAULT} {seconds(cell.hidden_default.p50)}")
    return tag(
        "td",
        [f"{prefix}{seconds(cell.timing.p50)}", *(tag("small", text) for text in small if text)],
        class_="winner" if cell.is_winner else "timed",
        style=_coloured(cell.timing.p50, best),
        title=str(cell.timing.config),
    )


def _coloured(time: float, best: float) -> str:
    background = colour(position(time, best))
    return f"background: {hexadecimal(background)}; color: {hexadecimal(text_on(background))}"
