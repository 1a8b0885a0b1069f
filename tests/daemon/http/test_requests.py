"""Bodies: JSON and nothing else, bounded in size and time."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterable
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from faops.daemon.http import requests
from faops.daemon.http.problems import ProblemError
from tests.daemon.http.support import FakeControl, InProcess

JSON = {"content-type": "application/json"}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"{", "line 1, column 2"),
        (b'{"a": 1,\n "b"}', "line 2"),
        (b'{"reason": "\xff"}', "byte 12 is not UTF-8"),
        ('{"reason": "x"}'.encode("utf-16"), "not UTF-8"),
        (b"\xef\xbb\xbf{}", "expected a JSON object"),
        (b'{"seconds": NaN}', "NaN is no number"),
        (b'{"seconds": -Infinity}', "no number"),
        (b'{"seconds": 1e999}', "too large"),
        (b'{"seconds": ' + b"1" * 5000 + b"}", "too many digits"),
        (b'{"seconds": 1, "seconds": 2}', "stands twice"),
        (b"[" * 100_000, "too many brackets"),
        (b'{"a":' * 100_000, "too many brackets"),
        (b"\x00", "expected a JSON object"),
    ],
)
def test_what_is_no_json_is_refused(ask: InProcess, control: FakeControl, content: bytes, expected: str) -> None:
    problem = ask.problem("POST", "/v1/pause", 400, content=content, headers=JSON)
    assert expected in problem["detail"] and len(problem["detail"]) < 300
    assert control.told == []


@pytest.mark.parametrize("content", [b"[]", b'"x"', b"5", b"null", b"true"])
def test_json_that_is_no_object_is_refused(ask: InProcess, content: bytes) -> None:
    assert "expected an object" in ask.problem("POST", "/v1/pause", 422, content=content, headers=JSON)["detail"]


@pytest.mark.parametrize(
    "media_type", [None, "text/plain", "application/x-www-form-urlencoded", "application/jsonp", "é"]
)
def test_other_media_types_are_refused(ask: InProcess, media_type: str | None) -> None:
    headers = [] if media_type is None else [(b"content-type", media_type.encode("latin-1"))]
    ask.problem("POST", "/v1/pause", 415, content=b"{}", headers=headers)


@pytest.mark.parametrize("media_type", ["application/json", "Application/JSON; charset=utf-8", " application/json ;x"])
def test_jsons_own_is_taken(ask: InProcess, media_type: str) -> None:
    ask.json("POST", "/v1/pause", content=b"{}", headers={"content-type": media_type})


def test_a_body_of_a_mebibyte_is_read(ask: InProcess) -> None:
    filler = b" " * (requests.LARGEST_BODY - 2)
    ask.json("POST", "/v1/pause", content=b"{" + filler + b"}", headers=JSON)


@pytest.mark.parametrize("chunked", [True, False])
def test_a_larger_one_is_not(ask: InProcess, control: FakeControl, chunked: bool) -> None:
    content = b"{" + b" " * (requests.LARGEST_BODY - 1) + b"}"

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(content), 65536):
            yield content[start : start + 65536]

    sent: Any = pieces() if chunked else content
    assert "1048576 bytes" in ask.problem("POST", "/v1/pause", 413, content=sent, headers=JSON)["detail"]
    assert control.told == []


def test_a_length_that_is_told_is_not_waited_for(ask: InProcess) -> None:
    async def never() -> AsyncIterator[bytes]:
        raise AssertionError("read all the same")
        yield b""

    headers = {**JSON, "content-length": "1048577"}
    ask.problem("POST", "/v1/submissions", 413, content=never(), headers=headers)


def test_a_body_that_does_not_come_is_not_waited_for(
    ask: InProcess, control: FakeControl, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requests, "BODY_SECONDS", 0.02)

    async def slowly() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.sleep(30)
        yield b"}"

    answer = ask("POST", "/v1/pause", content=slowly(), headers=JSON)
    assert (answer.status_code, answer.headers["connection"]) == (408, "close")
    assert control.told == []


def test_each_byte_may_come_alone(ask: InProcess, control: FakeControl) -> None:
    async def bytewise(content: Iterable[int]) -> AsyncIterator[bytes]:
        for byte in content:
            yield bytes([byte])

    ask.json("POST", "/v1/pause", content=bytewise(b'{"seconds": 5}'), headers=JSON)
    assert control.told == [("pause", "", 5.0)]


@given(
    content=st.binary(max_size=64)
    | st.text(alphabet='{}[]",:0123456789eE+-.\\u truefalsn', max_size=64).map(str.encode)
)
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_bytes_are_read_as_json_reads_them_or_refused(content: bytes) -> None:
    try:
        found = requests.parsed(content)
    except ProblemError as error:
        refusal = error
    else:
        assert found == json.loads(content)
        return
    assert refusal.status == 400 and str(refusal).isascii()


def test_a_header_may_hold_anything(ask: InProcess) -> None:
    """Bytes beyond ASCII are no words of ours, and no defect either."""
    answer = ask("GET", "/v1/status", headers=[(b"accept", b"\xff\xfe"), (b"authorization", b"\xe9")])
    assert answer.status_code == 406
    assert isinstance(answer, httpx.Response)
