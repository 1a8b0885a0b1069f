"""What the page shows of what the daemon says."""

from __future__ import annotations

import re
from typing import Any

import pytest
from playwright.sync_api import Locator, Page, expect

from faops.autotune.report.heat_map import heat_maps
from tests.autotune.report.support import parsed, tiles
from tests.daemon.dashboard import samples
from tests.daemon.dashboard.conftest import FAILED, Watch, at_work, show
from tests.daemon.dashboard.fake import Fake

HOSTILE = (
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "\u202egnimmar \u05d0\u05d1\u05d2 \u0627\u0644\u0639\u0631\u0628\u064a\u0629",
    "x" * 3000,
    '"><style>*{display:none}</style>',
    "\x00\ufffd\U0001f600 &amp; &lt;",
    "${7*7} {{7*7}} __proto__ constructor",
)


def cells(row: Locator) -> list[str]:
    """The texts of a row's cells."""
    return [" ".join(text.split()) for text in row.locator("th, td").all_inner_texts()]


# --- its states -------------------------------------------------------------------------------------------------------


def test_an_empty_daemon(fake: Fake, page: Page) -> None:
    show(fake, page)
    expect(page).to_have_title("Idle · faops daemon")
    expect(page.locator("#state")).to_have_text("Idle: nothing to tune.")
    for name in ("running", "devices", "queue", "aside", "winners"):
        expect(page.locator(f"#{name}-empty")).to_be_visible()
        assert page.locator(f"#{name} > *").count() == 0
    expect(page.locator("table:visible")).to_have_count(0)
    expect(page.locator("#queue-empty")).to_contain_text("faops daemon submit")
    expect(page.locator("#trouble")).to_be_hidden()


def test_a_daemon_at_work(fake: Fake, page: Page) -> None:
    at_work(fake)
    show(fake, page)
    expect(page).to_have_title("Tuning, 3 waiting · faops daemon")
    expect(page.locator("#state")).to_have_text("Tuning 1 of 4 problems on NVIDIA H200.")
    expect(page.locator(".empty:visible")).to_have_count(0)
    assert [cells(row) for row in page.locator("#devices tr").all()] == [
        ["cuda:0 NVIDIA H200", "yes", "idle for 42 s", "2", "process 4750, 812 MB"],
        ["cpu Intel Xeon 8481C", "no", "other programs use 5.2 of 8 cores", "1", "none"],
    ]
    totals = page.locator("#totals dd").all_inner_texts()
    assert totals[:5] == ["128", "71", "2 h 15 min", "412", "1"]
    assert re.match(r"faops 0.9.0, process \d+, since \d\d:\d\d", totals[5])
    assert totals[6] == "54.3 MB"


def test_the_running_job(fake: Fake, page: Page) -> None:
    at_work(fake)
    show(fake, page)
    card = page.locator("#running > li")
    expect(card.locator("h3")).to_have_text(samples.FORWARD)
    expect(card).to_contain_text("timed cuda_raw.sm90_forward [block_q=128, block_k=64, stages=2]")
    bar = page.get_by_role("progressbar", name="34 of about 61 measurements")
    assert (bar.get_attribute("value"), bar.get_attribute("max")) == ("34", "61")
    assert card.locator("dd").all_inner_texts() == ["810 us", "about 39 s", "47 s", "cuda:0"]


@pytest.mark.parametrize("planned", [0, None])
def test_a_job_of_which_little_is_known(fake: Fake, page: Page, planned: int | None) -> None:
    unknown = {"done": 0, "planned": planned, "best_seconds": None, "remaining_seconds": None, "yielding": True}
    fake.status = samples.status("paused", running=[samples.running(**unknown)], paused={"reason": "", "until": None})
    show(fake, page)
    card = page.locator("#running > li")
    expect(card).to_contain_text("getting ready")
    expect(card).to_contain_text("held back while the daemon is paused")
    assert card.locator("progress").get_attribute("value") is None
    assert card.locator("dd").all_inner_texts()[:2] == ["-", "not known yet"]


def test_the_queue_says_why_each_waits(fake: Fake, page: Page) -> None:
    at_work(fake)
    show(fake, page)
    rows = [cells(row)[:5] for row in page.locator("#queue tr").all()]
    later = rows[1].pop()
    assert rows == [
        [f"{samples.PREFILL} cuda:0, asked for", "-", "asked for", "1 min 35 s", "it is next"],
        [f"{samples.DECODE} cuda:0", "1 200", "1.5 s", "1 min 35 s"],
        [f"{samples.SOFTCAP} cpu", "31", "620 ms", "1 min 35 s", "other programs use 5.2 of 8 cores"],
    ]
    assert re.fullmatch(
        r"tried again at (\d+ \w+ )?\d\d:\d\d after 1 failed attempt: the worker was ended by SIGSEGV", later
    )


def test_what_was_set_aside(fake: Fake, page: Page) -> None:
    at_work(fake)
    show(fake, page)
    first, second = (cells(row) for row in page.locator("#aside tr").all())
    assert first[0] == f"{samples.BACKWARD} cuda:0, 1 200 hits"
    assert first[2:] == ["failed 3 times: the worker was ended by SIGSEGV", "Retry"]
    assert (second[0], second[2]) == (f"{samples.SOFTCAP} cuda:0, 1 hit", "cancelled")


def test_winners(fake: Fake, page: Page) -> None:
    at_work(fake)
    show(fake, page)
    faster, stays = page.locator("#winners tr").all()
    assert cells(faster)[1:] == [
        "cuda_raw.sm90_forward block_q=128, block_k=64, stages=2", "1 ms → 800 us", "1.25x above the noise", "Show",
    ]  # fmt: skip
    assert cells(stays)[1:] == [
        "the default cuda_raw.sm90_forward block_q=64, block_k=64, stages=2", "1 ms",
        "- nothing faster: the default stays", "none",
    ]  # fmt: skip
    widths = [row.locator(".bar").evaluate("bar => bar.style.width") for row in (faster, stays)]
    assert widths == ["20%", "0%"]


@pytest.mark.parametrize(
    ("paused", "words"),
    [
        (
            {"reason": "a benchmark", "until": samples.moment(60 * 24 * 3)},
            r"Paused until \d+ \w+ \d\d:\d\d: a benchmark\.",
        ),
        ({"reason": "a benchmark", "until": None}, r"Paused: a benchmark\."),
        ({"reason": "", "until": None}, r"Paused\."),
    ],
)
def test_a_paused_daemon(fake: Fake, page: Page, paused: dict[str, Any], words: str) -> None:
    fake.status, fake.queue = samples.status("paused", paused=paused, jobs={"waiting": 3}), samples.queue()
    show(fake, page)
    expect(page.locator("#state")).to_have_text(re.compile(f"^{words}$"))
    expect(page.get_by_role("button", name="Resume")).to_be_visible()
    expect(page.locator("#pause-choice")).to_be_hidden()
    expect(page.locator("#queue tr").first).to_contain_text("the daemon is paused")


WAITING = {
    "Waiting with 3 problems: it is 14:00, outside of 22:00-06:00.": (
        [samples.device(samples.XEON, gate=samples.gate(False, "it is 14:00, outside of 22:00-06:00"), waiting=3)],
        [],
    ),
    "Waiting with 3 problems: the next one is about to begin.": ([samples.device(samples.H200, waiting=3)], []),
    "Waiting with 3 problems: the devices of this machine are looked up.": ([], []),
    "Waiting with 1 of 4 problems on NVIDIA H200: another program uses 80 % of it.": (
        [samples.device(samples.H200, gate=samples.gate(False, "another program uses 80 % of it"))],
        [samples.running(yielding=True)],
    ),
}


@pytest.mark.parametrize("words", WAITING)
def test_a_waiting_daemon(fake: Fake, page: Page, words: str) -> None:
    devices, running = WAITING[words]
    fake.status = samples.status("waiting", devices=devices, running=running, jobs={"waiting": 3})
    fake.queue = samples.queue()
    show(fake, page)
    expect(page.locator("#state")).to_have_text(words)


def test_a_daemon_that_waits_for_a_second_attempt(fake: Fake, page: Page) -> None:
    fake.status = samples.status("waiting", devices=[samples.device(samples.H200, waiting=1)], jobs={"waiting": 1})
    fake.queue = [samples.job(1, not_before=samples.moment(5))]
    show(fake, page)
    expect(page.locator("#state")).to_have_text("Waiting with 1 problem: those that failed are tried again later.")


def test_a_stopping_daemon_offers_no_pause(fake: Fake, page: Page) -> None:
    fake.status = samples.status("stopping")
    show(fake, page)
    expect(page.locator("#state")).to_have_text("Stopping.")
    expect(page.locator("#pause-form")).to_be_hidden()


# --- long lists and hostile texts -------------------------------------------------------------------------------------


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("presses", [1, pytest.param(6, marks=pytest.mark.full)])
def test_five_thousand_jobs(fake: Fake, page: Page, presses: int) -> None:
    fake.status, fake.queue = samples.status("waiting", jobs={"waiting": 5000}), list(samples.many(5000))
    show(fake, page)
    rows, rest = page.locator("#queue > tr"), page.locator("#queue-rest")
    expect(rows).to_have_count(20)
    expect(rest).to_have_text("4\u202f980 more")
    more = page.locator("#queue-more")
    for press in range(presses):
        more.focus()
        page.keyboard.press("Enter")
        expect(rows).to_have_count(100 + 80 * press)
    if presses == 1:
        return
    expect(rest).to_have_text("4\u202f500 more; faops daemon jobs lists them all")
    expect(more).to_be_hidden()
    assert page.evaluate("document.activeElement.id") == "queue-heading"
    expect(rows.nth(499)).to_contain_text("forward float32 b1 500x500 h8/8 d64")


def test_texts_are_texts(fake: Fake, page: Page) -> None:
    page.set_viewport_size({"width": 320, "height": 800})
    fake.status = samples.status("waiting", version=HOSTILE[0], devices=[], running=[], jobs={"waiting": 1})
    for number, text in enumerate(HOSTILE):
        known = {"device": text, "name": text, "identity": text}
        one = samples.running(text, doing=text)
        one["job"]["id"] = 1000 + number
        fake.status["devices"].append(samples.device(known, gate=samples.gate(False, text), waiting=1))
        fake.status["running"].append(one)
        fake.queue.append(samples.job(number, text, message=text, not_before=samples.moment(5), device=text))
        fake.aside.append(samples.job(100 + number, text, "quarantined", message=text))
        result = samples.winner(kernel=text, config={text: text}, default_kernel=text)
        fake.winners.append(samples.job(200 + number, text, "done", result=result))
    show(fake, page)
    shown = page.evaluate("[...document.querySelectorAll('[data-field=problem]')].map(node => node.textContent)")
    assert shown == [*HOSTILE] * 4
    for text in HOSTILE:
        assert text in (page.locator("#state").text_content() or "")
    assert page.locator("script, style, img").count() == 1
    assert page.evaluate("document.documentElement.scrollWidth") <= 320


# --- the tile map -----------------------------------------------------------------------------------------------------


def open_map(fake: Fake, page: Page, html: str) -> Locator:
    at_work(fake)
    fake.heat_map = html
    show(fake, page)
    page.get_by_role("button", name=f"Show the tile map of {samples.FORWARD}").click()
    content = page.locator("#dialog-content")
    expect(content).not_to_contain_text("Asking the daemon")
    return content


def test_the_tile_map_is_that_of_the_reports(fake: Fake, page: Page) -> None:
    html = "".join(heat_maps(tiles(), {}))
    content = open_map(fake, page, html)
    expect(page.get_by_role("dialog", name=f"Tile map of {samples.FORWARD}")).to_be_visible()
    assert fake.times("GET /v1/jobs/70/heat-map") == 1
    source = parsed(f"<div>{html}</div>")
    assert content.locator("table").count() == len(source.all("table")) == 2
    assert content.locator("td").count() == len(source.all("td"))
    assert "".join(content.inner_text().split()) == source.text.replace(" ", "")
    winner = content.locator("td.winner")
    assert winner.inner_text() == "★ 1 s"
    colours = "cell => [getComputedStyle(cell).backgroundColor, getComputedStyle(cell).color]"
    assert winner.evaluate(colours) == ["rgb(16, 46, 96)", "rgb(255, 255, 255)"]
    assert content.locator("td.failed").get_attribute("title") == "too much shared memory"
    assert content.locator("th[scope=row]").count() == len(source.all("th", scope="row"))


def test_a_tile_map_holds_nothing_else(fake: Fake, page: Page, watch: Watch) -> None:
    watch.expected = "Content Security Policy"  # would have stopped some of it too
    content = open_map(
        fake, page,
        "<p class='soft hidden' id=x onclick='alert(1)'>kept</p><script>alert(1)</script><style>*{color:red}</style>"
        "<img src=https://example.com/x onerror=alert(1)><iframe src=https://example.com></iframe>"
        "<svg><a href=javascript:alert(1)>y</a></svg><form action=https://example.com><button>z</button></form>"
        "<link rel=stylesheet href=https://example.com/x><base href=https://example.com><template><p>w</template>"
        '<p style="position: fixed">a</p><p style="background: #102e60; color: #ffffff">b</p>',
    )  # fmt: skip
    assert content.evaluate("node => node.innerHTML") == (
        '<p class="soft">kept</p><p>a</p><p style="background-color: rgb(16, 46, 96); color: rgb(255, 255, 255);">b</p>'
    )


def test_a_job_without_its_tile_map(fake: Fake, page: Page, watch: Watch) -> None:
    watch.expected = FAILED
    fake.answers["GET /v1/jobs/70/heat-map"] = 404, {"title": "Not Found", "detail": "job 70 has no heat map"}
    content = open_map(fake, page, "")
    expect(content).to_have_text("job 70 has no heat map (404)")


# --- words ------------------------------------------------------------------------------------------------------------


def test_quantities(fake: Fake, page: Page) -> None:
    show(fake, page)
    expected = {
        "seconds(0)": "0 ns", "seconds(1.234e-9)": "1.23 ns", "seconds(5e-5)": "50 us", "seconds(0.1234)": "123 ms",
        "seconds(12.34)": "12.3 s", "seconds(1234)": "1234 s", "seconds(null)": "-", "seconds(NaN)": "-",
        "duration(0.4)": "0 s", "duration(59.4)": "59 s", "duration(59.6)": "1 min 0 s", "duration(3725)": "1 h 2 min",
        "duration(200000)": "2 d 7 h", "duration(-5)": "0 s", "duration(undefined)": "-", "ratio(1.339)": "1.34x",
        "ratio(null)": "-", "megabytes(61.34e6)": "61.3 MB", "megabytes(null)": "-", "count(1234567)": "1 234 567",
        "counted(1, 'hit', 'hits')": "1 hit", "counted(0, 'hit', 'hits')": "0 hits", "clock(null)": "",
        "clock('nonsense')": "", "config({a: 1, b: true})": "a=1, b=True", "config(null)": "", "config('a=1')": "a=1",
        "ahead(null)": False,
    }  # fmt: skip
    body = ", ".join(f"words.{call}" for call in expected)
    found = page.evaluate(f"import('/words.js').then(words => [{body}])")
    plain = [item.replace("\u202f", " ") if isinstance(item, str) else item for item in found]
    assert dict(zip(expected, plain)) == expected
