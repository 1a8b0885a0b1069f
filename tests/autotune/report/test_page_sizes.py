"""Page sizes are compared where nothing else differs, and noise is not called a difference."""

from __future__ import annotations

from dataclasses import replace

import pytest

from faops.autotune.cache.entry import Entry, Timing
from faops.autotune.report.page import page
from faops.autotune.report.page_sizes import compare, page_size
from faops.autotune.report.verdict import why
from faops.device import known
from faops.problem import AttentionProblem
from faops.registry import Config

from ..support import make_entry
from .support import T4, parsed

PAGED = AttentionProblem(
    op="decode", layout="paged", seqlen_k=1024, heads_q=8, heads_kv=2, head_dim=128, head_dim_v=128, append=True
)


def entry(size: int, p50: float, mad: float = 0.0, **changes: object) -> Entry:
    problem = replace(PAGED, page_size=size, **changes)  # type: ignore[arg-type]
    config = Config(tokens=size)
    timing = Timing("fake.decode", config, p50, p50, p50, mad, 9, False)
    return make_entry(T4, problem, kernel="fake.decode", config=config, p50=p50, timings=(timing,))


def test_the_fastest_comes_first_and_others_are_measured_by_it() -> None:
    (found,) = compare([entry(128, 1.5), entry(256, 1.0), entry(512, 1.1)])
    assert [page_size(one) for one in found.entries] == [256, 512, 128]
    assert found.problem == PAGED
    assert found.above_noise
    assert [found.verdict(one) for one in found.entries] == [
        "fastest, above the noise", "takes 1.10x as long", "takes 1.50x as long",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("second", "mad", "above"),
    [(1.03, 0.0, True), (1.015, 0.0, False), (1.03, 0.02, False), (1.05, 0.02, True), (1.0, 0.0, False)],
)
def test_noise_is_no_difference(second: float, mad: float, above: bool) -> None:
    """2 % of the slower one, or twice the larger deviation: what a winner must be faster than its default by."""
    (found,) = compare([entry(256, second, mad), entry(128, 1.0)])
    assert found.above_noise is above
    verdicts = [found.verdict(one) for one in found.entries]
    assert verdicts[0] == f"fastest, {'above' if above else 'within'} the noise"
    assert (verdicts[1] == "as fast within the noise") is not above


def test_one_that_is_as_fast_is_enough() -> None:
    (found,) = compare([entry(128, 1.0), entry(256, 1.01), entry(512, 2.0)])
    assert not found.above_noise
    assert [found.as_fast(one) for one in found.entries] == [True, True, False]


def test_only_page_sizes_are_compared() -> None:
    other_device = replace(entry(512, 0.1), device=known("h200").identity)
    other_software = replace(entry(512, 0.1), environment={"torch": "2.0"})
    dense = make_entry(T4, replace(PAGED, layout="dense"))
    others = [entry(64, 0.1, seqlen_k=512), entry(64, 0.1, append=False), other_device, other_software, dense]
    found = compare([entry(128, 1.0), *others, entry(256, 2.0), entry(64, 0.2, batch=2), entry(32, 0.3, batch=2)])
    assert [[page_size(one) for one in group.entries] for group in found] == [[128, 256], [64, 32]]


def test_nothing_to_compare() -> None:
    assert compare([]) == compare([entry(128, 1.0)]) == []
    dense = make_entry(T4, replace(PAGED, layout="dense"))
    assert compare([dense, dense]) == []


def test_an_entry_without_its_winners_timing_has_no_noise() -> None:
    bare = replace(entry(256, 1.5), timings=())
    (found,) = compare([entry(128, 1.0), bare])
    assert found.above_noise


def test_the_report_has_a_table() -> None:
    entries = [entry(128, 1.5e-3), entry(256, 1e-3), entry(64, 1.0, seqlen_k=512)]
    body = parsed(page(entries, [{}] * 3, ()))
    table = next(table for table in body.all("table") if "page size" in table.text)
    rows = [[cell.text for cell in row.all("td")] for row in table.all("tbody")[0].all("tr")]
    assert rows == [
        [str(PAGED), "256", "fake.decode tokens=256", "1 ms", "fastest, above the noise"],
        ["", "128", "fake.decode tokens=128", "1.5 ms", "takes 1.50x as long"],
    ]
    assert "Page sizes" in [heading.text for heading in body.all("h2")]
    assert "Page sizes" not in page(entries[1:], [{}] * 2, ())


def test_a_winner_on_an_npu_is_no_claim_about_tiles() -> None:
    on_npu = make_entry(known("910b"))
    (words,) = [sentence for sentence in why(on_npu) if "CANN" in sentence]
    assert "no argument sets them" in words
    assert not any("CANN" in sentence for sentence in why(make_entry(T4)))
