"""The page: its cells against the entry, whatever is in it escaped, and nothing fetched from elsewhere."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from faops.autotune.cache.entry import Entry
from faops.autotune.report.grid import grids
from faops.autotune.report.markup import Markup, markup, tag
from faops.autotune.report.page import page
from faops.autotune.report.verdict import why
from faops.quantities import seconds
from faops.registry import Config
from tests.autotune.support import make_entry

from .support import T4, Element, parsed, tiles, timing


def made(*entries: Entry, notes: tuple[tuple[str, str], ...] = ()) -> Element:
    return parsed(page(entries, [{}] * len(entries), notes))


def cells(map_: Element) -> dict[tuple[str, str], Element]:
    """The cells of one heat map by what stands at the head of their row and column."""
    columns = [heading.text for heading in map_.all("th", scope="col")]
    found = {}
    for row in map_.all("tbody")[0].all("tr"):
        (label,) = row.all("th", scope="row")
        found.update({(label.text, column): cell for column, cell in zip(columns, row.all("td"))})
    return found


def test_heat_map_shows_every_timing_where_it_belongs() -> None:
    entry = tiles()
    maps = made(entry).all("table", class_="map")
    (grid,) = grids(entry, {})
    assert [map_.all("caption")[0].text for map_ in maps] == ["warps=4", "warps=8"]
    for map_, facet in zip(maps, grid.facets):
        shown = cells(map_)
        assert len(shown) == 6
        for (row, column), cell in facet.cells.items():
            text = shown[str(row), str(column)].text
            assert (seconds(cell.timing.p50) if cell.timing else "failed") in text
            assert ("★" in text) == cell.is_winner
            assert ("◇" in text) == cell.is_default


def test_cells_that_were_not_timed_tell_why() -> None:
    untried = Config(tile_m=256, tile_n=64, warps=8)
    body = parsed(page([tiles()], [{"fake.forward": [untried]}], ()))
    four, eight = (cells(map_) for map_ in body.all("table", class_="map"))
    assert four["256", "64"].text == "failed"
    assert four["256", "64"].attributes["title"] == "too much shared memory"
    assert eight["256", "64"].text == "not timed"
    assert eight["256", "64"].attributes["title"] == str(untried)
    assert eight["256", "32"].text == ""
    assert "style" not in eight["256", "64"].attributes


def test_cell_tells_the_default_that_is_not_the_one_it_shows() -> None:
    times = {(8, 8, 1): 1.0, (8, 8, 2): 4.0, (8, 16, 3): 2.0, (16, 8, 4): 2.5, (16, 16, 5): 2.75}
    timings = tuple(timing(p50, tile_m=m, tile_n=n, stages=stages) for (m, n, stages), p50 in times.items())
    default, winner = timings[1].config, timings[0].config
    entry = make_entry(T4, timings=timings, config=winner, p50=1.0, default_config=default, default_p50=4.0, dropped=())
    (map_,) = made(entry).all("table", class_="map")
    assert cells(map_)["8", "8"].text == "★ 1 s stages=1 ◇ 4 s"
    assert cells(map_)["8", "16"].text == "2 s stages=3"


def test_faster_cells_have_darker_colours() -> None:
    (four, _) = made(tiles()).all("table", class_="map")
    styles = [cells(four)[place].attributes["style"] for place in (("128", "64"), ("128", "32"), ("256", "32"))]
    reds = [int(re.findall(r"background: #(..)", style)[0], 16) for style in styles]
    assert reds == sorted(reds)
    assert len(set(reds)) == 3


def test_table_has_all_timings_the_fastest_first() -> None:
    entry = tiles()
    (section,) = made(entry).all("section")
    table = section.all("div", class_="wide")[0]
    rows = table.all("tbody")[0].all("tr")
    ordered = sorted(entry.timings, key=lambda timing: timing.p50)
    assert len(rows) == len(ordered) == 10
    for row, item in zip(rows, ordered):
        texts = [cell.text for cell in row.all("td")]
        assert texts[0] == f"{item.kernel} {item.config}"
        assert texts[1] == seconds(item.p50)
        assert texts[4] == str(item.n)
    roles = {row.all("td")[6].text: row.all("td")[0].text for row in rows if row.all("td")[6].text}
    assert roles == {"winner": f"fake.forward {entry.config}", "default": f"fake.forward {entry.default_config}"}
    widths = [float(row.all("span")[0].attributes["style"].removeprefix("width: ").removesuffix("%")) for row in rows]
    assert widths == sorted(widths)
    assert widths[-1] == 100.0


def test_section_tells_why_and_where_it_comes_from() -> None:
    entry = replace(tiles(), environment={"torch": "2.13.0"})
    text = made(entry).all("section")[0].text
    for sentence in why(entry):
        assert sentence in text
    for word in (entry.key, entry.device, "torch 2.13.0", entry.date, "not stored", "too much shared memory"):
        assert word in text


def test_overview_links_to_each_problem_and_lists_what_has_no_entry() -> None:
    kept = make_entry(T4, config=Config(block=0), p50=1.0, speedup=1.0)
    body = made(tiles(), kept, notes=(("forward fp8", "failed: no kernel"),))
    rows = body.all("div", class_="wide")[0].all("tbody")[0].all("tr")
    assert [row.all("td")[0].text for row in rows][2] == "forward fp8"
    assert "4.00x" in rows[0].text and "above the noise" in rows[0].text
    assert "the default" in rows[1].text and "nothing faster beyond the noise" in rows[1].text
    assert rows[2].text == "forward fp8 failed: no kernel"
    targets = {section.attributes["id"] for section in body.all("section")}
    assert {link.attributes["href"].removeprefix("#") for link in body.all("a")} == targets
    assert len(targets) == 2


def test_page_needs_nothing_else() -> None:
    text = page([tiles()], [{}], ())
    assert text.startswith("<!doctype html>")
    for foreign in ("http", "src=", "url(", "@import", "<script", "<link"):
        assert foreign not in text
    assert parsed(text).all("html")[0].attributes["lang"] == "en"
    assert "prefers-color-scheme: dark" in text


def test_page_without_entries() -> None:
    assert made().all("section") == []


EVIL = "<script>alert('x')</script>&\"</td></table>"


@pytest.mark.parametrize("place", ["config", "dropped", "device", "environment", "kernel", "note"])
def test_whatever_an_entry_holds_is_text(place: str) -> None:
    entry = tiles()
    evil = replace(entry.timings[0], config=Config(tile_m=EVIL, tile_n=64, warps=4))
    changes = {
        "config": {"timings": (*entry.timings, evil)},
        "dropped": {"dropped": ({"config": f"fake.forward [{EVIL}]", "reason": EVIL},)},
        "device": {"device": EVIL},
        "environment": {"environment": {EVIL: EVIL}},
        "kernel": {"kernel": EVIL, "default_kernel": EVIL},
        "note": {},
    }  # fmt: skip
    text = page([replace(entry, **changes[place])], [{}], ((EVIL, EVIL),) if place == "note" else ())
    assert "<script" not in text
    assert "alert" in parsed(text).text


@settings(max_examples=50, deadline=None)
@given(st.text())
def test_text_comes_back_as_it_was(text: str) -> None:
    text = text.replace("\r", " ").replace("\0", " ")  # a parser of HTML changes these two
    element = parsed(tag("p", text, title=text)).all("p")[0]
    assert element.attributes["title"] == text
    assert "".join(str(child) for child in element.children) == text


def test_markup_is_not_escaped_twice() -> None:
    assert markup(["a < b", tag("b", "c")]) == "a &lt; b<b>c</b>"
    assert tag("td", class_="x") == '<td class="x"></td>'
    assert tag("br") == "<br>"
    assert markup(Markup("<i></i>")) == "<i></i>"
