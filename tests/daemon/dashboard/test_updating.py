"""How the page keeps up: what it asks for and when, and what an update leaves alone."""

from __future__ import annotations

import pytest
from playwright.sync_api import Page, expect

from tests.daemon.dashboard import samples
from tests.daemon.dashboard.conftest import at_work, look, show
from tests.daemon.dashboard.fake import Fake

HIDDEN = "Object.defineProperty(document, 'hidden', {get: () => window.unseen === true})"


def doing(fake: Fake, words: str) -> None:
    """Changes what the running job does, so that a test can wait for the update."""
    fake.status["running"] = [samples.running(doing=words)]


# --- what is asked ----------------------------------------------------------------------------------------------------


def test_lists_are_asked_for_when_counts_change(fake: Fake, page: Page) -> None:
    at_work(fake)
    show(fake, page)
    doing(fake, "checking the winner")
    expect(page.locator("#running")).to_contain_text("checking the winner")
    assert (fake.times("GET /v1/jobs"), fake.times("GET /v1/winners")) == (2, 1)
    fake.queue = fake.queue[1:]
    fake.status["jobs"]["waiting"] = 2
    expect(page.locator("#queue tr")).to_have_count(2)
    assert (fake.times("GET /v1/jobs"), fake.times("GET /v1/winners")) == (4, 2)


@pytest.mark.full
@pytest.mark.usefixtures("fresh")
def test_lists_are_asked_for_again_after_a_while(fake: Fake, page: Page) -> None:
    at_work(fake)
    page.clock.install()
    show(fake, page)
    fake.queue[1]["hits"] = 7654
    page.clock.run_for(35_000)
    expect(page.locator("#queue tr").nth(1)).to_contain_text("7\u202f654")


@pytest.mark.full
@pytest.mark.usefixtures("fresh")
def test_a_hidden_page_asks_seldom(fake: Fake, page: Page) -> None:
    page.add_init_script(HIDDEN)
    page.clock.install()
    show(fake, page)
    page.evaluate("window.unseen = true")
    page.clock.run_for(3000)
    before = fake.times("GET /v1/status")
    for _ in range(10):
        page.clock.run_for(1000)
    assert fake.times("GET /v1/status") <= before + 1
    fake.status = samples.status("stopping")
    page.evaluate("window.unseen = false")
    look(page)
    expect(page.locator("#state")).to_have_text("Stopping.")


# --- what stays -------------------------------------------------------------------------------------------------------


def test_focus_outlives_updates(fake: Fake, page: Page) -> None:
    at_work(fake)
    show(fake, page)
    page.get_by_role("button", name=f"Cancel {samples.SOFTCAP}").focus()
    fake.queue = [fake.queue[2], samples.job(99, "forward float32 b1 7x7 h1/1 d64"), *fake.queue[:2]]
    fake.status["jobs"]["waiting"] = 4
    look(page)
    expect(page.locator("#queue tr")).to_have_count(4)
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == f"Cancel {samples.SOFTCAP}"
    assert page.locator("#queue tr").evaluate_all("rows => rows.map(row => row.dataset.key)") == [
        "93",
        "99",
        "91",
        "92",
    ]


def test_focus_of_a_row_that_goes_moves_to_the_heading(fake: Fake, page: Page) -> None:
    at_work(fake)
    show(fake, page)
    page.get_by_role("button", name=f"Cancel {samples.PREFILL}").focus()
    fake.queue = fake.queue[1:]
    fake.status["jobs"]["waiting"] = 2
    look(page)
    expect(page.locator("#queue tr")).to_have_count(2)
    assert page.evaluate("document.activeElement.id") == "queue-heading"


def test_rows_selection_and_scroll_stay(fake: Fake, page: Page) -> None:
    at_work(fake)
    show(fake, page)
    page.evaluate("window.rows = [...document.querySelectorAll('#devices tr, #queue tr, #winners tr')]")
    page.evaluate("getSelection().selectAllChildren(document.querySelector('#winners [data-field=problem]'))")
    page.evaluate("scrollTo(0, 300)")
    fake.queue.append(samples.job(99))
    fake.status["jobs"]["waiting"] = 4
    doing(fake, "checking the winner")
    look(page)
    expect(page.locator("#running")).to_contain_text("checking the winner")
    expect(page.locator("#queue tr")).to_have_count(4)
    assert page.evaluate("window.rows.every((row) => row.isConnected)")
    assert page.evaluate("getSelection().toString()") == samples.FORWARD
    assert page.evaluate("scrollY") == 300


def test_what_is_typed_stays(fake: Fake, page: Page) -> None:
    at_work(fake)
    show(fake, page)
    page.get_by_label("Model", exact=True).fill("smollm2-135m")
    page.get_by_label("Device", exact=True).select_option("cpu")
    fake.status["devices"] = [samples.device({**samples.H200, "device": "cuda:1"}), *fake.status["devices"]]
    look(page)
    expect(page.locator("#device option")).to_have_count(4)
    assert page.get_by_label("Model", exact=True).input_value() == "smollm2-135m"
    assert page.get_by_label("Device", exact=True).input_value() == "cpu"


def test_only_changes_of_state_are_announced(fake: Fake, page: Page) -> None:
    at_work(fake)
    show(fake, page)
    page.evaluate(
        "window.told = []; new MutationObserver(() => told.push(announcer.textContent))"
        ".observe(announcer, {childList: true, characterData: true, subtree: true})"
    )
    for waiting, words in (
        (2, "Tuning 1 of 3 problems on NVIDIA H200."),
        (1, "Tuning 1 of 2 problems on NVIDIA H200."),
    ):
        fake.status["jobs"]["waiting"] = waiting
        look(page)
        expect(page.locator("#state")).to_have_text(words)
    assert page.evaluate("told") == []
    fake.status = samples.status()
    look(page)
    expect(page.locator("#state")).to_have_text("Idle: nothing to tune.")
    assert page.evaluate("told") == ["Idle: nothing to tune."]
    assert page.locator("[aria-live], [role=status]").evaluate_all("nodes => nodes.map(node => node.id)") == [
        "notice", "announcer",
    ]  # fmt: skip
