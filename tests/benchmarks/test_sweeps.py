"""Recording sweeps, and the regret of the strategies on them, with tiny numbers."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from benchmarks import record, regret, sweeps
from faops.autotune.recording import sweep
from faops.autotune.recording.replay import Replayed, replay
from faops.autotune.search.candidates import Candidate
from faops.autotune.search.halving import Halving
from faops.device import detect, known
from faops.problem import parse_shape
from faops.registry import Config

from ..autotune.support import FakeKernel

TINY = parse_shape("op=decode,sq=1,sk=32,h=2,d=16,dtype=float32")


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where quick results go."""
    monkeypatch.setattr(record, "QUICK_RESULTS", tmp_path)
    monkeypatch.setattr(sweeps, "QUICK_SHAPES", (sweeps.QUICK_SHAPES[1],))
    monkeypatch.setattr(sweeps, "foreign_cores", lambda seconds: 0.0)
    return tmp_path / record.device_folder(detect("cpu"))


def test_sweeps_are_recorded_and_searched(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sweeps.main(["--quick"]) == 0
    said = capsys.readouterr().out
    (path,) = (results / "sweeps").glob("*.jsonl")
    assert path.name == "decode-float32-b1-1x64-h2-2-d16.jsonl"
    assert said.startswith("1 problems, at most about 0.0 minutes on ") and str(path) in said
    found = sweep.read(path)
    assert found.profile == detect("cpu") and not found.modelled
    assert found.seconds.keys() | found.failures.keys() == set(found.space.all)
    assert path.stat().st_size < 2000 * len(found.space)

    assert regret.main(["--quick", "--seeds", "1"]) == 0
    said = capsys.readouterr().out
    assert "measured sweeps\n" in said and "made-up sweeps (cost model with errors)\n" in said
    result = json.loads((results / "regret.json").read_text())
    assert set(result["groups"]) == {"measured", "modelled"}
    assert {point["strategy"] for point in result["groups"]["measured"]} == {"halving", "random", "exhaustive"}
    assert (results / "regret.png").read_bytes().startswith(b"\x89PNG")


def test_made_up_sweeps_lie_apart_and_say_so(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweeps, "MODELS", ("smollm2-135m",))
    assert sweeps.main(["--quick", "--modelled", "t4"]) == 0
    paths = sorted((results.parent / "modelled-t4" / "sweeps").glob("*.jsonl"))
    assert [sweep.read(path).problem.op for path in paths] == ["backward", "decode", "forward"]
    assert all(sweep.read(path).modelled and sweep.read(path).profile == known("t4") for path in paths)


def test_an_estimate_measures_nothing(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sweeps.main(["--estimate"]) == 0
    assert capsys.readouterr().out.startswith(f"{len(sweeps.SHAPES)} problems, at most about ")
    assert not results.exists()


def test_a_busy_machine_is_told(
    results: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeps, "foreign_cores", lambda seconds: 1.5)
    sweeps.main(["--quick"])
    assert "other programs use 1.5 cores" in capsys.readouterr().err


def test_file_names_tell_problems_apart() -> None:
    names = [sweeps.slug(parse_shape(shape)) for shape in sweeps.SHAPES]
    assert len(set(names)) == len(sweeps.SHAPES)
    assert all(name == os.path.basename(name) and " " not in name for name in names)


def test_longer_problems_are_expected_to_take_longer() -> None:
    cpu = detect("cpu")
    long = parse_shape("sq=8192,h=32,d=128,dtype=float32")
    short = sweeps.expected_seconds(parse_shape("sq=64,h=2,d=16,dtype=float32"), cpu, sweeps.QUICK)
    assert 0 < short < sweeps.expected_seconds(long, cpu, sweeps.QUICK)


def test_committed_sweeps_can_be_searched() -> None:
    for path in sorted(record.RESULTS.glob("*/sweeps/*.jsonl")):
        found = sweep.read(path)
        assert found.modelled is path.parents[1].name.startswith("modelled-"), path
        assert found.space.defaults and found.best in found.space.all, path
        result = replay(found, Halving())
        assert result.configs <= 32 and result.regret >= 0, path


# ---------------------------------------------------------------------------------------------- regret


def searches(*regrets: float, exhaustive: float = 0.0) -> list[tuple[Replayed, Replayed]]:
    winner = Candidate(FakeKernel(), Config(block=0))
    return [(Replayed(winner, value, 8, 20, 1.5), Replayed(winner, exhaustive, 9, 99, 9.5)) for value in regrets]


def test_a_point_sums_up_searches() -> None:
    point = regret.point("halving", 8, searches(0.0, 0.01, 0.015, 0.5))
    assert (point["searches"], point["configs"], point["timings"], point["seconds"]) == (4, 8, 20, 1.5)
    assert point["regret_mean"] == pytest.approx(0.13125)
    assert point["within_goal"] == 0.75
    assert point["regret_high"] == pytest.approx(0.015 + 0.85 * 0.485)
    assert point["excess_mean"] == pytest.approx(point["regret_mean"])


def test_the_goal_is_about_what_an_exhaustive_search_would_have_chosen() -> None:
    point = regret.point("halving", 8, searches(0.0, 0.05, 0.07, 0.08, exhaustive=0.05))
    assert point["regret_mean"] == pytest.approx(0.05)
    assert point["excess_mean"] == pytest.approx(0.0)
    assert point["within_goal"] == 0.75


def test_the_goal_is_reached_where_it_is_never_left_again() -> None:
    def points(*means: float) -> list[dict[str, object]]:
        return [
            {
                "strategy": "random",
                "configs": 4 * place,
                "seconds": 1.0 * place,
                "timings": 10 * place,
                "excess_mean": mean,
            }
            for place, mean in enumerate(means, 1)
        ]

    assert (
        regret.reached("random", points(0.5, 0.01, 0.01))
        == "  random: within 2% of the exhaustive search in the mean from 8 configs on, 20 timings, 2.00 s"
    )
    assert regret.reached("random", points(0.01, 0.03, 0.01)).endswith("from 12 configs on, 30 timings, 3.00 s")
    assert (
        regret.reached("random", points(0.01, 0.03)) == "  random: never within 2% of the exhaustive search in the mean"
    )
    assert regret.table([]) == "  none"


def test_made_up_sweeps_differ_by_seed_and_say_so() -> None:
    first, again, other = (list(regret.modelled_sweeps("h200", seed)) for seed in (0, 0, 1))
    assert first == again != other
    assert len(first) == len(regret.SHAPES)
    assert all(found.modelled and found.profile == known("h200") for found in first)
