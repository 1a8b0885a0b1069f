"""Which submissions are taken. The worker judges models, plans and shapes themselves."""

from __future__ import annotations

from typing import Any

import jsonschema_rs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from faops.daemon.http import submissions
from faops.daemon.http.problems import ProblemError
from tests.daemon.http.support import DESCRIBED

SCHEMA = {**DESCRIBED["components"]["schemas"]["SubmissionRequest"], "components": DESCRIBED["components"]}
VALIDATOR = jsonschema_rs.validator_for(SCHEMA)


@pytest.mark.parametrize(
    "request_",
    [
        {"model": "smollm2-135m"},
        {"hf_config": "/models/config.json", "device": "cuda:1", "options": {}},
        {"hf_config": {"model_type": "llama", "anything": [None]}},
        {"plan": "workloads:\n- model: x\n", "force": False},
        {"shapes": ["sq=64,h=2,d=64"], "device": "npu"},
        {
            "model": "Qwen/Qwen3-8B",
            "options": {
                "dtype": "bfloat16", "batch": 4, "prompt": [128, 512], "context": 1024,
                "phases": ["decode", "training"], "page_size": [16],
                "training": True, "kv_cache": False, "packed": True,
            },
        },
        {"model": "x", "options": {"phases": "prefill", "context": []}},
    ],
)  # fmt: skip
def test_right_ones_are_taken_as_they_are(request_: dict[str, Any]) -> None:
    assert submissions.check("body", request_) == request_
    assert VALIDATOR.is_valid(request_)


def test_a_whole_number_may_have_a_point() -> None:
    taken = submissions.check("body", {"model": "x", "options": {"batch": 2.0}})
    assert taken["options"]["batch"] == 2 and isinstance(taken["options"]["batch"], int)


@pytest.mark.parametrize(
    ("request_", "field", "expected"),
    [
        ([], "body", "got [], expected an object"),
        ({}, "body", "got none, expected exactly one of model, hf_config, plan, shapes"),
        ({"model": "x", "plan": "y"}, "body", "got model and plan"),
        ({"modell": "x"}, "modell", "there is no such name, expected model, hf_config"),
        ({"model": ""}, "model", "expected 1 to 200 characters"),
        ({"model": "x" * 201}, "model", "1 to 200 characters"),
        ({"model": 5}, "model", "got 5, expected a string"),
        ({"model": "a\x00b"}, "model", "control characters"),
        ({"model": "\ud800"}, "model", "surrogate"),
        ({"hf_config": "config.json"}, "hf_config", "an absolute path"),
        ({"hf_config": "/a\x00b"}, "hf_config", "an absolute path"),
        ({"hf_config": ["/a"]}, "hf_config", "an absolute path"),
        ({"plan": "x" * (2**18 + 1)}, "plan", "262144 characters"),
        ({"shapes": []}, "shapes", "got 0 items, expected 1 to 1000"),
        ({"shapes": "sq=1"}, "shapes", "expected a list"),
        ({"shapes": ["sq=1", 7]}, "shapes[1]", "got 7"),
        ({"shapes": ["sq=1"], "options": {"batch": 1}}, "options", "none with shapes"),
        ({"plan": "x", "options": {}}, "options", "none with plan"),
        ({"model": "x", "device": "CPU"}, "device", "a device such as cpu"),
        ({"model": "x", "device": "cuda:"}, "device", "a device such as cpu"),
        ({"model": "x", "device": "cuda:1\n"}, "device", "expected"),
        ({"model": "x", "force": 1}, "force", "got 1, expected true or false"),
        ({"model": "x", "options": []}, "options", "an object"),
        ({"model": "x", "options": {"batches": 1}}, "options.batches", "there is no such name, expected dtype, batch"),
        ({"model": "x", "options": {"batch": 0}}, "options.batch", "a whole number from 1 to 2147483647"),
        ({"model": "x", "options": {"batch": 1.5}}, "options.batch", "got 1.5"),
        ({"model": "x", "options": {"batch": True}}, "options.batch", "got True"),
        ({"model": "x", "options": {"prompt": [1, "2"]}}, "options.prompt[1]", "got '2'"),
        ({"model": "x", "options": {"prompt": [1] * 65}}, "options.prompt", "got 65 items"),
        ({"model": "x", "options": {"phases": "think"}}, "options.phases", "prefill, generate, decode, training"),
        ({"model": "x", "options": {"dtype": "float 16"}}, "options.dtype", "the name of a dtype"),
        ({"model": "x", "options": {"packed": "yes"}}, "options.packed", "true or false"),
    ],
)
def test_wrong_ones_are_refused_by_field(request_: Any, field: str, expected: str) -> None:
    with pytest.raises(ProblemError) as caught:
        submissions.check("body", request_)
    assert (caught.value.status, caught.value.field) == (422, field)
    assert expected in str(caught.value) and len(str(caught.value)) < 300


WORDS = st.sampled_from(["model", "hf_config", "plan", "shapes", "device", "options", "force", "else"])
OPTION_WORDS = st.sampled_from([*submissions.OPTIONS, "else"])
VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-1, 3), st.integers(), st.floats(), st.text(max_size=3),
    st.sampled_from(["cpu", "cuda:1", "/x", "prefill", "decode", "float16", "sq=1"]),
)  # fmt: skip
DEEPER = st.one_of(VALUES, st.lists(VALUES, max_size=2), st.dictionaries(OPTION_WORDS, VALUES | st.lists(VALUES)))


@given(st.dictionaries(WORDS, DEEPER, min_size=1, max_size=3))
@settings(max_examples=100, deadline=None)
def test_what_is_taken_is_what_the_description_says(request_: dict[str, Any]) -> None:
    """Both ways, but for what JSON cannot say."""
    try:
        submissions.check("body", request_)
    except ProblemError:
        taken = False
    else:
        taken = True
    try:
        described = VALIDATOR.is_valid(request_)
    except ValueError:  # numbers that JSON lacks
        return
    assert taken == described
