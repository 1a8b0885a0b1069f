"""`faops tune --report` and `faops cache report`, as a person calls them."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import replace
from pathlib import Path

import pytest

from faops import registry
from faops.autotune import report
from faops.autotune.cache import TuningCache
from faops.autotune.cache.entry import Entry, Timing
from faops.autotune.report.verdict import why
from faops.device import detect
from tests.autotune.report.support import parsed
from tests.autotune.support import PROBLEM, make_entry
from tests.cli.conftest import Faops
from tests.cli.support import TINY, document, refused


@pytest.fixture
def entries() -> list[Entry]:
    """Two stored entries of this device, about made-up kernels."""
    cpu = detect("cpu")
    made = [make_entry(cpu), make_entry(cpu, replace(PROBLEM, seqlen_q=16, seqlen_k=16))]
    for entry in made:
        TuningCache().store(cpu, entry)
    return TuningCache().entries()


def test_tune_writes_a_report(faops: Faops, tmp_path: Path) -> None:
    path = tmp_path / "out.html"
    result = faops("tune", "--shape", TINY, "--shape", "sq=8,h=1,d=8,dtype=fp8", "--report", str(path))
    assert result.exit_code == 1  # fp8 does not run here, and the report says so
    assert f"the report is {path}" in result.stdout
    page = parsed(path.read_text(encoding="utf-8"))
    (section,) = page.all("section")
    (entry,) = TuningCache().entries()
    rows = section.all("div", class_="wide")[0].all("tbody")[0].all("tr")
    assert len(rows) == len(entry.timings)
    tuned, failed = page.all("div", class_="wide")[0].all("tbody")[0].all("tr")
    assert "16x16" in tuned.text
    assert "failed: no kernel can run" in failed.text
    assert not [name for name in os.listdir(tmp_path) if name.endswith(".tmp")]


def test_report_of_a_warm_run_needs_no_measuring(faops: Faops, tmp_path: Path) -> None:
    faops("tune", "--shape", TINY)
    path = tmp_path / "out.html"
    made = document(faops("tune", "--shape", TINY, "--report", str(path), "--json"))
    assert (made["measurements"], made["report"]) == (0, str(path))
    assert len(parsed(path.read_text(encoding="utf-8")).all("section")) == 1


def test_configs_that_were_not_timed_are_in_the_report(faops: Faops, tmp_path: Path) -> None:
    """The device is this one, so its kernels can say which configs there are beside those that were timed."""
    cpu, problem = detect("cpu"), replace(PROBLEM, seqlen_q=512, seqlen_k=512)
    name = "torch.blockwise_forward"
    kernel = registry.get(name)
    assert kernel is not None
    timed = Timing(name, kernel.default_config(problem, cpu), 1.0, 1.0, 1.0, 0.0, 9, False)
    entry = make_entry(cpu, problem, kernel=name, config=timed.config, timings=(timed,), dropped=())
    TuningCache().store(cpu, entry)
    path = tmp_path / "out.html"
    assert faops("cache", "report", str(path)).exit_code == 0
    maps = parsed(path.read_text(encoding="utf-8")).all("table", class_="map")
    texts = [cell.text for map_ in maps for cell in map_.all("td")]
    assert "not timed" in texts
    assert len([text for text in texts if text.startswith("★ 1 s")]) == 1


def test_report_of_a_run_knows_its_device(faops: Faops, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[object] = []
    monkeypatch.setattr(report, "write", lambda entries, path, profiles, notes: seen.append(profiles))
    faops("tune", "--shape", "sq=8,h=1,d=8,dtype=fp8", "--report", str(tmp_path / "out.html"))
    assert seen == [[detect("cpu")]]


def test_results_are_printed_though_the_report_cannot_be_written(
    faops: Faops, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(report, "write_whole", full)
    result = faops("tune", "--shape", TINY, "--report", str(tmp_path / "out.html"))
    assert result.exit_code == 1
    assert "the winners are stored in" in result.stdout
    assert "No space left on device" in result.stderr
    assert "the report is" not in result.stdout


@pytest.mark.parametrize("name", ["out.pdf", "missing/out.html", "."])
def test_path_is_refused_before_anything_is_measured(faops: Faops, tmp_path: Path, name: str) -> None:
    refused(faops("tune", "--shape", TINY, "--report", str(tmp_path / name)), "report: got", str(tmp_path / name))
    assert TuningCache().entries() == []


def test_picture_without_matplotlib_is_refused_before_anything_is_measured(
    faops: Faops, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "matplotlib" else real(name))
    refused(faops("tune", "--shape", TINY, "--report", str(tmp_path / "out.png")), "pip install 'faops[plot]'")
    assert TuningCache().entries() == []


def test_cache_report_of_all_and_of_some(faops: Faops, tmp_path: Path, entries: list[Entry]) -> None:
    path = tmp_path / "all.html"
    result = faops("cache", "report", str(path))
    assert result.stdout == f"2 entries in {path}\n"
    assert len(parsed(path.read_text(encoding="utf-8")).all("section")) == 2
    made = document(faops("cache", "report", str(path), "k16/", "--json"))
    assert made["report"] == str(path)
    assert len(made["keys"]) == 1
    (section,) = parsed(path.read_text(encoding="utf-8")).all("section")
    assert "16x16" in section.all("h2")[0].text


def test_cache_report_refuses_what_it_cannot_do(faops: Faops, tmp_path: Path) -> None:
    path = tmp_path / "all.html"
    refused(faops("cache", "report", str(path)), "no entries", "faops tune")
    TuningCache().store(detect("cpu"), make_entry(detect("cpu")))
    refused(faops("cache", "report", str(path), "q999"), "'q999'")
    refused(faops("cache", "report", str(tmp_path / "x.txt")), ".html or .png")
    assert not path.exists()


def test_cache_show_tells_why(faops: Faops, entries: list[Entry]) -> None:
    (entry,) = [entry for entry in entries if "q16/" in entry.key]
    text = faops("cache", "show", "q16").stdout
    for sentence in why(entry):
        assert f"- {sentence}\n" in text
    (shown,) = document(faops("cache", "show", "q16", "--json"))["entries"]
    assert shown["why"] == why(entry)
