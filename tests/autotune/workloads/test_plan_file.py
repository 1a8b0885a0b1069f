"""Tuning plans: what they may say, and where an error is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from faops.autotune.workloads import from_model, from_plan
from faops.errors import PlanError
from faops.problem import parse_shape

CONFIG = {"num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 32}


def plan(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "tune.yaml"
    path.write_text(text)
    return path


def test_all_that_a_plan_may_say(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(CONFIG))
    path = plan(
        tmp_path,
        """
version: 1
defaults:
  dtype: bf16
  batch: 2
workloads:
  - model: gpt2
    prompt: [32, 64]
    context: 128
  - hf_config: model      # relative to the plan
    dtype: float32
    prompt: 16
    context: []
    training: true
  - shape: b=1,sq=8,h=2,d=16
  - shape: sq=16,h=2,d=16,dtype=float16
    training: yes
  - model: llama-3-8b
    prompt: []
    context: [64]
    kv_cache: true
""",
    )
    found = [str(problem) for problem in from_plan(path).problems]
    assert found == [
        "forward bfloat16 b2 32x32 h12/12 d64 causal",
        "forward bfloat16 b2 64x64 h12/12 d64 causal",
        "forward bfloat16 b2 1x128 h12/12 d64",
        "forward float32 b2 16x16 h6/2 d32 causal",
        "forward float32 b2 16x16 h6/2 d32 causal need_lse",
        "backward float32 b2 16x16 h6/2 d32 causal need_lse",
        "forward bfloat16 b1 8x8 h2/2 d16",
        "forward float16 b2 16x16 h2/2 d16 need_lse",
        "backward float16 b2 16x16 h2/2 d16 need_lse",
        "forward bfloat16 b2 1x64 h32/8 d128",
        "decode bfloat16 b2 1x64 h32/8 d128 append",
    ]


def test_a_short_plan_means_what_the_command_means(tmp_path: Path) -> None:
    path = plan(tmp_path, "workloads:\n- model: gpt2\n- model: gpt2\n- shape: sq=8,h=2,d=16\n")
    assert from_plan(path).problems == [*from_model("gpt2").problems, parse_shape("sq=8,h=2,d=16")]


HEAD = "version: 1\nworkloads:\n"


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("", 1, "the plan is empty"),
        ("- model: gpt2\n", 1, "the plan: expected a mapping"),
        ("version: 1\n", 1, "workloads is missing"),
        ("version: 2\nworkloads: []\n", 1, "version: got 2, expected 1"),
        ("version: one\nworkloads: []\n", 1, "version: got 'one'"),
        ("\nworkload:\n- model: gpt2\n", 2, "unknown name 'workload' in the plan"),
        ("version: 1\n\nworkloads: gpt2\n", 3, "workloads: expected a list"),
        ("version: 1\nworkloads: []\n", 2, "workloads: expected a list"),
        (HEAD + "- gpt2\n", 3, "an entry of workloads: expected a mapping"),
        (HEAD + "- model: gpt2\n- dtype: bf16\n", 4, "names one of model, hf_config, shape; got none of them"),
        (HEAD + "- model: gpt2\n  shape: sq=1,h=1,d=8\n", 3, "got model and shape"),
        (HEAD + "- model: gpt2\n  colour: red\n", 4, "unknown name 'colour'"),
        (HEAD + "- model: gpt2\n  batch: 1\n  batch: 2\n", 5, "'batch' is given twice"),
        (HEAD + "- model: gpt2\n\n  batch: 0\n", 5, "batch: got 0"),
        (HEAD + "- model: gpt2\n  batch: two\n", 4, "batch: got 'two'"),
        (HEAD + "- model: gpt2\n  batch: 1.5\n", 4, "batch: got '1.5'"),
        (HEAD + "- model: gpt2\n  batch: [1]\n", 4, "batch: expected a whole number"),
        (HEAD + "- model: gpt2\n  prompt:\n  - 16\n  - long\n", 6, "prompt: got 'long'"),
        (HEAD + "- model: gpt2\n  context: {a: 1}\n", 4, "context: expected a whole number"),
        (HEAD + "- model: gpt2\n  dtype: float17\n", 4, "dtype 'float17'"),
        (HEAD + "- model: gpt2\n  dtype:\n", 4, "dtype: expected text"),
        (HEAD + "- model: gpt2\n  training: perhaps\n", 4, "training: expected true or false"),
        (HEAD + "- model:\n", 3, "model: expected text"),
        (HEAD + "- model: [gpt2]\n", 3, "model: expected text"),
        (HEAD + "- model: gpt2\n- model: gtp2\n", 4, "did you mean gpt2"),
        (HEAD + "- model: gpt2\n- hf_config: nowhere\n", 4, "cannot be read"),
        (HEAD + "- model: gpt2\n\n- shape: sq=1\n", 5, "heads_q is missing"),
        (HEAD + "- shape: sq=1,h=1,d=8\n  prompt: 16\n", 4, "prompt: has no meaning beside shape"),
        ("defaults:\n  dtype: bf16\n  model: gpt2\nworkloads: []\n", 3, "unknown name 'model' in defaults"),
        ("version: 1\nworkloads: [\n  {model: gpt2\n", 4, "expected"),
        ("version: 1\n\tworkloads: []\n", 2, "cannot start any token"),
        ("workloads: *unknown\n", 1, "undefined alias"),
    ],
)
def test_errors_name_the_file_and_the_line(tmp_path: Path, text: str, line: int, message: str) -> None:
    path = plan(tmp_path, text)
    with pytest.raises(PlanError) as raised:
        from_plan(path)
    assert str(raised.value).startswith(f"{path}:{line}: "), raised.value
    assert message in str(raised.value)


def test_a_plan_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="cannot be read: No such file"):
        from_plan(tmp_path / "nowhere.yaml")
    with pytest.raises(PlanError, match="cannot be read"):
        from_plan(tmp_path)
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(PlanError, match=r"binary\.yaml"):
        from_plan(binary)
    control = plan(tmp_path, "version: \x01\n")
    with pytest.raises(PlanError, match=r"tune\.yaml"):
        from_plan(control)
