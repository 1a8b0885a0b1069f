"""The description is true: its paths are those of the application, its examples fit, and whatever is asked by its words
or against them is answered as it says (by schemathesis)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode

from faops.daemon.http.app import build
from faops.daemon.http.submissions import OPTIONS, PHASES, SOURCES
from faops.daemon.jobs import STATES
from faops.daemon.queue import Queue
from tests.daemon.http.support import DESCRIBED, RESULT, FakeControl, task, valid

METHODS = ("get", "post", "delete")
OPERATIONS = [(path, method) for path, item in DESCRIBED["paths"].items() for method in METHODS if method in item]
BRIEF, LONG = 4, 60  # requests of each kind to each operation

Schema = Any


def test_its_paths_are_those_of_the_application(control: FakeControl) -> None:
    served = {route.path: route.app.handlers for route in build(control).routes}
    page = {
        path for path in served if path == "/" or (path.count("/") == 1 and "." in path and path != "/openapi.json")
    }
    assert page >= {"/", "/dashboard.css", "/dashboard.js"}
    described = {path: {name.upper() for name in METHODS if name in item} for path, item in DESCRIBED["paths"].items()}
    assert {path: set(handlers) for path, handlers in served.items() if path not in page} == {
        path: methods for path, methods in described.items() if path not in ("/", "/{file}")
    }


@pytest.mark.parametrize("name", DESCRIBED["components"]["schemas"])
def test_examples_of_schemas_fit(name: str) -> None:
    schema = DESCRIBED["components"]["schemas"][name]
    if "example" in schema:
        valid(schema, schema["example"])


def test_examples_of_answers_and_bodies_fit() -> None:
    seen = sum(_check_examples(item) for item in DESCRIBED["paths"].values())
    seen += sum(_check_examples(item) for item in DESCRIBED["components"]["responses"].values())
    assert seen > 10


def _check_examples(node: Any) -> int:
    """How many examples stand beside a schema below a node."""
    if not isinstance(node, dict):
        return sum(map(_check_examples, node)) if isinstance(node, list) else 0
    found = [node["example"]] if "example" in node and "schema" in node else []
    found += [example["value"] for example in node.get("examples", {}).values()] if "schema" in node else []
    for example in found:
        valid(node["schema"], example)
    return len(found) + sum(_check_examples(value) for name, value in node.items() if name != "schema")


def test_words_that_stand_twice_are_the_same() -> None:
    schemas = DESCRIBED["components"]["schemas"]
    request = schemas["SubmissionRequest"]["properties"]
    assert tuple(schemas["State"]["enum"]) == STATES
    assert tuple(schemas["Phase"]["enum"]) == PHASES
    assert set(request["options"]["properties"]) == set(OPTIONS)
    assert set(request) == {*SOURCES, "device", "options", "force"}
    assert [branch["required"] for branch in schemas["SubmissionRequest"]["oneOf"]] == [[source] for source in SOURCES]


# -------------------------------------------------------------------------------------------------- schemathesis


@pytest.fixture(scope="module")
def schema(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Schema]:
    with Queue(tmp_path_factory.mktemp("queue") / "queue.sqlite") as queue:
        jobs = queue.missed([(task(number), number) for number in range(1, 5)])
        queue.begin(jobs[0].id)
        queue.finish(jobs[0].id, RESULT, "done")
        queue.begin(jobs[1].id)
        queue.submit({"model": "x"})
        yield schemathesis.openapi.from_asgi("/openapi.json", build(FakeControl(queue)))


@pytest.mark.parametrize(("path", "method"), OPERATIONS, ids=str)
def test_what_is_asked_is_answered_as_described(schema: Schema, path: str, method: str, seeded: int) -> None:
    conform(schema[path][method.upper()], seeded, BRIEF)


@pytest.mark.full
@pytest.mark.parametrize(("path", "method"), OPERATIONS, ids=str)
def test_whatever_is_asked_is_answered_as_described(schema: Schema, path: str, method: str, seeded: int) -> None:
    conform(schema[path][method.upper()], seeded, LONG)


def conform(operation: Any, start: int, count: int) -> None:
    """Ask by the description and against it; of things that are there, too."""
    bounds = settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    right = operation.as_strategy(generation_mode=GenerationMode.POSITIVE)
    wrong = operation.as_strategy(generation_mode=GenerationMode.NEGATIVE)

    @bounds
    @seed(start)
    @given(case=right, number=st.integers(1, 5))
    def asked_rightly(case: Any, number: int) -> None:
        if number < 5 and "id" in (case.path_parameters or {}):
            case.path_parameters["id"] = number
        case.call_and_validate()

    @bounds
    @seed(start)
    @given(case=wrong)
    def asked_wrongly(case: Any) -> None:
        case.call_and_validate()

    asked_rightly()
    try:
        asked_wrongly()
    except Unsatisfiable:  # nothing of the request can be wrong
        assert not operation.path_parameters and not operation.query and not operation.body
