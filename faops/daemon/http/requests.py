"""Reads what a request brings: its body with bounds in size and time, and its parameters."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Mapping
from typing import Any

from starlette.requests import Request

from faops.daemon.http.checks import Check, unknown
from faops.daemon.http.problems import ProblemError, wrong

LARGEST_BODY = 1 << 20  # bytes
BODY_SECONDS = 10.0
EXPECTED = "a JSON object in UTF-8"


async def body_of(request: Request, check: Check[dict[str, Any]]) -> dict[str, Any]:
    """The object that is a request's body, checked; {} where there is none. Raises ProblemError."""
    try:
        content = await asyncio.wait_for(_bytes(request), BODY_SECONDS)
    except asyncio.TimeoutError:
        detail = f"body: not all of it came within {BODY_SECONDS:g} s"
        raise ProblemError(408, detail, headers={"connection": "close"}) from None
    if not content:
        return {}
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise ProblemError(415, f"Content-Type: got {media_type[:80]!a}, expected application/json")
    return check("body", parsed(content))


async def no_body(request: Request) -> None:
    """Refuse a body where none is wanted: what it says would be lost. An empty object says nothing."""
    await body_of(request, _nothing)


def _nothing(field: str, value: Any) -> dict[str, Any]:
    if value != {}:
        raise ProblemError(400, f"{field}: expected none")
    return {}


async def _bytes(request: Request) -> bytes:
    told = request.headers.get("content-length", "")
    if told.isdecimal() and int(told[:20]) > LARGEST_BODY:
        raise _too_large()
    content = bytearray()
    async for chunk in request.stream():
        content += chunk
        if len(content) > LARGEST_BODY:
            raise _too_large()
    return bytes(content)


def _too_large() -> ProblemError:
    return ProblemError(413, f"body: expected at most {LARGEST_BODY} bytes")


def parsed(content: bytes) -> Any:
    """The JSON that bytes hold. Raises ProblemError (400) for what is none, or says a thing twice."""
    try:
        return json.loads(
            content.decode("utf-8"), object_pairs_hook=_object, parse_constant=_constant, parse_float=_number
        )
    except UnicodeDecodeError as error:
        raise ProblemError(400, f"body: byte {error.start} is not UTF-8, expected {EXPECTED}") from None
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise ProblemError(400, f"body: {error.msg} at {place}, expected {EXPECTED}") from None
    except RecursionError:
        raise ProblemError(400, f"body: too many brackets inside each other, expected {EXPECTED}") from None
    except ValueError as error:
        # Not what Python says of a number with thousands of digits, which speaks of its settings.
        detail = str(error) if isinstance(error, _ContentError) else "a number has too many digits"
        raise ProblemError(400, f"body: {detail}, expected {EXPECTED}") from None


class _ContentError(ValueError):
    pass


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise _ContentError("a name stands twice in an object")
    return found


def _constant(name: str) -> Any:
    raise _ContentError(f"{name} is no number of JSON")


def _number(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise _ContentError("a number is too large")
    return number


# -------------------------------------------------------------------------------------------------- parameters


def query_of(
    request: Request, single: Mapping[str, Check[Any]], repeated: Mapping[str, Check[Any]] = {}
) -> dict[str, Any]:
    """The query parameters that are given, checked; lists of those that may be ``repeated``. Raises ProblemError."""
    found: dict[str, Any] = {}
    for name, value in request.query_params.multi_items():
        if name in repeated:
            found.setdefault(name, []).append(repeated[name](name, value))
        elif name not in single:
            expected = ", ".join([*single, *repeated]) or "none"
            raise ProblemError(422, f"{unknown(name)}, expected {expected}", name[:80])
        elif name in found:
            raise ProblemError(422, f"{name}: given twice, expected once", name)
        else:
            found[name] = single[name](name, value)
    return found


def decimal(low: int, high: int) -> Check[int]:
    """A whole number in decimal digits."""

    def check(field: str, value: Any) -> int:
        if not (value.isascii() and value.isdecimal() and len(value) <= 20 and low <= int(value) <= high):
            raise wrong(field, value, f"a whole number from {low} to {high}")
        return int(value)

    return check
