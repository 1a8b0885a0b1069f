"""Tables come from the result files alone, and the check notices a page that differs."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import record, tables

PAGE = "Before\n<!-- table there tuning -->\n<!-- end -->\nafter\n"


def result(speedup: float) -> dict[str, object]:
    plan = {"kernel": "torch.x", "config": {"block_q": 64}}
    case = {
        "case": "forward float32",
        "before": {"plan": plan},
        "after": {"plan": {"kernel": "torch.y", "config": {}}},
        "calls": {"default": {"median": 2e-3}, "tuned": {"median": 1e-3}},
        "speedup": {"of_pairs": speedup},
    }
    return {**record.header("tuning"), "cases": [case]}


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of results and a page; what record.write writes goes to the device "there"."""
    monkeypatch.setattr(record, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(record, "device_folder", lambda profile: "there")
    monkeypatch.setattr(tables, "PAGE", tmp_path / "page.md")
    tables.PAGE.write_text(PAGE)
    return tmp_path / "results"


def test_drawn_and_checked(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record.write(result(speedup=1.987))
    assert tables.main(["--check"]) == 1
    assert "differs" in capsys.readouterr().err
    assert tables.PAGE.read_text() == PAGE  # checking changes nothing
    assert tables.main([]) == 0
    drawn = tables.PAGE.read_text()
    assert "| forward float32 | torch.x (block_q 64) | torch.y | 2,000 → 1,000 | 1.99 |" in drawn
    assert drawn.startswith("Before\n") and drawn.endswith("after\n")
    assert tables.main(["--check"]) == 0
    tables.PAGE.write_text(drawn.replace("1.99", "2.99"))  # a figure typed by hand
    assert tables.main(["--check"]) == 1
    record.write(result(speedup=1.5))  # a new result
    assert tables.main([]) == 0
    assert "1.50" in tables.PAGE.read_text() and "2.99" not in tables.PAGE.read_text()


def test_what_was_not_measured_has_no_figure(results: Path) -> None:
    assert tables.redraw(PAGE, results).splitlines()[1:-1] == [
        "<!-- table there tuning -->", "", "Not measured on this device.", "", "<!-- end -->"
    ]  # fmt: skip


def test_an_unknown_table_is_an_error(results: Path) -> None:
    with pytest.raises(ValueError, match="unknown kind 'wrong'"):
        tables.redraw(PAGE.replace("tuning", "wrong"), results)


def test_a_missed_bar_is_bold() -> None:
    ratios = {
        "sdpa": {"forward": {"of_pairs": 0.5, "verdict": "below"}, "backward": {"of_pairs": 0.99, "verdict": "noise"}}
    }
    assert tables.ratio_cell({"ratios": ratios}, "sdpa", "forward") == "**0.50**"
    assert tables.ratio_cell({"ratios": ratios}, "sdpa", "backward") == "0.99"
    assert tables.ratio_cell({"ratios": ratios}, "flex", "forward") == ""


def test_memory_in_mib() -> None:
    memory = {"faops": {"forward": 3 * 2**20}, "sdpa": {"forward": 2**31}, "flex": {"failed": "killed"}}
    assert tables.memory_cell({"memory": memory}, "memory", "forward") == "3 / 2,048 / –"


def test_the_page_of_this_repository_is_what_the_files_say() -> None:
    page = tables.PAGE.read_text(encoding="utf-8")
    assert page.count("<!-- table") == page.count("<!-- end -->") == len(tables.BLOCK.findall(page)) > 0
    assert tables.redraw(page, record.RESULTS) == page


def test_rows_and_columns_of_the_matrix() -> None:
    def one(feature: str, tokens: int, dtype: str, head_dim: int, ratio: float) -> dict[str, object]:
        case = {"feature": feature, "tokens": tokens, "dtype": dtype, "head_dim": head_dim}
        return {"case": case, "ratios": {"sdpa": {"forward": {"of_pairs": ratio}}}, "memory": {}}

    cases = [
        one("alibi", 2048, "float32", 64, 1.0),
        one("plain", 8192, "bfloat16", 64, 2.0),
        one("plain", 1024, "float32", 128, 3.0),
        one("plain", 1024, "float32", 64, 4.0),
    ]
    assert tables.cpu({"cases": cases}, "sdpa", "forward").splitlines() == [
        "|  | tokens | float32, d 64 | float32, d 128 | bfloat16, d 64 |",
        "| --- | ---: | ---: | ---: | ---: |",
        "| plain | 1,024 | 4.00 | 3.00 | – |",
        "| plain | 8,192 | – | – | 2.00 |",
        "| causal, ALiBi | 2,048 | 1.00 | – | – |",
    ]
