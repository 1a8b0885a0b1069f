"""The page for everyone: with a screen reader, in light and dark, narrow, zoomed in, without motion."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from faops.autotune.report.heat_map import heat_maps
from tests.autotune.report.support import tiles
from tests.daemon.dashboard import samples
from tests.daemon.dashboard.conftest import FAILED, Watch, at_work, look, show
from tests.daemon.dashboard.fake import FILES, Fake

RULES = {
    "resultTypes": ["violations"],
    "runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"],
}


def accessible(page: Page) -> None:
    found = Axe().run(page, options=RULES)
    assert found.violations_count == 0, found.generate_report()


def with_map(fake: Fake, page: Page) -> None:
    show(fake, page)
    fake.heat_map = "".join(heat_maps(tiles(), {}))
    page.locator("#winners button").first.click()
    expect(page.locator("#dialog-content table")).to_have_count(2)


def with_error(fake: Fake, page: Page) -> None:
    show(fake, page)
    page.get_by_role("button", name="Tune").click()
    expect(page.locator("#submit-error")).to_be_visible()


def with_token(fake: Fake, page: Page) -> None:
    fake.token = "secret"
    look(page)
    expect(page.locator("#token")).to_be_visible()


def with_trouble(fake: Fake, page: Page) -> None:
    show(fake, page)
    fake.trouble = "gone"
    look(page)
    expect(page.locator("#trouble")).to_be_visible()


def just(fake: Fake, page: Page) -> None:
    show(fake, page)


def empty(fake: Fake, page: Page) -> None:
    fake.status, fake.queue, fake.aside, fake.winners = samples.status(), [], [], []
    show(fake, page)


@pytest.mark.parametrize(
    ("state", "scheme", "width"),
    [
        (just, "light", 1280),
        (with_map, "dark", 320),
        (with_trouble, "light", 320),
        pytest.param(just, "dark", 320, marks=pytest.mark.full),
        pytest.param(with_map, "dark", 1280, marks=pytest.mark.full),
        pytest.param(with_token, "light", 1280, marks=pytest.mark.full),
        pytest.param(just, "dark", 1280, marks=pytest.mark.full),
        pytest.param(just, "light", 320, marks=pytest.mark.full),
        pytest.param(empty, "light", 1280, marks=pytest.mark.full),
        pytest.param(empty, "dark", 320, marks=pytest.mark.full),
        pytest.param(with_map, "light", 320, marks=pytest.mark.full),
        pytest.param(with_error, "light", 1280, marks=pytest.mark.full),
        pytest.param(with_error, "dark", 1280, marks=pytest.mark.full),
        pytest.param(with_token, "dark", 320, marks=pytest.mark.full),
        pytest.param(with_trouble, "dark", 1280, marks=pytest.mark.full),
    ],
)
def test_axe_finds_nothing(
    fake: Fake, page: Page, watch: Watch, state: Callable[[Fake, Page], None], scheme: str, width: int
) -> None:
    watch.expected = FAILED
    at_work(fake)
    page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
    page.set_viewport_size({"width": width, "height": 900})
    state(fake, page)
    accessible(page)


@pytest.mark.parametrize("width", [320, *(pytest.param(width, marks=pytest.mark.full) for width in (640, 840, 1024))])
def test_no_width_scrolls_sideways(fake: Fake, page: Page, tmp_path: Path, width: int) -> None:
    """640 is what zooming to 200 % leaves of 1280, and 320 what 400 % do."""
    at_work(fake)
    page.set_viewport_size({"width": width, "height": 900})
    show(fake, page)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    clipped = "nodes => nodes.filter(node => node.scrollWidth > node.clientWidth + 1).map(node => node.textContent)"
    assert page.locator("button:visible, td:visible, th:visible, select:visible").evaluate_all(clipped) == []
    with_map(fake, page)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    broken = "nodes => nodes.filter(node => node.offsetHeight > 48).map(node => node.textContent)"
    assert page.locator("button:visible").evaluate_all(broken) == []  # a label is one line
    assert page.screenshot(path=tmp_path / "dashboard.png", full_page=True)


def test_narrow_tables_say_their_columns(fake: Fake, page: Page) -> None:
    at_work(fake)
    page.set_viewport_size({"width": 320, "height": 900})
    show(fake, page)
    before = page.locator("#queue td").first.evaluate("cell => getComputedStyle(cell, '::before').content")
    assert before.startswith('"Hits')
    for table in page.locator("#panels table").all():
        columns = table.locator("thead th").all_text_contents()[1:]
        labels = (
            table.locator("tbody tr").first.locator("td").evaluate_all("cells => cells.map(cell => cell.dataset.label)")
        )
        assert labels == columns
        assert table.get_by_role("columnheader").count() == len(columns) + 1  # still a table to a screen reader


def test_landmarks_and_headings(fake: Fake, page: Page) -> None:
    at_work(fake)
    show(fake, page)
    assert page.evaluate("document.documentElement.lang") == "en"
    for landmark in ("banner", "main", "contentinfo"):
        expect(page.get_by_role(landmark)).to_have_count(1)
    levels = page.locator("h1:visible, h2:visible, h3:visible").evaluate_all(
        "nodes => nodes.map(node => node.localName)"
    )
    assert levels == ["h1", "h2", "h3", *["h2"] * 6]
    names = [page.get_by_role("table").nth(index).get_attribute("aria-labelledby") for index in range(4)]
    assert names == ["devices-caption", "queue-caption", "aside-caption", "winners-caption"]
    for name in ("Running", "Devices", "Queue", "Set aside", "Recent winners", "Ask for tuning", "Totals"):
        expect(page.get_by_role("region", name=name)).to_have_count(1)


def test_nothing_moves_for_those_who_want_no_motion(fake: Fake, page: Page) -> None:
    at_work(fake)
    show(fake, page)
    moves = "bar => parseFloat(getComputedStyle(bar).transitionDuration) > 0"
    assert page.locator(".bar").first.evaluate(moves)
    page.emulate_media(reduced_motion="reduce")
    assert not page.locator(".bar").first.evaluate(moves)


def test_the_files_ask_for_nothing_from_elsewhere() -> None:
    files = sorted(FILES.iterdir())
    assert {"index.html", "dashboard.css", "dashboard.js", "icon.svg"} <= {file.name for file in files}
    for file in files:
        text = file.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert "//" not in text.replace("// ", "") and "url(" not in text and "@import" not in text, file.name
        assert "innerHTML" not in text and "insertAdjacentHTML" not in text and "eval(" not in text, file.name
        assert max(len(line) for line in text.splitlines()) <= 120, file.name
    assert " style=" not in (FILES / "index.html").read_text(encoding="utf-8")
