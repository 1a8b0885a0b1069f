"""The report as one HTML page that needs no other file: an overview, then a section a problem."""

from __future__ import annotations

from collections.abc import Sequence

from faops._version import __version__
from faops.autotune.cache.entry import Entry, Timing
from faops.autotune.report.grid import Legal
from faops.autotune.report.heat_map import heat_maps
from faops.autotune.report.markup import Markup, tag
from faops.autotune.report.page_sizes import Comparison, compare, page_size
from faops.autotune.report.style import STYLE
from faops.autotune.report.verdict import noise_of, verdict, why
from faops.quantities import counted, percent, ratio, seconds


def page(entries: Sequence[Entry], legal: Sequence[Legal], notes: Sequence[tuple[str, str]]) -> str:
    """The whole document. ``legal`` has an item for each entry; ``notes`` are problems without one, each with what
    became of it."""
    head = tag(
        "head",
        [
            tag("meta", charset="utf-8"),
            tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
            tag("title", "faops tuning report"),
            tag("style", Markup(STYLE)),
        ],
    )
    sections = [_section(entry, known, index) for index, (entry, known) in enumerate(zip(entries, legal))]
    body = tag(
        "body",
        [
            tag("h1", "Tuning report"),
            _introduction(entries),
            _overview(entries, notes),
            *_page_sizes(entries),
            *sections,
        ],
    )
    return f"<!doctype html>\n{tag('html', [head, body], lang='en')}\n"


def _introduction(entries: Sequence[Entry]) -> Markup:
    devices = ", ".join(dict.fromkeys(entry.device for entry in entries)) or "no device"
    return tag(
        "p",
        f"{counted(len(entries), 'tuned problem', 'tuned problems')} on {devices}; made by faops {__version__}. "
        "Times are medians of one call.",
        class_="soft",
    )


def _overview(entries: Sequence[Entry], notes: Sequence[tuple[str, str]]) -> Markup:
    columns = ("problem", "default", "winner", "speed-up", "noise", "verdict")
    rows = [_overview_row(entry, index) for index, entry in enumerate(entries)]
    rows += [tag("tr", [tag("td", problem), tag("td", note, colspan="5")]) for problem, note in notes]
    return _table(columns, rows)


def _overview_row(entry: Entry, index: int) -> Markup:
    found = verdict(entry)
    noise = "-" if found.default is None else f"±{percent(found.noise / entry.default_p50)}"
    problem = tag("a", str(entry.attention_problem()), href=f"#problem-{index}")
    winner = "the default" if entry.is_default else f"{entry.kernel} [{entry.config}]"
    judgement = "nothing faster beyond the noise" if entry.is_default else "above the noise"
    cells = [
        tag("td", problem),
        tag("td", seconds(entry.default_p50), class_="number"),
        tag("td", [winner, tag("br"), seconds(entry.p50)]),
        tag("td", "-" if entry.is_default else ratio(entry.speedup), class_="number"),
        tag("td", noise, class_="number"),
        tag("td", judgement),
    ]
    return tag("tr", cells)


def _page_sizes(entries: Sequence[Entry]) -> list[Markup]:
    """A table of the problems that were tuned with several page sizes."""
    columns = ("problem", "page size", "winner", "time", "verdict")
    rows = [_page_size_row(found, entry) for found in compare(entries) for entry in found.entries]
    return [tag("h2", "Page sizes"), _table(columns, rows)] if rows else []


def _page_size_row(found: Comparison, entry: Entry) -> Markup:
    cells = [
        tag("td", str(found.problem) if entry is found.fastest else ""),
        tag("td", str(page_size(entry)), class_="number"),
        tag("td", [entry.kernel, tag("small", str(entry.config))]),
        tag("td", seconds(entry.p50), class_="number"),
        tag("td", found.verdict(entry)),
    ]
    return tag("tr", cells)


def _section(entry: Entry, legal: Legal, index: int) -> Markup:
    content = [
        tag("h2", str(entry.attention_problem())),
        tag("ul", [tag("li", sentence) for sentence in why(entry)]),
        *heat_maps(entry, legal),
        tag("h3", "All timings"),
        _timings(entry),
        *_left_out(entry),
        tag("h3", "Where this comes from"),
        _facts(entry),
    ]
    return tag("section", content, id=f"problem-{index}")


def _timings(entry: Entry) -> Markup:
    ordered = sorted(entry.timings, key=lambda timing: timing.p50)
    slowest = ordered[-1].p50 if ordered else 0.0
    columns = ("kernel and config", "median", "p20 to p80", "noise", "samples", "predicted", "", "")
    return _table(columns, [_timing_row(entry, timing, slowest) for timing in ordered])


def _timing_row(entry: Entry, timing: Timing, slowest: float) -> Markup:
    share = 100 * timing.p50 / slowest if slowest > 0 else 0.0
    numbers = (
        seconds(timing.p50),
        f"{seconds(timing.p20)} to {seconds(timing.p80)}",
        f"±{percent(noise_of(timing))}{' noisy' if timing.noisy else ''}",
        str(timing.n),
        seconds(timing.predicted),
    )
    cells = [
        tag("td", [timing.kernel, tag("small", str(timing.config))]),
        *(tag("td", number, class_="number") for number in numbers),
        tag("td", _role(entry, timing)),
        tag("td", tag("span", class_="bar", style=f"width: {share:.1f}%"), class_="bars"),
    ]
    return tag("tr", cells)


def _role(entry: Entry, timing: Timing) -> str:
    roles = []
    if (timing.kernel, timing.config) == (entry.kernel, entry.config):
        roles.append("winner")
    if (timing.kernel, timing.config) == (entry.default_kernel, entry.default_config):
        roles.append("default")
    return ", ".join(roles)


def _left_out(entry: Entry) -> list[Markup]:
    if not entry.dropped:
        return []
    rows = [tag("tr", [tag("td", item.get("config", "")), tag("td", item.get("reason", ""))]) for item in entry.dropped]
    return [tag("h3", "Left out"), _table(("config", "why"), rows)]


def _facts(entry: Entry) -> Markup:
    facts = {
        "key": entry.key,
        "device": entry.device,
        "software": ", ".join(f"{name} {version}" for name, version in entry.environment.items()),
        "measured": f"{entry.date}, faops {entry.faops_version}",
        "file": str(entry.path or "not stored"),
    }
    return tag("dl", [[tag("dt", name), tag("dd", value)] for name, value in facts.items()])


def _table(columns: Sequence[str], rows: Sequence[Markup]) -> Markup:
    heading = tag("thead", tag("tr", [tag("th", name, scope="col") for name in columns]))
    return tag("div", tag("table", [heading, tag("tbody", rows)]), class_="wide")
