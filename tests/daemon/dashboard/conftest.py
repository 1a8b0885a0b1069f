"""A browser for this folder's tests, and a page in it that must stay clean: no errors, no request elsewhere.

The browser lives as long as tests of this folder run: beside a running playwright no other test could use asyncio.
Opening a page is what costs most, so tests share one, which looks at the daemon anew for each; a test that asks for
the fixture `fresh` gets a page and a server of its own, not yet opened.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, Request, expect, sync_playwright

from tests.daemon.dashboard import samples
from tests.daemon.dashboard.fake import Fake, serve

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
ARGUMENTS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--in-process-gpu",
)  # fmt: skip
PATIENCE = 30_000  # milliseconds; a loaded machine is slow
FAILED = "Failed to load resource"  # what a browser logs for each answer that is none of success
RESET = """() => {
  document.querySelector("dialog").close();
  for (const form of document.forms) form.reset();
  document.querySelector("input[name=kind]").dispatchEvent(new Event("change"));
  document.activeElement.blur();
  getSelection().removeAllRanges();
  scrollTo(0, 0);
}"""
PROCESSES = itertools.count(5000)

expect.set_options(timeout=PATIENCE)


@dataclass
class Watch:
    """What the page did that it should not: errors, and requests to other hosts than its ``own``."""

    own: str  # the address of its server
    expected: str = "\0"  # errors that a test brings about hold this text
    found: list[str] = field(default_factory=list)

    def console(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning") and self.expected not in message.text:
            self.found.append(message.text)

    def request(self, request: Request) -> None:
        if not request.url.startswith(self.own):
            self.found.append(f"request to {request.url}")


@dataclass
class Opened:
    """A page, the server behind it, and what is watched on it."""

    fake: Fake
    page: Page
    watch: Watch

    def reset(self) -> None:
        """Makes the page and the server as they were at first; what was watched so far is another test's."""
        self.fake.reset()
        self.page.set_viewport_size({"width": 1280, "height": 900})
        self.page.emulate_media(color_scheme="light", reduced_motion="no-preference")
        self.page.evaluate(RESET)
        self.watch.expected = "\0"
        self.watch.found.clear()


@contextmanager
def opened_in(browser: Browser) -> Iterator[Opened]:
    """A page that has nothing yet, and the server for it."""
    fake = Fake()
    server = serve(fake)
    watch = Watch(fake.url)
    context = browser.new_context(viewport={"width": 1280, "height": 900}, base_url=fake.url)
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    page.on("console", watch.console)
    page.on("pageerror", lambda error: watch.found.append(str(error)))
    page.on("request", watch.request)
    yield Opened(fake, page, watch)
    context.close()
    fake.released.set()
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip(f"there is no Chromium on PATH (looked for {', '.join(NAMES)})")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=list(ARGUMENTS))
        yield browser
        browser.close()


@pytest.fixture(scope="package")
def shared(browser: Browser) -> Iterator[Opened]:
    with opened_in(browser) as opened:
        opened.page.goto("/")
        assert not opened.watch.found
        yield opened


@pytest.fixture
def fresh() -> None:
    """Asks for a page and a server of the test's own."""


@pytest.fixture
def opened(request: pytest.FixtureRequest, browser: Browser) -> Iterator[Opened]:
    if "fresh" in request.fixturenames:
        with opened_in(browser) as own:
            yield own
            assert not own.watch.found
        return
    shared: Opened = request.getfixturevalue("shared")
    shared.reset()
    yield shared
    assert not shared.watch.found


@pytest.fixture
def fake(opened: Opened) -> Fake:
    return opened.fake


@pytest.fixture
def page(opened: Opened) -> Page:
    return opened.page


@pytest.fixture
def watch(opened: Opened) -> Watch:
    return opened.watch


def at_work(fake: Fake) -> None:
    """Lets the daemon be busy, with jobs of every state."""
    fake.status, fake.queue = samples.busy(), samples.queue()
    fake.aside, fake.winners = samples.aside(), samples.winners()


def show(fake: Fake, page: Page, path: str = "/") -> None:
    """Opens the page unless it is open, and waits until it has drawn what the daemon says now, lists and all."""
    fake.status["pid"] = next(PROCESSES)
    fake.status["started"] = samples.moment()
    if page.url == "about:blank" or path != "/":
        page.goto(path)
    else:
        look(page)
    expect(page.locator("#totals")).to_contain_text(f"process {fake.status['pid']},")


def look(page: Page) -> None:
    """Lets the page ask the daemon now, not only at the next beat."""
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
