"""`faops tune --page-size`: several sizes are tuned, each as its own problem, and compared at the end; on a real CPU.
Also `--dry-run` for devices that this machine has not got."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from faops.autotune import effort, tuner
from faops.autotune.cache import TuningCache
from faops.autotune.effort import Budget
from faops.autotune.workloads import from_model, from_plan
from faops.device import known
from faops.errors import PlanError
from tests.cli.conftest import Faops
from tests.cli.support import document, refused

MODEL = {
    "model_type": "llama", "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 64,
    "num_hidden_layers": 2, "max_position_embeddings": 2048,
}  # fmt: skip


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Timings that are short and therefore not worth much."""
    monkeypatch.setattr(effort, "WARMUP_SECONDS", 0.0)
    for name in ("QUICK", "HALVING", "FINAL"):
        monkeypatch.setattr(effort, name, Budget(warmup=0.0, time_cap=0.002, min_samples=2))


@pytest.fixture
def model(tmp_path: Path) -> str:
    (tmp_path / "config.json").write_text(json.dumps(MODEL))
    return str(tmp_path)


def test_page_sizes_are_tuned_and_compared(faops: Faops, model: str, tmp_path: Path) -> None:
    run = ("tune", "--hf-config", model, "--phase", "decode", "--context", "60", "--page-size", "16,32")
    found = document(faops(*run, "--json"))
    sizes = {row["problem"]["page_size"]: row for row in found["problems"]}
    assert set(sizes) == {16, 32}
    assert {row["problem"]["seqlen_k"] for row in sizes.values()} == {64}
    (comparison,) = found["page_sizes"]
    assert comparison["problem"]["page_size"] == 0
    seconds = {row["page_size"]: row["seconds"] for row in comparison["sizes"]}
    assert seconds == {size: row["winner"]["seconds"] for size, row in sizes.items()}
    assert comparison["fastest"] == min(seconds, key=lambda size: seconds[size])
    assert comparison["sizes"][0]["ratio"] == 1.0 <= comparison["sizes"][1]["ratio"]
    assert comparison["above_noise"] is not comparison["sizes"][1]["as_fast"]
    assert {entry.problem["page_size"] for entry in TuningCache().entries()} == {16, 32}

    warm = faops(*run, "--report", str(tmp_path / "tune.html"))
    lines = warm.stdout.splitlines()
    heading = next(index for index, line in enumerate(lines) if line.startswith("problem") and "page size" in line)
    assert f"  {comparison['fastest']}  " in lines[heading + 1]
    assert "fastest, " in lines[heading + 1]
    assert "Page sizes" in (tmp_path / "tune.html").read_text()


def test_one_page_size_is_compared_with_nothing(faops: Faops) -> None:
    shape = "op=decode,layout=paged,page_size=16,sq=1,sk=64,h=2,d=16,dtype=float32"
    assert document(faops("tune", "--shape", shape, "--json"))["page_sizes"] == []
    assert "page size" not in faops("tune", "--shape", shape).stdout


def test_shapes_are_compared_too(faops: Faops) -> None:
    shape = "op=decode,layout=paged,page_size={},sq=1,sk=64,h=2,d=16,dtype=float32"
    found = document(faops("tune", "--shape", shape.format(16), "--shape", shape.format(64), "--json"))
    assert [len(one["sizes"]) for one in found["page_sizes"]] == [2]


@pytest.mark.parametrize("given", [("16,32, 64",), ("16", "32,64"), ("16,16,32,64",)])
def test_sizes_are_written_in_one_or_several(faops: Faops, given: tuple[str, ...]) -> None:
    words = [word for text in given for word in ("--page-size", text)]
    plan = document(faops("tune", "--model", "gpt2", "--context", "100", *words, "--dry-run", "--json"))
    paged = [row["problem"] for row in plan["problems"] if row["problem"]["op"] == "decode"]
    assert [(problem["page_size"], problem["seqlen_k"]) for problem in paged] == [(16, 128), (32, 128), (64, 128)]


def test_caches_that_are_compared_have_room_for_the_same() -> None:
    problems = from_model("gpt2", phases="decode", context=[100, 300], page_size=[48, 64]).problems
    assert [(problem.page_size, problem.seqlen_k) for problem in problems] == [
        (48, 192), (64, 192), (48, 384), (64, 384),
    ]  # fmt: skip
    (alone,) = from_model("gpt2", phases="decode", context=100, page_size=[48]).problems
    assert alone.seqlen_k == 144
    (dense,) = from_model("gpt2", phases="decode", context=100, page_size=[]).problems
    assert (dense.layout, dense.seqlen_k) == ("dense", 100)


@pytest.mark.parametrize("sizes", [[127, 128], [1000, 999]])
def test_sizes_without_a_common_multiple_are_refused(sizes: list[int]) -> None:
    with pytest.raises(PlanError, match=r"page_size: got \d+, \d+, expected sizes with a small common multiple"):
        from_model("gpt2", page_size=sizes)
    with pytest.raises(PlanError, match="page_size: got 0, expected a whole number"):
        from_model("gpt2", page_size=[16, 0])


def test_plans_list_page_sizes(tmp_path: Path) -> None:
    plan = tmp_path / "tune.yaml"
    plan.write_text("workloads:\n- model: gpt2\n  phases: decode\n  context: 256\n  page_size: [64, 128]\n")
    assert [problem.page_size for problem in from_plan(plan).problems] == [64, 128]
    plan.write_text("workloads:\n- model: gpt2\n  page_size: [64, 63]\n")
    with pytest.raises(PlanError, match=r"tune\.yaml:2: page_size: got 64, 63"):
        from_plan(plan)


# ------------------------------------------------------------------------------------------ planning elsewhere


def test_a_dry_run_for_another_device(faops: Faops) -> None:
    plan = document(faops("tune", "--model", "llama-3-8b", "--device", "910b", "--dry-run", "--json"))
    assert plan["device"] == known("910b").name
    assert {row["problem"]["dtype"] for row in plan["problems"]} == {"bfloat16"}
    assert all(row["status"] == "to tune" and row["configs"] >= 1 for row in plan["problems"])
    old = document(faops("tune", "--model", "llama-3-8b", "--device", "T4", "--dry-run", "--json"))
    assert {row["problem"]["dtype"] for row in old["problems"]} == {"float16"}
    assert TuningCache().entries() == []


def test_nothing_waits_on_another_device(faops: Faops) -> None:
    for source, words in (("--from-misses", "waits on ascend_"), ("--resume", "was interrupted on ascend_")):
        result = faops("tune", source, "--device", "910b", "--dry-run")
        assert result.exit_code == 0
        assert words in result.stdout


def test_another_device_is_planned_for_and_no_more(faops: Faops) -> None:
    refused(faops("tune", "--model", "gpt2", "--device", "910b"), "'910b'", "a device of this machine")
    refused(faops("tune", "--model", "gpt2", "--device", "toaster", "--dry-run"), "'toaster'")


def test_from_python() -> None:
    problems = from_model("gpt2", device=known("910b"), prompt=128, phases="prefill").problems
    (row,) = tuner.estimate(problems, known("910b"))
    assert row["status"] == "to tune"
    assert row["legal"] >= 1
    assert tuner.unfinished(known("910b")) == []
