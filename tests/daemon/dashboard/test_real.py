"""The page in front of the daemon's own application, with its queue, its token and its headers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from faops.autotune.report.heat_map import heat_maps
from faops.daemon.http.app import build
from faops.daemon.http.server import serve_tcp
from tests.autotune.report.support import tiles
from tests.daemon.dashboard.conftest import FAILED, Watch
from tests.daemon.http.support import RESULT, Served, task

TOKEN = "0123456789abcdef"


@pytest.fixture
def served(private_daemon: Path) -> Iterator[Served]:
    served = Served(private_daemon)
    yield served
    served.close()


@pytest.fixture
def address(served: Served) -> Iterator[str]:
    """The daemon on a loopback address, without its token."""
    listener = served.run(serve_tcp(build(served.control, TOKEN), "127.0.0.1", 0, served.doorman))
    yield listener.url.rstrip("/")
    served.run(listener.stop())


def fill(served: Served) -> None:
    """A queue with jobs of every state; 1 has a winner and 2 failed."""

    async def work() -> None:
        queue = served.control.queue
        queue.missed([(replace(task(number), words=f"problem {number}"), 100 * number) for number in range(1, 6)])
        queue.begin(1)
        queue.finish(1, {**RESULT, "heat_map": "".join(heat_maps(tiles(), {}))})
        queue.attempts = 1
        queue.begin(2)
        queue.fail(2, "the worker was ended by SIGSEGV", crashed=True)

    served.run(work())


@pytest.mark.usefixtures("fresh")
def test_the_page_works_with_the_daemon(served: Served, address: str, page: Page, watch: Watch) -> None:
    fill(served)
    watch.own = address
    page.goto(f"{address}/#token={TOKEN}")
    expect(page.locator("#queue tr")).to_have_count(3)
    assert page.locator("#queue th > span").all_inner_texts() == ["problem 5", "problem 4", "problem 3"]
    expect(page.locator("#winners tr")).to_contain_text("1.25x")
    expect(page.locator("#aside tr")).to_contain_text("failed once: the worker was ended by SIGSEGV")
    page.get_by_role("button", name="Cancel problem 4").click()
    expect(page.locator("#queue tr")).to_have_count(2)
    page.get_by_role("button", name="Retry problem 2").click()
    expect(page.locator("#aside tr")).to_have_count(1)
    expect(page.locator("#aside tr")).to_contain_text("problem 4")
    page.get_by_role("button", name="Show the tile map of problem 1").click()
    expect(page.locator("#dialog-content td.winner")).to_have_css("background-color", "rgb(16, 46, 96)")
    page.keyboard.press("Escape")
    page.locator("#pause").click()
    expect(page.locator("#state")).to_have_text("Paused: from the dashboard.")
    page.locator("#pause").click()
    expect(page.locator("#pause")).to_have_text("Pause")
    page.get_by_label("shapes", exact=True).check()
    page.get_by_label("Shapes, one a line").fill("sq=64,h=1,d=64\nsq=128,h=1,d=64")
    page.get_by_role("button", name="Tune").click()
    expect(page.locator("#notice")).to_contain_text("Asked for")
    shapes = served.control.queue.submission(1).request["shapes"]
    assert shapes == ["sq=64,h=1,d=64", "sq=128,h=1,d=64"]
    page.get_by_role("link", name="Metrics").click()
    expect(page.get_by_role("dialog", name="Metrics")).to_contain_text("faops_queue_depth")


@pytest.mark.full
@pytest.mark.usefixtures("fresh")
def test_without_its_token_the_daemon_tells_nothing(served: Served, address: str, page: Page, watch: Watch) -> None:
    watch.expected = FAILED
    watch.own = address
    fill(served)
    page.goto(address)
    expect(page.locator("#token")).to_be_visible()
    assert page.locator("#panels tbody tr").count() == 0
    page.locator("#token-value").fill(TOKEN)
    page.keyboard.press("Enter")
    expect(page.locator("#queue tr")).to_have_count(3)
