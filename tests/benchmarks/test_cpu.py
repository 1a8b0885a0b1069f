"""From samples to ratios and bars, and the whole benchmark on one tiny case."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import cases, cpu, record
from benchmarks.cases import FEATURES, Case


def test_building_the_mask_counts_in_a_forward_but_not_in_a_backward() -> None:
    samples = {"build": [1.0, 2.0], "forward": [10.0, 20.0], "forward_grad": [30.0, 40.0], "backward": [100.0, 200.0]}
    assert cpu.measures(samples, with_build=True) == {
        "forward": [11.0, 22.0],
        "backward": [100.0, 200.0],
        "forward_backward": [131.0, 242.0],
    }
    assert cpu.measures(samples, with_build=False)["forward_backward"] == [130.0, 240.0]
    assert list(cpu.measures({"build": [0.0], "forward": [1.0]}, with_build=True)) == ["forward"]


def test_bars() -> None:
    fast = {"build": [0.0] * 3, "forward": [1.0] * 3}
    slow = {"build": [0.5] * 3, "forward": [1.0] * 3}
    masked = cpu.ratios(FEATURES["window"], {"faops": fast, "sdpa": slow})
    assert masked["sdpa"]["forward"]["of_pairs"] == 1.5
    assert masked["sdpa"]["forward"]["bar"] == 2.0 and masked["sdpa"]["forward"]["verdict"] == "below"
    assert masked["sdpa_prebuilt"]["forward"]["of_pairs"] == 1.0 and "bar" not in masked["sdpa_prebuilt"]["forward"]
    own = cpu.ratios(FEATURES["causal"], {"faops": fast, "sdpa": slow, "flex": slow})
    assert own["sdpa"]["forward"]["bar"] == own["flex"]["forward"]["bar"] == 1.0
    assert own["sdpa"]["forward"]["verdict"] == "met" and "sdpa_prebuilt" not in own


@pytest.mark.parametrize("feature", FEATURES)
def test_every_case_has_a_plan(feature: str) -> None:
    plans = cpu.plans(Case(feature, 1024, 64, "float32"))
    assert list(plans) == ["forward", "forward_grad", "backward"]
    assert plans["backward"]["kernel"].endswith("backward")


def test_one_case_from_end_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(record, "QUICK_RESULTS", tmp_path)
    monkeypatch.setattr(cases, "TOKENS", (64,))
    arguments = ["--quick", "--features", "window", "--peers", "sdpa", "--seconds", "0", "--no-memory"]
    assert cpu.main(arguments) == 0
    (path,) = tmp_path.glob("*/cpu.json")
    result = json.loads(path.read_text())
    (found,) = result["cases"]
    assert found["case"] == {"feature": "window", "tokens": 64, "head_dim": 64, "dtype": "float32"}
    assert set(found["phases"]) == {"faops", "sdpa"} and found["disagreeing"] == []
    assert found["phases"]["faops"]["backward"]["n"] == 3
    assert found["ratios"]["sdpa"]["backward"]["of_pairs"] > 0
    assert found["plan"]["forward"]["source"] == "default"
    assert result["peers"]["sdpa"]["no_backward"] == ""
    assert "window 64 d64 float32" in capsys.readouterr().out


def test_only_the_whole_matrix_is_a_result() -> None:
    assert cpu._parse([]).complete
    for part in (["--quick"], ["--tokens", "1024"], ["--features", "plain"], ["--no-memory"], ["--forward-only"]):
        assert not cpu._parse(part).complete


def test_unknown_names_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cpu.main(["--features", "plain,wrong"])
    assert "'wrong' is not one of plain, causal" in capsys.readouterr().err
