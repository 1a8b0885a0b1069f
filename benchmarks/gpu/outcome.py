"""One thing to try, and what came of it."""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

# "lost" and "hung": the process that tried it did not survive, or did not come back.
Status = Literal["ok", "wrong", "lost", "hung", "skipped", "not run"]
BAD: tuple[Status, ...] = ("wrong", "lost", "hung")
DETAIL_LINES = 12


class SkipError(Exception):
    """The item has nothing to try on this machine; the message says why."""


class WrongError(AssertionError):
    """The item found something wrong, and has figures to keep all the same."""

    def __init__(self, message: str, data: dict[str, Any]) -> None:
        self.data = data
        super().__init__(message)


@dataclass(frozen=True)
class Item:
    """``run`` raises for what is wrong (any exception), and returns figures worth keeping."""

    name: str
    run: Callable[[], dict[str, Any]]


@dataclass(frozen=True)
class Outcome:
    """What came of an item: in words for what is not ok, with its figures and its time in seconds."""

    section: str
    name: str
    status: Status
    detail: str = ""
    seconds: float = 0.0
    data: dict[str, Any] = field(default_factory=dict)

    @property
    def bad(self) -> bool:
        return self.status in BAD

    def line(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self))

    @staticmethod
    def of_line(line: str) -> Outcome:
        return Outcome(**json.loads(line))


def perform(section: str, item: Item) -> Outcome:
    """Try ``item``; whatever it raises becomes part of the outcome."""
    start = time.perf_counter()
    data: dict[str, Any] = {}
    status: Status = "ok"
    detail = ""
    try:
        data = item.run()
    except SkipError as reason:
        status, detail = "skipped", str(reason)
    except AssertionError as error:
        status, detail, data = "wrong", str(error) or _where(error), getattr(error, "data", data)
    except Exception as error:
        status, detail = "wrong", f"{type(error).__name__}: {error}\n{_where(error)}"
    detail = "\n".join(detail.strip().splitlines()[:DETAIL_LINES])
    return Outcome(section, item.name, status, detail, round(time.perf_counter() - start, 4), data)


def _where(error: Exception) -> str:
    return "\n".join(f"at {frame.filename}:{frame.lineno}" for frame in traceback.extract_tb(error.__traceback__)[-3:])
