"""What somebody wants tuned becomes tasks, or an error that names what is wrong with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from faops.autotune import workloads
from faops.autotune.cache import environment
from faops.daemon.jobs import Task
from faops.daemon.worker import expanding
from faops.daemon.worker.expanding import checked, expand
from faops.device import detect
from faops.errors import ArgumentError, FaopsError, PlanError
from faops.problem import AttentionProblem, parse_shape

SHAPE = "b=1,sq=64,h=2,d=32,dtype=float32"
CONFIG = {"num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 32}


def problems(**request: Any) -> list[AttentionProblem]:
    """Those of all tasks, each of which is whole."""
    found = expand(request)
    assert found["refused"] == []
    tasks = [Task.from_dict(task) for task in json.loads(json.dumps(found["tasks"]))]
    cpu = detect("cpu")
    for task in tasks:
        problem = AttentionProblem.from_dict(task.problem)
        assert task.mark == (cpu.identity, environment.directory_name(), problem.key())
        assert (task.device, task.threads, task.words) == ("cpu", cpu.threads, str(problem))
        assert 0 < task.call_seconds < 100
        assert 0 < task.tuning_seconds < 1000
        assert not task.warm
    return [AttentionProblem.from_dict(task.problem) for task in tasks]


def test_shapes() -> None:
    assert problems(shapes=[SHAPE, SHAPE, "sq=128,h=2,d=32"], device="cpu", force=True) == [
        parse_shape(SHAPE),
        parse_shape("sq=128,h=2,d=32"),
    ]


def test_a_model() -> None:
    expected = workloads.from_model("llama-3-8b", dtype="bf16", prompt=[128], training=True).problems
    options = {"dtype": "bf16", "prompt": [128], "training": True, "batch": None}
    assert problems(model="llama-3-8b", options=options) == expected
    assert problems(model="llama-3-8b", device=None)[0].dtype == "float32"  # the usual one of a CPU


def test_the_config_of_a_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    expected = workloads.from_hf_config(CONFIG, prompt=128).problems
    for given_as in (CONFIG, str(tmp_path), str(tmp_path / "config.json")):
        assert problems(hf_config=given_as, options={"prompt": 128}) == expected


def test_a_plan() -> None:
    text = f"workloads:\n- model: llama-3-8b\n- shape: '{SHAPE}'\n"
    assert problems(plan=text) == [*workloads.from_model("llama-3-8b").problems, parse_shape(SHAPE)]


def test_what_no_kernel_runs_is_refused_and_the_rest_is_not() -> None:
    shape = "sq=64,h=2,d=32,dtype=float8_e4m3fn,op=backward"
    found = expand({"shapes": [SHAPE, shape, "sq=3,sk=2,h=1,d=8,window=0:0"]})
    (task, _), (refused,) = found["tasks"], found["refused"]
    assert task["words"] == str(parse_shape(SHAPE))
    words, why = refused
    assert words == str(parse_shape(shape))
    assert why == f"no kernel can run {words} on {detect('cpu').name}; `faops explain` says why"


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({}, "request: got nothing to tune, expected one of model, hf_config, plan, shapes"),
        ({"model": "", "shapes": []}, "request: got nothing to tune"),
        ({"model": "a", "plan": "b"}, "request: got model and plan, expected one of"),
        ({"model": "llama-9"}, "model: got 'llama-9', which is not known; did you mean llama-3-8b"),
        ({"model": 5}, "model: got 5, expected text"),
        ({"model": "llama-3-8b", "device": "cuda:9"}, "device: got 'cuda:9', expected a device of this machine: cpu"),
        ({"model": "llama-3-8b", "device": "toaster"}, "device: got 'toaster', expected a device of this machine"),
        ({"model": "llama-3-8b", "device": 5}, "device: got 5, expected the name of a device"),
        ({"model": "llama-3-8b", "options": [1]}, "options: got [1], expected names with values"),
        ({"model": "llama-3-8b", "options": {"prompts": 1}}, "options: got 'prompts', expected one of dtype, batch"),
        ({"model": "llama-3-8b", "options": {"device": "cpu"}}, "options: got 'device', expected one of"),
        ({"model": "llama-3-8b", "options": {"batch": "2"}}, "options.batch: got '2', expected a whole number"),
        ({"model": "llama-3-8b", "options": {"batch": True}}, "options.batch: got True, expected a whole number"),
        ({"model": "llama-3-8b", "options": {"batch": 0}}, "batch: got 0, expected a whole number of at least 1"),
        ({"model": "llama-3-8b", "options": {"prompt": []}}, "options.prompt: got [], expected a whole number or a"),
        ({"model": "llama-3-8b", "options": {"dtype": "int3"}}, "dtype 'int3': expected one of"),
        ({"model": "llama-3-8b", "options": {"phases": ["a"]}}, "phases: got 'a', expected prefill"),
        ({"model": "llama-3-8b", "options": {"packed": 1}}, "options.packed: got 1, expected true or false"),
        ({"shapes": "sq=1"}, "shapes: got 'sq=1', expected a list of shapes"),
        ({"shapes": [1]}, "shapes: got 1, expected text"),
        ({"shapes": ["sq=64,h=2"]}, "shape 'sq=64,h=2': head_dim is missing"),
        ({"shapes": [SHAPE], "options": {"batch": 1}}, "options: got {'batch': 1}, expected none beside shapes"),
        ({"plan": ["a"]}, "plan: got ['a'], expected text"),
        ({"plan": "workloads:\n- modell: x\n"}, "plan:2: unknown name 'modell'"),
        ({"hf_config": "config.json"}, "hf_config: got 'config.json', expected an absolute path"),
        ({"hf_config": "/no/such"}, "hf_config: got '/no/such', expected a file or a folder that is there"),
        ({"hf_config": "/dev/null"}, "hf_config: got '/dev/null', expected a file or a folder that is there"),
        ({"hf_config": {"heads": 3}}, "config.json: num_attention_heads is missing"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_told(request_: dict[str, Any], message: str) -> None:
    with pytest.raises((PlanError, ArgumentError)) as caught:
        expand(request_)
    assert str(caught.value).startswith(message)


def test_too_many_problems_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expanding, "MOST_TASKS", 2)
    shapes = [f"sq=64,h={heads},d=32" for heads in (1, 2, 4)]
    assert len(problems(shapes=shapes[:2])) == 2
    with pytest.raises(PlanError, match="shapes: got 3 problems, expected at most 2 at once"):
        expand({"shapes": shapes})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
NAMES = st.sampled_from(sorted(expanding._KINDS))


@given(st.dictionaries(NAMES, JSON, max_size=3) | JSON)
@settings(max_examples=40, deadline=None)
def test_any_options_are_taken_or_refused(options: Any) -> None:
    """No option that passes the check breaks what comes after it."""
    try:
        workloads.from_model("llama-3-8b", **checked(options))
    except FaopsError:
        return


@given(st.dictionaries(st.sampled_from(["model", "hf_config", "plan", "shapes", "device"]), JSON, max_size=2))
@settings(max_examples=25, deadline=None)
def test_any_request_is_taken_or_refused(request_: dict[str, Any]) -> None:
    try:
        expand(request_)
    except FaopsError:
        return
