"""A daemon that is gone, slow or confused: the page says so, says how old its news are, and recovers by itself."""

from __future__ import annotations

from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.daemon.dashboard import samples
from tests.daemon.dashboard.conftest import FAILED, Watch, at_work, look, show
from tests.daemon.dashboard.fake import Fake


@pytest.fixture(autouse=True)
def failures(watch: Watch) -> None:
    watch.expected = FAILED


def run_until(page: Page, words: str) -> None:
    """Lets the page's clock run until its message holds these words."""
    trouble = page.locator("#trouble")
    for _ in range(60):
        if trouble.is_visible() and words in (trouble.text_content() or ""):
            return
        page.clock.run_for(2000)
        page.wait_for_timeout(10)  # the network has no share in that clock
    expect(trouble).to_contain_text(words)


@pytest.mark.usefixtures("fresh")
def test_a_daemon_that_goes_and_comes_back(fake: Fake, page: Page) -> None:
    at_work(fake)
    page.clock.install()
    show(fake, page)
    button = page.get_by_role("button", name=f"Cancel {samples.SOFTCAP}")
    button.focus()
    fake.trouble = "gone"
    run_until(page, "The daemon does not answer. What stands below is ")
    run_until(page, "Asking again in 15 s. In a terminal, faops daemon start starts it")
    before = fake.times("GET /v1/status")
    page.clock.run_for(10_000)
    assert fake.times("GET /v1/status") <= before + 1
    expect(page.locator("#state")).to_have_text("What the daemon does is not known.")
    expect(page.locator("#panels")).to_have_class("stale")
    expect(page.locator("#announcer")).to_have_text("The daemon does not answer.")
    expect(page).to_have_title("No answer · faops daemon")
    expect(button).to_be_focused()
    fake.trouble = ""
    page.clock.run_for(7000)  # less than an answer may take
    expect(page.locator("#state")).to_have_text("Tuning 1 of 4 problems on NVIDIA H200.")
    expect(page.locator("#trouble")).to_be_hidden()
    expect(page.locator("#panels")).not_to_have_class("stale")
    expect(page.locator("#announcer")).to_have_text("Tuning 1 of 4 problems on NVIDIA H200.")
    expect(button).to_be_focused()


@pytest.mark.full
@pytest.mark.usefixtures("fresh")
def test_a_daemon_that_never_answered(fake: Fake, page: Page) -> None:
    fake.trouble = "gone"
    page.goto("/")
    expect(page.locator("#trouble")).to_contain_text("The daemon does not answer. Asking")
    expect(page.locator("#trouble")).not_to_contain_text("old")
    expect(page.locator("#panels")).to_be_hidden()
    fake.trouble = ""
    expect(page.locator("#state")).to_have_text("Idle: nothing to tune.")


@pytest.mark.full
@pytest.mark.usefixtures("fresh")
def test_a_slow_daemon(fake: Fake, page: Page) -> None:
    at_work(fake)
    page.clock.install()
    show(fake, page)
    fake.trouble = "slow"
    run_until(page, "The daemon takes long to answer. What stands below is ")
    run_until(page, "The daemon did not answer within 10 s. What stands below is ")
    fake.trouble = ""
    fake.released.set()
    page.clock.run_for(16_000)
    expect(page.locator("#trouble")).to_be_hidden()


ANSWERS: dict[str, Any] = {
    "the disk is full (507)": (507, {"title": "Insufficient Storage", "detail": "the disk is full"}),
    "Service Unavailable (503)": (503, {"title": "Service Unavailable"}),
    "no reason given (500)": (500, "Internal Server Error"),
    "no reason given (502)": (502, "null"),
    "The daemon gave an answer that is not JSON.": (200, "<html>"),
    "The daemon's answer is not what this page expects; reload the page.": (200, {"state": "tuning"}),
}


def test_answers_that_are_none(fake: Fake, page: Page, watch: Watch) -> None:
    watch.expected = ""  # the page logs what it did not expect
    show(fake, page)
    for words, answer in ANSWERS.items():
        fake.answers["GET /v1/status"] = answer
        look(page)
        expect(page.locator("#trouble")).to_contain_text(words)
    del fake.answers["GET /v1/status"]
    look(page)
    expect(page.locator("#trouble")).to_be_hidden()


def test_lists_that_fail_are_asked_for_again(fake: Fake, page: Page) -> None:
    at_work(fake)
    show(fake, page)
    fake.answers["GET /v1/winners"] = 507, {"title": "Insufficient Storage", "detail": "the disk is full"}
    page.get_by_role("button", name=f"Cancel {samples.SOFTCAP}").click()
    expect(page.locator("#trouble")).to_contain_text("the disk is full (507)")
    fake.winners = fake.winners[:1]
    del fake.answers["GET /v1/winners"]
    look(page)
    expect(page.locator("#winners tr")).to_have_count(1)
    expect(page.locator("#trouble")).to_be_hidden()


def test_a_button_while_the_daemon_is_gone(fake: Fake, page: Page) -> None:
    at_work(fake)
    show(fake, page)
    fake.trouble = "gone"
    page.get_by_role("button", name=f"Cancel {samples.SOFTCAP}").click()
    expect(page.locator("#notice")).to_have_text("The daemon does not answer.")
    expect(page.locator("#trouble")).to_be_visible()
    fake.trouble = ""
    look(page)
    expect(page.locator("#trouble")).to_be_hidden()
