"""Checks of what a request holds. Each gives the value or raises ProblemError, naming field, value and expectation."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeVar

from faops.daemon.http.problems import ProblemError, wrong

Value = TypeVar("Value")
Check = Callable[[str, Any], Value]

CONTROL_CHARACTERS = re.compile(r"[\x00-\x1f\x7f]")


def whole(low: int, high: int) -> Check[int]:
    """A whole number of JSON, which 2.0 is too."""

    def check(field: str, value: Any) -> int:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or value != math.floor(value) or not low <= value <= high:
            raise wrong(field, value, f"a whole number from {low} to {high}")
        return int(value)

    return check


def seconds(highest: float) -> Check[float]:
    """More than 0 seconds."""

    def check(field: str, value: Any) -> float:
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value <= highest:
            raise wrong(field, value, f"a number of seconds above 0 and up to {highest:g}")
        return float(value)

    return check


def text(longest: int, pattern: str = "", expected: str = "", shortest: int = 1, lines: bool = False) -> Check[str]:
    """A string; of one line, and fully matched by ``pattern``, which ``expected`` says in words."""

    def check(field: str, value: Any) -> str:
        if not isinstance(value, str):
            raise wrong(field, value, expected or "a string")
        if not shortest <= len(value) <= longest:
            raise wrong(field, value, f"{shortest} to {longest} characters")
        if any("\ud800" <= character <= "\udfff" for character in value):
            raise wrong(field, value, "text of Unicode, without half a surrogate pair")
        if not lines and CONTROL_CHARACTERS.search(value):
            raise wrong(field, value, "one line without control characters")
        if pattern and not re.fullmatch(pattern, value):
            raise wrong(field, value, expected)
        return value

    return check


def flag(field: str, value: Any) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise wrong(field, value, "true or false")
    return value


def one_of(choices: Collection[str]) -> Check[str]:
    """One of some words."""

    def check(field: str, value: Any) -> str:
        if not isinstance(value, str) or value not in choices:
            raise wrong(field, value, f"one of {', '.join(choices)}")
        return value

    return check


def list_of(check_item: Check[Value], least: int, most: int) -> Check[list[Value]]:
    """A list; an error names the item by its index."""

    def check(field: str, value: Any) -> list[Value]:
        if not isinstance(value, list):
            raise wrong(field, value, "a list")
        if not least <= len(value) <= most:
            raise ProblemError(422, f"{field}: got {len(value)} items, expected {least} to {most}", field)
        return [check_item(f"{field}[{index}]", item) for index, item in enumerate(value)]

    return check


def one_or_list(check_item: Check[Value], most: int) -> Check[Value | list[Value]]:
    """One value or a list of them."""
    check_list = list_of(check_item, 0, most)

    def check(field: str, value: Any) -> Value | list[Value]:
        return check_list(field, value) if isinstance(value, list) else check_item(field, value)

    return check


def or_null(check_value: Check[Value]) -> Check[Value | None]:
    """A value or null."""
    return lambda field, value: None if value is None else check_value(field, value)


def fields(checks: Mapping[str, Check[Any]], inside: str = "") -> Check[dict[str, Any]]:
    """An object of known names, none of which must be there. ``inside`` is what stands before the names in errors."""

    def check(field: str, value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise wrong(field, value, "an object")
        for name in value:
            if name not in checks:
                raise ProblemError(422, f"{unknown(inside + name)}, expected {', '.join(checks)}", inside + name[:80])
        return {name: checks[name](inside + name, item) for name, item in value.items()}

    return check


def unknown(name: str) -> str:
    """That a name is not known, however long it is."""
    return f"{ascii(name)[1:-1][:60]}: there is no such name"
