"""The report as a picture, drawn with matplotlib: for each problem the winner's tile space and the fastest timings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from faops.autotune.cache.entry import Entry, Timing
from faops.autotune.report.colours import Colour, colour, position, text_on
from faops.autotune.report.grid import Cell, Facet, Grid, Legal, Value, grids, shown
from faops.quantities import ratio, seconds

FACETS, BARS = 4, 12  # most that are drawn of a problem
INCHES_WIDE, INCHES_A_PROBLEM, DOTS_AN_INCH = 16.0, 3.6, 100
WINNER_EDGE, BAR, DEFAULT_BAR, WINNER_BAR = "#d95f0e", "#a9b8c4", "#5c6672", "#2a6694"


def draw(entries: Sequence[Entry], legal: Sequence[Legal], path: Path) -> None:
    """Draw ``entries`` one below the other and save them as a PNG file. Raises OSError."""
    import numpy
    from matplotlib.image import imsave

    # A figure each: the time to lay one out grows with the square of what is in it.
    pixels = numpy.vstack([_problem(entry, known) for entry, known in zip(entries, legal)])
    with path.open("xb") as file:
        imsave(file, pixels, format="png", dpi=DOTS_AN_INCH)


def _problem(entry: Entry, legal: Legal) -> Any:
    """Pixels of one problem: (height, width, 4), unsigned bytes."""
    import numpy
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure: Any = Figure(figsize=(INCHES_WIDE, INCHES_A_PROBLEM), dpi=DOTS_AN_INCH, layout="constrained")
    canvas: Any = FigureCanvasAgg(figure)
    gain = "the default stays" if entry.is_default else f"{ratio(entry.speedup)} over the default"
    figure.suptitle(f"{entry.attention_problem()}: {gain}", fontsize=11, fontweight="bold")
    left, right = figure.subfigures(1, 2, width_ratios=(3, 2))
    drawn = sorted(
        ((grid, facet) for grid in grids(entry, legal) for facet in grid.facets), key=lambda pair: _fastest(pair[1])
    )[:FACETS]
    if drawn:
        for axis, (grid, facet) in zip(left.subplots(1, len(drawn), squeeze=False)[0], drawn):
            _heat_map(axis, grid, facet, entry.p50)
    _bars(right.subplots(), entry)
    canvas.draw()
    return numpy.asarray(canvas.buffer_rgba())


def _fastest(facet: Facet) -> tuple[bool, float]:
    """The winner's facet comes first, then the others by their fastest timing."""
    times = [cell.timing.p50 for cell in facet.cells.values() if cell.timing is not None]
    return not any(cell.is_winner for cell in facet.cells.values()), min(times, default=float("inf"))


def _heat_map(axis: Any, grid: Grid, facet: Facet, best: float) -> None:
    for y, row in enumerate(grid.rows):
        for x, column in enumerate(grid.columns):
            _draw_cell(axis, x, y, facet.cells.get((row, column)), best)
    axis.set_xlim(-0.5, len(grid.columns) - 0.5)
    axis.set_ylim(len(grid.rows) - 0.5, -0.5)
    axis.set_xticks(range(len(grid.columns)), [shown(value) for value in grid.columns], fontsize=7)
    axis.set_yticks(range(len(grid.rows)), [_row_label(grid, value) for value in grid.rows], fontsize=7)
    axis.set_title(f"{grid.kernel}\n{facet}".strip(), fontsize=7)
    axis.set_xlabel(grid.column_name, fontsize=7)
    axis.set_ylabel(grid.row_name, fontsize=7)


def _row_label(grid: Grid, value: Value) -> str:
    return shown(value) if grid.row_name else ""


def _draw_cell(axis: Any, x: int, y: int, cell: Cell | None, best: float) -> None:
    from matplotlib.patches import Rectangle

    if cell is None:
        return
    if cell.timing is None:
        axis.text(x, y, "failed" if cell.reason else "not timed", ha="center", va="center", fontsize=7, color="#5c6672")
        return
    background = colour(position(cell.timing.p50, best))
    axis.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=_channels(background), edgecolor="white"))
    if cell.is_winner:
        edge = Rectangle((x - 0.47, y - 0.47), 0.94, 0.94, fill=False, edgecolor=WINNER_EDGE, linewidth=3, zorder=3)
        axis.add_patch(edge)
    marks = ["winner"] * cell.is_winner + ["default"] * cell.is_default
    if cell.hidden_default is not None:
        marks.append(f"default {seconds(cell.hidden_default.p50)}")
    text = "\n".join([seconds(cell.timing.p50), *marks])
    axis.text(x, y, text, ha="center", va="center", fontsize=7, color=_channels(text_on(background)))


def _channels(value: Colour) -> tuple[float, float, float]:
    return value[0] / 255, value[1] / 255, value[2] / 255


def _bars(axis: Any, entry: Entry) -> None:
    """The fastest timings, each with its 20th and 80th percentile, and the default whatever its place."""
    ordered = sorted(entry.timings, key=lambda timing: timing.p50)
    drawn = [t for place, t in enumerate(ordered) if place < BARS or _is_default(entry, t)]
    for y, timing in enumerate(drawn):
        spread = [[max(0.0, timing.p50 - timing.p20) * 1e3], [max(0.0, timing.p80 - timing.p50) * 1e3]]
        axis.barh(y, timing.p50 * 1e3, xerr=spread, color=_bar_colour(entry, timing), error_kw={"linewidth": 1})
    names = [f"{timing.kernel.partition('.')[2]} [{timing.config}]" for timing in drawn]
    axis.set_yticks(range(len(drawn)), names, fontsize=6)
    axis.invert_yaxis()
    axis.set_xlabel("ms a call: median, p20 to p80 (blue: winner, dark: default)", fontsize=7)
    axis.tick_params(axis="x", labelsize=7)


def _bar_colour(entry: Entry, timing: Timing) -> str:
    if (timing.kernel, timing.config) == (entry.kernel, entry.config):
        return WINNER_BAR
    return DEFAULT_BAR if _is_default(entry, timing) else BAR


def _is_default(entry: Entry, timing: Timing) -> bool:
    return (timing.kernel, timing.config) == (entry.default_kernel, entry.default_config)
