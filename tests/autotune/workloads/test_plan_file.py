"""Tuning plans: what they may say, and where an error is."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from faops.autotune.workloads import PLAN_SCHEMA, from_model, from_plan, from_plan_text, model_names, plan_file
from faops.errors import PlanError
from faops.problem import DTYPE_ALIASES, DTYPES, parse_shape

from .schema import accepts

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
  - model: meta-llama/Llama-3.2-1B
    phases: [training, decode]
    packed: on
    page_size: 16
    prompt: 8
    context: 50
  - {model: gpt2, phases: generate, context: 32}
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
        "forward bfloat16 b2 8x8 h32/8 d64 varlen causal need_lse",
        "backward bfloat16 b2 8x8 h32/8 d64 varlen causal need_lse",
        "decode bfloat16 b2 1x64 h32/8 d64 paged page_size=16 append",
        "forward bfloat16 b2 1x32 h12/12 d64",
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
        (HEAD + "- model: gpt2\n  training: 'true'\n", 4, "training: expected true or false"),
        (HEAD + "- model: gpt2\n  batch: '4'\n", 4, "batch: got '4'"),
        (HEAD + "- model: gpt2\n  batch: 0x10\n", 4, "batch: got '0x10'"),
        (HEAD + "- model: gpt2\n  batch: 010\n", 4, "batch: got '010'"),
        (HEAD + "- model: gpt2\n  batch: !!int many\n", 4, "batch: got 'many'"),
        (HEAD + "- model: gpt2\n  phases: reading\n", 4, "phases: got 'reading', expected prefill, generate, decode"),
        (HEAD + "- model: gpt2\n  phases:\n  - decode\n  - 3\n", 6, "phases: expected text"),
        (HEAD + "- model: gpt2\n  phases: {decode: 1}\n", 4, "phases: expected text"),
        (HEAD + "- model: gpt2\n  page_size: 0\n", 4, "page_size: got 0"),
        (HEAD + "- model: gpt2\n- model: bert-base\n  phases: decode\n", 4, "nothing to tune: a model that sees both"),
        (HEAD + "- shape: sq=1,h=1,d=8\n  packed: true\n", 4, "packed: has no meaning beside shape"),
        (HEAD + "- model: 3\n", 3, "model: expected text"),
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
    deep = plan(tmp_path, "[" * 500)
    with pytest.raises(PlanError, match=r"tune\.yaml cannot be read"):
        from_plan(deep)
    with pytest.raises(PlanError, match="cannot be read"):
        from_plan("~nobody-of-this-name/tune.yaml")


def test_the_plan_of_the_documentation(tmp_path: Path) -> None:
    page = (Path(__file__).parents[3] / "docs" / "plan-file.md").read_text(encoding="utf-8")
    example = re.findall(r"^```yaml\n(version.*?)^```$", page, re.MULTILINE | re.DOTALL)[0]
    (tmp_path / "my-model").mkdir()
    (tmp_path / "my-model" / "config.json").write_text(json.dumps(CONFIG))
    problems = from_plan(plan(tmp_path, example)).problems
    assert {problem.layout for problem in problems} == {"dense", "varlen", "paged"}
    with pytest.raises(PlanError) as raised:
        from_plan(plan(tmp_path, example.replace("llama-3-8b ", "llama-3-8 ")))
    assert str(raised.value).removeprefix(f"{tmp_path}/") in page


# ------------------------------------------------------------------------------------------------- the schema

SCHEMA: dict[str, Any] = json.loads(PLAN_SCHEMA.read_text(encoding="utf-8"))


def test_the_schema_names_what_the_reader_knows() -> None:
    entries = {
        entry["required"][0]: set(entry["properties"]) for entry in SCHEMA["properties"]["workloads"]["items"]["oneOf"]
    }
    assert tuple(SCHEMA["properties"]) == plan_file.TOP
    assert set(SCHEMA["properties"]["defaults"]["properties"]) == set(plan_file.OPTIONS)
    assert tuple(entries) == plan_file.SOURCES
    assert entries == {
        source: {source, *(plan_file.SHAPE_OPTIONS if source == "shape" else plan_file.OPTIONS)}
        for source in plan_file.SOURCES
    }
    assert SCHEMA["$defs"]["dtype"]["enum"] == [*DTYPES, *DTYPE_ALIASES]
    assert SCHEMA["$defs"]["model"]["examples"] == model_names()
    assert all("description" in SCHEMA["$defs"][name] for name in (*plan_file.SOURCES, *plan_file.OPTIONS))


NUMBERS = st.integers(1, 10**6)
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "dtype": st.sampled_from([*DTYPES, *DTYPE_ALIASES]),
    "batch": NUMBERS,
    "prompt": st.one_of(NUMBERS, st.lists(NUMBERS, max_size=3)),
    "context": st.one_of(NUMBERS, st.lists(NUMBERS, max_size=3)),
    "phases": st.one_of(st.just("decode"), st.lists(st.sampled_from(["prefill", "training"]), max_size=3)),
    "page_size": st.one_of(NUMBERS, st.lists(NUMBERS, max_size=3)),
    "training": st.booleans(),
    "kv_cache": st.booleans(),
    "packed": st.booleans(),
}
WORDS = st.text("abcdefg/.-=,_0123456789", min_size=1, max_size=12)
NAMES = {"model": ["gpt2", "bert-base", "google/gemma-2-2b"], "shape": ["sq=8,h=2,d=16"], "hf_config": ["x"]}


def entries() -> st.SearchStrategy[dict[str, Any]]:
    def of_source(source: str) -> st.SearchStrategy[dict[str, Any]]:
        names = plan_file.SHAPE_OPTIONS if source == "shape" else plan_file.OPTIONS
        value = st.one_of(WORDS, st.sampled_from(NAMES[source]))
        return st.fixed_dictionaries({source: value}, optional={name: VALUES[name] for name in names})

    return st.sampled_from(plan_file.SOURCES).flatmap(of_source)


PLANS = st.fixed_dictionaries(
    {"workloads": st.lists(entries(), min_size=1, max_size=3)},
    optional={"version": st.just(1), "defaults": st.fixed_dictionaries({}, optional=VALUES)},
)
ODD: st.SearchStrategy[Any] = st.one_of(
    st.none(), st.integers(-2, 3), st.floats(0, 4), st.booleans(), WORDS, st.just(""),
    st.lists(st.integers(0, 2), max_size=2),
    st.dictionaries(st.sampled_from(["model", "batch", "x"]), st.integers(0, 2), max_size=2),
)  # fmt: skip


@st.composite
def spoilt_plans(draw: st.DrawFn) -> Any:
    """A good plan in which one thing was put or taken away at random, or none."""
    plan = copy.deepcopy(draw(PLANS))
    targets = [plan, *plan["workloads"], *([plan["defaults"]] if "defaults" in plan else [])]
    target = draw(st.sampled_from(targets))
    kind = draw(st.sampled_from(["as it is", "put", "put", "take away", "something else"]))
    if kind == "put":
        target[draw(st.sampled_from([*plan_file.OPTIONS, *plan_file.SOURCES, *plan_file.TOP, "x"]))] = draw(ODD)
    elif kind == "take away" and target:
        target.pop(draw(st.sampled_from(sorted(target))))
    return draw(ODD) if kind == "something else" else plan


HYPOTHESIS = settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


def error_of(path: Path, read: Callable[[Path], Any]) -> str:
    """What ``read`` objects to in the file; "" where it takes it."""
    try:
        assert read(path)
    except PlanError as error:
        return str(error)
    return ""


@HYPOTHESIS
@given(data=spoilt_plans())
@example(data={"workloads": []})
@example(data={"workloads": [{"model": "gpt2", "batch": 0}]})
@example(data={"workloads": [{"model": ""}]})
@example(data={"workloads": [{"model": "gpt2", "shape": "sq=8,h=2,d=16"}]})
@example(data={"version": True, "workloads": [{"model": "gpt2", "prompt": [], "phases": []}]})
def test_the_schema_accepts_what_the_reader_does(tmp_path: Path, data: Any) -> None:
    path = plan(tmp_path, yaml.safe_dump(data))
    error = error_of(path, plan_file.read)
    assert accepts(SCHEMA, data) == (not error), error
    assert not error or error.startswith(f"{path}:")


@HYPOTHESIS
@given(text=st.one_of(spoilt_plans().map(yaml.safe_dump), st.text(), st.text("[]{}:-,&*!#'\"\n x1?|>%@")))
def test_no_text_gives_anything_but_a_plan_or_an_error_with_its_place(tmp_path: Path, text: str) -> None:
    path = tmp_path / "tune.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    error = error_of(path, lambda path: from_plan(path).problems)
    assert not error or str(path) in error


def test_a_plan_without_a_file(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    text = f"workloads:\n- hf_config: {tmp_path}\n- model: llama-3-8b\n"
    found = from_plan_text(text)
    assert found.problems == from_plan(plan(tmp_path, text)).problems
    assert found.name == "plan"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("workloads:\n- model: llama-3-8b\n- hf_config: folder/config.json\n",
         "plan:3: hf_config: got 'folder/config.json', expected an absolute path, as the plan has no folder"),
        ("workloads:\n- hf_config: /no/such/config.json\n", "plan:2: /no/such/config.json cannot be read: "),
        ("workloads:\n- model: [\n", "plan:3: "),
        ("", "plan:1: the plan is empty"),
        ("[" * 5000, "plan cannot be read: "),
        ("a: \x00", "plan: broken YAML: "),
    ],
)  # fmt: skip
def test_errors_of_a_plan_without_a_file_name_its_lines(text: str, message: str) -> None:
    with pytest.raises(PlanError, match="^" + re.escape(message)):
        from_plan_text(text)
