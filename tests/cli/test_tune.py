"""`faops tune`: what it measures, what it reuses, what it prints and what it refuses."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from faops_cli.tune.run import STRATEGIES
from faops_cli.tune.workload import PHASES

from faops.autotune import tuner, workloads
from faops.autotune.cache import TuningCache
from faops.autotune.cache.entry import Timing
from faops.autotune.report.verdict import why
from faops.autotune.search import strategies
from faops.registry import Config
from tests.cli.conftest import Faops
from tests.cli.support import TINY, document, python, refused

OTHER = "sq=8,sk=24,h=2,d=16,dtype=float32"


def test_first_run_measures_and_stores_and_second_reuses(faops: Faops) -> None:
    first = document(faops("tune", "--shape", TINY, "--json"))
    (problem,) = first["problems"]
    assert problem["status"] == "tuned"
    assert problem["measurements"] == first["measurements"] > 1
    assert problem["default"]["seconds"] > 0
    assert problem["winner"]["seconds"] <= problem["default"]["seconds"]
    assert problem["above_noise"] == (problem["winner"] != problem["default"])
    assert Path(problem["stored"]).is_file()
    assert Path(problem["stored"]).is_relative_to(first["path"])
    assert problem["key"] == TuningCache().entries()[0].key

    second = document(faops("tune", "--shape", TINY, "--json"))
    assert second["measurements"] == 0
    assert second["problems"][0]["status"] == "warm"
    assert second["problems"][0]["winner"] == problem["winner"]

    forced = document(faops("tune", "--shape", TINY, "--force", "--json"))
    assert forced["problems"][0]["status"] == "tuned"


def test_text_of_a_cold_and_a_warm_run(faops: Faops) -> None:
    cold = faops("tune", "--shape", TINY, "--shape", OTHER)
    assert cold.exit_code == 0, cold.output
    lines = cold.stdout.splitlines()
    assert lines[0].startswith("[1/2] forward float32 b1 16x16 h2/2 d16 causal: ")
    assert lines[1].startswith("[2/2] forward float32 b1 8x24 h2/2 d16: ")
    assert "problem" in lines[3]
    assert "speed-up" in lines[3]
    assert "2 tuned; " in cold.stdout
    assert f"the winners are stored in {os.environ['FAOPS_CACHE_DIR']}" in cold.stdout

    warm = faops("tune", "--shape", TINY, "--shape", OTHER)
    assert "[2/2] forward float32 b1 8x24 h2/2 d16: reused" in warm.stdout
    assert "everything was tuned before and is reused: nothing was measured" in warm.stdout


def test_json_leaves_stdout_to_the_document_and_progress_to_stderr(faops: Faops) -> None:
    result = faops("tune", "--shape", TINY, "--json")
    json.loads(result.stdout)
    assert "[1/1]" in result.stderr


def test_dry_run_measures_and_stores_nothing(faops: Faops) -> None:
    plan = document(faops("tune", "--model", "smollm2-135m", "--dry-run", "--json"))
    assert plan["dry_run"] is True
    assert all(row["configs"] > 1 and row["seconds"] > 0 for row in plan["problems"])
    assert {row["problem"]["heads_q"] for row in plan["problems"]} == {9}
    text = faops("tune", "--model", "smollm2-135m", "--dry-run")
    assert "nothing was measured" in text.stdout
    assert TuningCache().entries() == []


def test_dry_run_says_what_cannot_run_and_what_is_warm(faops: Faops) -> None:
    faops("tune", "--shape", TINY)
    result = faops("tune", "--dry-run", "--shape", TINY, "--shape", "sq=8,h=1,d=8,dtype=fp8")
    assert result.exit_code == 0
    assert "warm" in result.stdout
    assert "failed" in result.stdout
    assert "0 of 2 problems to tune" in result.stdout
    again = faops("tune", "--dry-run", "--force", "--shape", TINY)
    assert "1 of 1 problems to tune" in again.stdout


def test_model_options_reach_the_problems(faops: Faops) -> None:
    arguments = ("--batch", "2", "--dtype", "bf16", "--prompt", "64", "--context", "128", "--training", "--kv-cache")
    plan = document(faops("tune", "--model", "smollm2-135m", *arguments, "--dry-run", "--json"))
    problems = [row["problem"] for row in plan["problems"]]
    assert {problem["batch"] for problem in problems} == {2}
    assert {problem["dtype"] for problem in problems} == {"bfloat16"}
    assert {problem["op"] for problem in problems} == {"forward", "backward", "decode"}
    assert {problem["seqlen_k"] for problem in problems} == {64, 128}


def test_phases_pages_and_packing_reach_the_problems(faops: Faops) -> None:
    arguments = ("--phase", "prefill", "--phase", "decode", "--page-size", "16", "--packed", "--prompt", "64")
    plan = document(faops("tune", "--model", "smollm2-135m", *arguments, "--context", "64", "--dry-run", "--json"))
    found = {(row["problem"]["op"], row["problem"]["layout"], row["problem"]["page_size"]) for row in plan["problems"]}
    assert found == {("forward", "varlen", 0), ("decode", "paged", 16)}


def test_phases_are_those_of_the_workloads() -> None:
    """The command line names them itself, because asking for them would import torch."""
    assert PHASES == workloads.PHASES


def test_hf_config_and_plan(faops: Faops, tmp_path: Path) -> None:
    config = {
        "model_type": "llama", "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 64,
        "num_hidden_layers": 2, "max_position_embeddings": 2048,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    plan = document(faops("tune", "--hf-config", str(tmp_path), "--dry-run", "--json"))
    assert {row["problem"]["heads_kv"] for row in plan["problems"]} == {2}

    (tmp_path / "tune.yaml").write_text(f"version: 1\nworkloads:\n  - shape: {TINY}\n")
    plan = document(faops("tune", "--plan", str(tmp_path / "tune.yaml"), "--dry-run", "--json"))
    assert [row["problem"]["seqlen_q"] for row in plan["problems"]] == [16]


def test_list_models(faops: Faops) -> None:
    names = document(faops("tune", "--list-models", "--json"))["models"]
    assert "smollm2-135m" in names
    lines = faops("tune", "--list-models").stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["model", *names]
    assert lines[1 + names.index("smollm2-135m")].split(maxsplit=1)[1] == "9 heads of 64, 3 key/value heads, causal"


def test_time_budget_skips_what_does_not_fit(faops: Faops) -> None:
    result = faops("tune", "--shape", TINY, "--shape", OTHER, "--time-budget", "0.001s", "--json")
    statuses = [problem["status"] for problem in document(result)["problems"]]
    assert statuses[-1] == "skipped"


def test_a_problem_that_cannot_run_is_reported_and_the_rest_is_tuned(faops: Faops) -> None:
    result = faops("tune", "--shape", "sq=8,h=1,d=8,dtype=fp8", "--shape", TINY)
    assert result.exit_code == 1
    assert "failed" in result.stdout
    assert "1 tuned, 1 failed" in result.stdout
    assert "Traceback" not in result.output


def test_unwritable_cache_is_told_and_exits_with_1(
    faops: Faops, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FAOPS_CACHE_DIR", str(tmp_path / "file" / "cache"))
    result = faops("tune", "--shape", TINY)
    assert result.exit_code == 1
    assert "not stored" in result.stdout
    assert "FAOPS_CACHE_DIR" in result.stdout
    assert "are stored in" not in result.stdout
    as_json = faops("tune", "--shape", TINY, "--json")
    assert as_json.exit_code == 1
    assert json.loads(as_json.stdout)["problems"][0]["stored"] is None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--model", "smollm3-135m"), ("model", "'smollm3-135m'", "did you mean", "smollm2-135m")),
        (("--hf-config", "/nowhere/config.json"), ("/nowhere/config.json",)),
        (("--plan", "/nowhere/tune.yaml"), ("/nowhere/tune.yaml", "cannot be read")),
        (("--shape", "sq=16,h=2"), ("'sq=16,h=2'", "head_dim is missing")),
        (("--shape", "sq=many,h=2,d=8"), ("sq='many'", "whole number")),
        (("--shape", "sq=8,h=3,hk=2,d=8"), ("h=3", "not a multiple of hk=2")),
        (("--model", "gpt2", "--dtype", "int7"), ("dtype 'int7'", "bfloat16")),
        (("--shape", TINY, "--device", "toaster"), ("device", "'toaster'", "cpu")),
        (("--model", "gpt2", "--page-size", "127,128"), ("page_size: got 127, 128", "small common multiple")),
    ],
)
def test_bad_input_is_refused(faops: Faops, arguments: tuple[str, ...], words: tuple[str, ...]) -> None:
    refused(faops("tune", *arguments, "--dry-run"), *words)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), ("none was given", "--resume")),
        (("--shape", TINY, "--strategy", "guessing"), ("--strategy", "'guessing'", "halving")),
        (("--resume", "--batch", "2"), ("--batch goes with --model",)),
        (("--model", "gpt2", "--page-size", "128,x"), ("--page-size", "'x' is no whole number of at least 1")),
        (("--model", "gpt2", "--page-size", "0"), ("--page-size", "'0'")),
        (("--model", "gpt2", "--page-size", "16,"), ("--page-size", "''")),
        (("--model", "gpt2", "--page-size", "\u0663"), ("--page-size", "no whole number")),
        (("--model", "gpt2", "--shape", TINY), ("--model and --shape",)),
        (("--shape", TINY, "--batch", "2"), ("--batch goes with --model",)),
        (("--plan", "x", "--kv-cache"), ("--kv-cache goes with --model",)),
        (("--model", "gpt2", "--batch", "0"), ("--batch",)),
        (("--shape", TINY, "--time-budget", "soon"), ("--time-budget", "'soon'", "60s")),
        (("--shape", TINY, "--time-budget", "0s"), ("--time-budget",)),
    ],
)
def test_bad_usage_is_refused(faops: Faops, arguments: tuple[str, ...], words: tuple[str, ...]) -> None:
    refused(faops("tune", *arguments), *words, code=2)


def test_broken_plan_is_refused_with_its_line(faops: Faops, tmp_path: Path) -> None:
    plan = tmp_path / "tune.yaml"
    plan.write_text("version: 1\nworkloads:\n  - shape: [sq=1\n")
    refused(faops("tune", "--plan", str(plan)), f"{plan}:")
    plan.write_text("version: 1\nworkloads:\n  - model: nonesuch\n")
    refused(faops("tune", "--plan", str(plan)), f"{plan}:3", "nonesuch")


def test_real_process(faops: Faops) -> None:
    run = ("tune", "--shape", TINY, "--json")
    cold = python("-m", "faops_cli", *run, OMP_NUM_THREADS=str(torch.get_num_threads()))
    assert cold.returncode == 0, cold.stderr
    assert json.loads(cold.stdout)["measurements"] > 0
    assert document(faops(*run))["measurements"] == 0  # another process finds what that one has stored


def test_verdicts_of_the_table(faops: Faops, monkeypatch: pytest.MonkeyPatch) -> None:
    """A default that stays, a winner, and a winner among noisy timings, made from one real entry."""
    faops("tune", "--shape", TINY)
    (entry,) = TuningCache().entries()
    timing = replace(entry.timings[0], noisy=False)
    kept = replace(entry, kernel=entry.default_kernel, config=entry.default_config, timings=())
    winner = replace(entry, kernel="acme.fast", speedup=1.5, timings=(timing,))
    noisy = replace(winner, timings=(replace(timing, kernel="acme.fast", config=winner.config, noisy=True),))
    results = [tuner.Result(entry.attention_problem(), "tuned", 3, made, "") for made in (kept, winner, noisy)]
    monkeypatch.setattr(tuner, "tune", lambda *_, **__: results)
    text = faops("tune", "--shape", TINY).stdout
    assert text.count("nothing faster beyond the noise") == 1
    assert text.count("above the noise") == 2
    assert text.count("noisy timings") == 1
    assert text.count("1.50x") == 2
    assert re.search(r"3 tuned; 9 measurements in \d", text)


def test_noise_of_the_table_is_the_larger_of_the_two(faops: Faops, monkeypatch: pytest.MonkeyPatch) -> None:
    faops("tune", "--shape", TINY)
    (entry,) = TuningCache().entries()
    winner, default = Config(block=1), Config(block=0)
    timings = tuple(
        Timing("acme.fast", config, p50, p50, p50, mad, 9, False)
        for config, p50, mad in ((winner, 0.5, 0.0625), (default, 2.0, 0.5))
    )
    made = replace(
        entry, kernel="acme.fast", config=winner, p50=0.5, timings=timings, decision={}, speedup=4.0,
        default_kernel="acme.fast", default_config=default, default_p50=2.0,
    )  # fmt: skip
    result = tuner.Result(entry.attention_problem(), "tuned", 3, made, "")
    monkeypatch.setattr(tuner, "tune", lambda *_, **__: [result])
    assert "±25.0 %" in faops("tune", "--shape", TINY).stdout
    (row,) = document(faops("tune", "--shape", TINY, "--json"))["problems"]
    assert row["noise"] == 0.5
    assert row["why"] == why(made)


def test_options_reach_the_tuner(faops: Faops, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, Any]] = []

    def tune(problems: list[object], where: object, **options: Any) -> list[tuner.Result]:
        assert len(problems) == 1  # with --resume too, which alone would mean what an interrupted run has left
        seen.append(options)
        return []

    monkeypatch.setattr(tuner, "tune", tune)
    faops("tune", "--shape", TINY, default_map={})
    faops("tune", "--shape", TINY, "--force", "--resume", "--no-isolate", "--strategy", "random", "--time-budget", "2m")
    names = ("force", "resume", "isolate", "strategy", "time_budget")
    assert [[options[name] for name in names] for options in seen] == [
        [False, False, True, "halving", None],
        [True, True, False, "random", 120.0],
    ]


def test_strategies_are_those_of_the_search() -> None:
    """The command line names them itself, because asking for them would import torch."""
    assert STRATEGIES == strategies.NAMES


def test_dry_run_counts_configs(faops: Faops) -> None:
    shape = "sq=256,h=2,d=16,causal=1,dtype=float32"
    (row,) = document(faops("tune", "--shape", shape, "--dry-run", "--json"))["problems"]
    assert 0 < row["configs"] <= row["legal"]
    assert row["pruned"] >= 0
    (all_of_them,) = document(faops("tune", "--shape", shape, "--dry-run", "--strategy", "exhaustive", "--json"))[
        "problems"
    ]
    assert all_of_them["configs"] == row["legal"] - row["pruned"]
    lines = faops("tune", "--shape", shape, "--dry-run").stdout.splitlines()
    assert lines[0].split() == ["problem", "to", "time", "of", "configs", "pruned", "about", "status"]
    assert f"  {row['configs']} " in lines[1] and f" {row['legal']} " in lines[1]


def test_skipped_problems_can_be_gone_on_with(faops: Faops) -> None:
    result = faops("tune", "--shape", TINY, "--shape", OTHER, "--time-budget", "0.001s")
    assert "skipped" in result.stdout
    assert "go on with: faops tune --resume --no-isolate --time-budget 0.001" in result.stdout
    resumed = document(faops("tune", "--resume", "--json"))
    assert {row["status"] for row in resumed["problems"]} == {"tuned"}
    assert len(TuningCache().entries()) == 2
