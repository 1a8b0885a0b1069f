"""How a tile space becomes axes, facets and cells."""

from __future__ import annotations

from dataclasses import replace

import pytest

from faops import registry
from faops.autotune.cache.entry import Entry, Timing
from faops.autotune.report.grid import Grid, dropped_configs, every_place, grids
from faops.device import detect, known
from faops.problem import parse_shape
from faops.registry import Config
from tests.autotune.support import make_entry

from .support import T4, tiles, timing


def entry_of(*timings: Timing, winner: Config | None = None) -> Entry:
    return make_entry(
        T4, timings=timings, dropped=(), config=winner or timings[0].config, default_config=timings[0].config
    )


def test_tile_sizes_are_the_axes_and_the_rest_makes_facets() -> None:
    (grid,) = grids(tiles(), {})  # a kernel with a single config has no grid
    assert (grid.kernel, grid.row_name, grid.column_name) == ("fake.forward", "tile_m", "tile_n")
    assert (grid.rows, grid.columns) == ((64, 128, 256), (32, 64))
    assert [str(facet) for facet in grid.facets] == ["warps=4", "warps=8"]
    assert grid.folded == ()


def test_cells_hold_what_the_entry_says() -> None:
    entry = tiles()
    (grid,) = grids(entry, {})
    four, eight = grid.facets
    for item in entry.timings:
        if item.kernel == "fake.forward":
            facet = four if item.config["warps"] == 4 else eight
            assert facet.cells[item.config["tile_m"], item.config["tile_n"]].timing == item
    assert four.cells[256, 64].timing is None
    assert four.cells[256, 64].reason == "too much shared memory"
    winners = [place for facet in grid.facets for place, cell in facet.cells.items() if cell.is_winner]
    defaults = [place for facet in grid.facets for place, cell in facet.cells.items() if cell.is_default]
    assert (winners, defaults) == ([(128, 64)], [(64, 64)])
    assert (256, 64) not in eight.cells  # nobody knows of such a config
    assert len(every_place(grid)) == 6


def test_legal_configs_that_were_not_timed_are_cells() -> None:
    untried = Config(tile_m=256, tile_n=64, warps=8)
    (grid,) = grids(tiles(), {"fake.forward": [untried]})
    cell = grid.facets[1].cells[256, 64]
    assert (cell.timing, cell.reason, cell.configs) == (None, "", (untried,))


def test_winners_kernel_comes_first() -> None:
    slow = [timing(5.0 + n, "fake.slow", block=n) for n in range(2)]
    fast = [timing(1.0 + n, "fake.fast", block=n) for n in range(2)]
    entry = replace(entry_of(*slow, *fast), kernel="fake.slow", default_kernel="fake.slow", config=slow[0].config)
    found = grids(entry, {})
    assert [grid.kernel for grid in found] == ["fake.slow", "fake.fast"]
    marks = [(cell.is_winner, cell.is_default) for grid in found for cell in grid.facets[0].cells.values()]
    assert marks == [(True, True)] + 3 * [(False, False)]  # the other kernel has the same configs


def test_option_that_would_leave_empty_facets_is_folded_and_the_fastest_shown() -> None:
    """block_h follows from the other two, as in the blockwise kernels: as facets most cells would be empty."""
    configs = [(q, k, 4096 // (q * k)) for q in (8, 16, 32, 64) for k in (8, 16, 32, 64)]
    timings = [timing(10.0 + q + k, block_q=q, block_k=k, block_h=h) for q, k, h in configs]
    faster = timing(1.0, block_q=8, block_k=8, block_h=1)
    (grid,) = grids(entry_of(*timings, faster), {})
    assert grid.folded == ("block_h",)
    assert [facet.fixed for facet in grid.facets] == [()]
    assert grid.facets[0].cells[8, 8].timing in (faster, timings[0])
    assert len(grid.facets[0].cells[8, 8].configs) == 2


def test_option_with_the_most_values_is_folded_where_there_are_too_many_facets() -> None:
    sizes = [(m, n, a, b) for m in (1, 2) for n in (1, 2) for a in (1, 2) for b in range(10)]
    (grid,) = grids(entry_of(*(timing(1.0 + b, tile_m=m, tile_n=n, a=a, b=b) for m, n, a, b in sizes)), {})
    assert grid.folded == ("b",)
    assert [facet.fixed for facet in grid.facets] == [(("a", 1),), (("a", 2),)]
    assert {cell.timing.p50 for facet in grid.facets for cell in facet.cells.values() if cell.timing} == {1.0}


def test_cell_of_the_winner_shows_the_winner() -> None:
    """Though another config on the same place was faster in a short timing."""
    winner, quick = timing(2.0, block_q=8, block_k=8, block_h=2), timing(1.0, block_q=8, block_k=8, block_h=1)
    rest = [timing(5.0, block_q=q, block_k=k, block_h=4) for q, k in ((8, 16), (16, 8), (16, 16), (32, 8), (32, 16))]
    (grid,) = grids(entry_of(quick, *rest, winner, winner=winner.config), {})
    assert grid.folded == ("block_h",)
    cell = grid.facets[0].cells[8, 8]
    assert cell.is_winner
    assert cell.timing == winner
    (grid,) = grids(entry_of(*rest, quick, winner), {})
    assert grid.facets[0].cells[8, 8].timing == quick


def test_default_behind_a_faster_config_is_not_taken_for_it() -> None:
    default, quick = timing(2.0, block_q=8, block_k=8, block_h=2), timing(1.0, block_q=8, block_k=8, block_h=1)
    rest = [timing(0.5, block_q=q, block_k=k, block_h=4) for q, k in ((8, 16), (16, 8), (16, 16), (32, 8), (32, 16))]
    entry = replace(entry_of(*rest, default, quick), default_config=default.config)
    cells = grids(entry, {})[0].facets[0].cells
    assert (cells[8, 8].timing, cells[8, 8].is_default, cells[8, 8].hidden_default) == (quick, False, default)
    assert cells[8, 16].hidden_default is None
    cells = grids(replace(entry, default_config=quick.config), {})[0].facets[0].cells
    assert (cells[8, 8].is_default, cells[8, 8].hidden_default) == (True, None)


@pytest.mark.parametrize(
    ("options", "axes"),
    [
        ([{"threads": 0}, {"threads": 1}], ("", "threads")),
        (
            [{"block_m": 16, "splits": 1, "block_n": 8}, {"block_m": 16, "splits": 2, "block_n": 16}],
            ("splits", "block_n"),
        ),
        ([{"block_k": 1, "block_q": 1}, {"block_k": 2, "block_q": 2}], ("block_q", "block_k")),
        ([{"tile_m": 1, "a": 1}, {"tile_m": 2, "a": 2}, {"tile_m": 2, "a": 3}], ("tile_m", "a")),
        ([{"a": 1, "b": True, "c": "x"}, {"a": 2, "b": False, "c": "y"}, {"a": 3, "b": True, "c": "z"}], ("a", "c")),
    ],
)
def test_axes(options: list[dict[str, int | str | bool]], axes: tuple[str, str]) -> None:
    (grid,) = grids(entry_of(*(timing(1.0 + n, **values) for n, values in enumerate(options))), {})
    assert (grid.row_name, grid.column_name) == axes


def test_values_are_in_order_whatever_they_are() -> None:
    made = [timing(1.0, size=1000), timing(1.0, size=9), timing(1.0, size="auto"), timing(1.0, other=1)]
    (grid,) = grids(entry_of(*made), {})
    assert grid.rows == (None, 9, 1000, "auto")


def test_entry_without_any_choice_has_no_grid() -> None:
    assert grids(entry_of(timing(1.0, block=1)), {}) == []
    assert grids(make_entry(T4, timings=(), dropped=(), default_config=Config(block=3)), {}) == []


def test_dropped_configs_are_read_back() -> None:
    config = Config(block=64, upcast=False, mode="fast", shift=-1)
    entry = make_entry(T4, dropped=({"config": f"fake.forward [{config}]", "reason": "no"}, {"config": "odd"}, {}))
    assert dropped_configs(entry, "fake.forward") == {config: "no"}
    assert dropped_configs(entry, "fake.other") == {}


@pytest.mark.parametrize("device", ["cpu", "t4", "a100", "b200"])
@pytest.mark.parametrize(
    "shape",
    ["sq=512,h=8,d=64,causal=1", "sq=512,h=8,d=64,op=backward,causal=1", "sq=1,sk=512,h=8,d=64,op=decode"],
)
def test_real_spaces_lose_no_config(device: str, shape: str) -> None:
    """Every config of every kernel lies in exactly one cell, and no kernel makes more than a page can show."""
    profile = detect("cpu") if device == "cpu" else known(device)
    problem = parse_shape(shape)
    for kernel in registry.kernels(problem.op):
        configs = kernel.configs(problem, profile) if kernel.check(problem, profile) else []
        if len(configs) < 2:
            continue
        timings = [Timing(kernel.id, config, 1.0, 1.0, 1.0, 0.0, 3, False) for config in configs]
        entry = make_entry(profile, kernel=kernel.id, config=configs[0], timings=tuple(timings), dropped=())
        grid = next(grid for grid in grids(entry, {kernel.id: configs}) if grid.kernel == kernel.id)
        assert sorted(map(str, _members(grid))) == sorted(map(str, configs))
        assert len(grid.facets) <= 12


def _members(grid: Grid) -> list[Config]:
    return [config for facet in grid.facets for cell in facet.cells.values() for config in cell.configs]
