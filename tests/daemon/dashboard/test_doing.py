"""What the page's buttons and forms ask of the daemon, by mouse and by keyboard, with and without a token."""

from __future__ import annotations

from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.daemon.dashboard import samples
from tests.daemon.dashboard.conftest import FAILED, Watch, at_work, look, show
from tests.daemon.dashboard.fake import Fake

TOKEN = "0123456789abcdef"
PROBLEM = {"title": "Conflict", "status": 409, "detail": "job 91 is done"}


def submission(state: str, message: str = "", jobs: tuple[int, ...] = ()) -> dict[str, Any]:
    return {"id": 3, "state": state, "message": message, "jobs": list(jobs), "created": samples.moment()}


# --- pausing, cancelling, retrying ------------------------------------------------------------------------------------


def test_pause_and_resume(fake: Fake, page: Page) -> None:
    show(fake, page)
    button = page.locator("#pause")
    button.click()
    expect(page.locator("#notice")).to_have_text("Paused.")
    page.get_by_label("How long").select_option("1 hour")
    button.click()
    fake.status = samples.status("paused", paused={"reason": "from the dashboard", "until": samples.moment(60)})
    expect(button).to_have_text("Resume")
    expect(button).to_be_focused()
    fake.status = samples.status()
    button.click()
    expect(button).to_have_text("Pause")
    expect(page.locator("#notice")).to_have_text("Resumed.")
    reason = {"reason": "from the dashboard"}
    assert fake.bodies("POST /v1/pause") == [reason, {**reason, "seconds": 3600}]
    assert fake.bodies("POST /v1/resume") == [None]


def test_cancel(fake: Fake, page: Page) -> None:
    at_work(fake)
    show(fake, page)
    before = fake.times("GET /v1/jobs")
    page.get_by_role("button", name=f"Cancel {samples.PREFILL}").click()
    expect(page.locator("#notice")).to_have_text(f"Cancelled: {samples.PREFILL}")
    page.get_by_role("button", name=f"Cancel {samples.FORWARD}").click()
    expect(page.locator("#notice")).to_have_text(f"Cancelled: {samples.FORWARD}")
    assert [what for what, _ in fake.asked if what.startswith("DELETE")] == ["DELETE /v1/jobs/91", "DELETE /v1/jobs/90"]
    assert fake.times("GET /v1/jobs") > before  # the lists are asked for again


def test_retry(fake: Fake, page: Page) -> None:
    at_work(fake)
    show(fake, page)
    page.get_by_role("button", name=f"Retry {samples.BACKWARD}").click()
    expect(page.locator("#notice")).to_have_text(f"Waits again: {samples.BACKWARD}")
    assert fake.bodies("POST /v1/jobs/80/retry") == [None]


def test_a_refusal_is_told(fake: Fake, page: Page, watch: Watch) -> None:
    watch.expected = FAILED
    at_work(fake)
    fake.answers["DELETE /v1/jobs/91"] = 409, PROBLEM
    show(fake, page)
    page.get_by_role("button", name=f"Cancel {samples.PREFILL}").click()
    expect(page.locator("#notice")).to_have_text("job 91 is done (409)")
    expect(page.locator("#trouble")).to_be_hidden()


# --- asking for tuning ------------------------------------------------------------------------------------------------


def test_submit_a_model(fake: Fake, page: Page) -> None:
    at_work(fake)
    fake.answers["POST /v1/submissions"] = 202, submission("waiting")
    fake.answers["GET /v1/submissions/3"] = 200, submission("expanded", "1 was refused", (7, 8))
    show(fake, page)
    page.get_by_label("Model", exact=True).fill(" smollm2-135m ")
    page.get_by_label("Device", exact=True).select_option("cuda:0")
    page.get_by_label("measure again").check()
    page.keyboard.press("Enter")
    page.keyboard.press("Enter")
    expect(page.locator("#notice")).to_have_text("2 problems asked for: 1 was refused.")
    expect(page.locator("#submit")).not_to_have_attribute("aria-disabled", "true")
    body = {"model": "smollm2-135m", "device": "cuda:0", "force": True}
    assert fake.bodies("POST /v1/submissions") == [body]  # the second press came while the first was under way


def test_submit_shapes(fake: Fake, page: Page) -> None:
    fake.answers["POST /v1/submissions"] = 202, submission("refused", "shapes[1]: no such key 'x'")
    show(fake, page)
    page.get_by_label("shapes", exact=True).check()
    expect(page.get_by_label("Model", exact=True)).to_be_hidden()
    page.get_by_label("Shapes, one a line").fill("sq=1024,h=8,d=64\n\n  x=1 \n")
    page.get_by_role("button", name="Tune").click()
    expect(page.locator("#submit-error")).to_have_text("Refused: shapes[1]: no such key 'x'")
    assert fake.bodies("POST /v1/submissions") == [{"shapes": ["sq=1024,h=8,d=64", "x=1"]}]


def test_a_submission_that_is_wrong(fake: Fake, page: Page, watch: Watch) -> None:
    watch.expected = FAILED
    fake.answers["POST /v1/submissions"] = 422, {"detail": "model: got 'x y', expected ...", "field": "model"}
    show(fake, page)
    model, error = page.get_by_label("Model", exact=True), page.locator("#submit-error")
    page.get_by_role("button", name="Tune").click()
    expect(error).to_have_text("Name a model first.")
    expect(model).to_be_focused()
    assert model.get_attribute("aria-invalid") == "true"
    assert fake.times("POST") == 0
    model.fill("x y")
    page.get_by_role("button", name="Tune").click()
    expect(error).to_have_text("model: got 'x y', expected ... (422)")
    fake.answers["POST /v1/submissions"] = 202, submission("expanded", "", (7,))
    page.get_by_role("button", name="Tune").click()
    expect(page.locator("#notice")).to_have_text("1 problem asked for.")
    expect(error).to_be_hidden()
    assert model.get_attribute("aria-invalid") == "false"


# --- by keyboard alone ------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("fresh")
def test_everything_is_reached_by_keyboard(fake: Fake, page: Page) -> None:
    at_work(fake)
    show(fake, page)
    name = "node => node.getAttribute('aria-label') ?? node.labels?.[0]?.textContent ?? node.textContent"
    walked = []
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement === document.body"):
            break
        walked.append(" ".join(page.evaluate(f"({name})(document.activeElement)").split()))
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline != "none", f"nothing shows that {walked[-1]} has the focus"
    assert walked == [
        "Skip to the queue and the winners",
        "How long until resumed 10 minutes 1 hour 8 hours",
        "Pause",
        *(f"Cancel {problem}" for problem in (samples.FORWARD, samples.PREFILL, samples.DECODE, samples.SOFTCAP)),
        f"Retry {samples.BACKWARD}",
        f"Retry {samples.SOFTCAP}",
        f"Show the tile map of {samples.FORWARD}",
        "a model",
        "Model",
        "Device",
        "measure again what has a winner",
        "Tune",
        "Metrics for Prometheus",
        "Description of the API",
    ]


def test_skip_link_and_dialog_by_keyboard(fake: Fake, page: Page) -> None:
    at_work(fake)
    show(fake, page)
    page.locator(".skip").focus()
    expect(page.locator(".skip")).to_be_in_viewport()
    page.keyboard.press("Enter")
    expect(page.locator("main")).to_be_focused()
    button = page.get_by_role("button", name=f"Show the tile map of {samples.FORWARD}")
    button.focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog")).to_be_visible()
    expect(page.locator("#dialog-content h3")).to_have_text("Tile space")
    page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="Close")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("dialog")).to_be_hidden()
    expect(button).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog")).to_be_visible()
    look(page)
    page.keyboard.press("Escape")
    expect(page.locator("dialog")).to_be_hidden()
    expect(button).to_be_focused()


# --- with a token -----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("fresh")
def test_the_token_comes_with_the_address_and_leaves_it(fake: Fake, page: Page, watch: Watch) -> None:
    watch.expected = FAILED
    fake.token = TOKEN
    show(fake, page, f"/#token={TOKEN}")
    assert page.url == fake.url
    assert page.evaluate("sessionStorage.length + localStorage.length + document.cookie.length") == 1
    page.locator("#pause").click()
    expect(page.locator("#notice")).to_have_text("Paused.")
    page.get_by_role("link", name="Metrics").click()  # which by itself would carry no token
    expect(page.get_by_role("dialog", name="Metrics")).to_contain_text("faops_queue_depth 3")
    page.keyboard.press("Escape")
    fake.token = "another"  # the daemon was started anew; `faops daemon open` gives an address that differs in this
    expect(page.locator("#token")).to_be_visible()
    page.evaluate("location.hash = 'token=another'")
    expect(page.locator("#panels")).to_be_visible()
    assert page.evaluate("location.hash") == ""


@pytest.mark.usefixtures("fresh")
def test_without_a_token_the_page_asks_for_it(fake: Fake, page: Page, watch: Watch) -> None:
    watch.expected = FAILED
    fake.token = TOKEN
    page.clock.install()
    page.goto("/")
    field = page.get_by_label("Token", exact=True).and_(page.locator("input"))
    expect(field).to_be_focused()
    expect(page).to_have_title("Token · faops daemon")
    expect(page.locator("#token-why")).to_contain_text("only who has its token. faops daemon open prints an address")
    expect(page.locator("#pause-form")).to_be_hidden()
    page.clock.run_for(20_000)
    expect(page.locator("#token")).to_be_visible()
    assert fake.times("GET") == 1  # it does not try again by itself
    field.fill("wrong")
    page.keyboard.press("Enter")
    expect(page.locator("#token-why")).to_contain_text("is not that of the daemon")
    field.fill(TOKEN)
    page.keyboard.press("Enter")
    expect(page.locator("#state")).to_have_text("Idle: nothing to tune.")
    expect(page.locator("#token")).to_be_hidden()
    expect(page.locator("main")).to_be_focused()


def test_links_need_no_script_where_there_is_no_token(fake: Fake, page: Page) -> None:
    show(fake, page)
    for link in page.locator("footer a").all():
        assert link.evaluate("link => link.dispatchEvent(new Event('click', {bubbles: true, cancelable: true}))")
    assert [link.get_attribute("href") for link in page.locator("footer a").all()] == ["/metrics", "/openapi.json"]
