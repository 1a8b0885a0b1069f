"""How a line of the log looks: JSON in the file, text for people on a terminal and in the journal."""

from __future__ import annotations

import datetime
import json
import logging
import math
from collections.abc import Mapping
from typing import Any

LONGEST = 4096  # characters of one text in a line
MOST_ITEMS = 100  # of one list or mapping
DEEPEST = 4  # levels of lists and mappings
LARGEST = 64 * 1024  # characters of a line; above that its fields are left out

_OWN = ("time", "level", "event", "message")
_PRIORITIES = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}  # of syslog


class JsonFormatter(logging.Formatter):
    """One JSON object in ASCII, without line breaks."""

    def format(self, record: logging.LogRecord) -> str:
        content = _content(record)
        line = json.dumps(content)
        if len(line) > LARGEST:
            line = json.dumps({**{name: content[name] for name in _OWN}, "left_out": len(line)})
        return line


class TextFormatter(logging.Formatter):
    """Text to be read; for the journal with its priority instead of time and level."""

    def __init__(self, journal: bool = False) -> None:
        super().__init__()
        self.journal = journal

    def format(self, record: logging.LogRecord) -> str:
        content = _content(record)
        if not self.journal:
            return _readable(content)
        prefix = f"<{_PRIORITIES.get(content['level'], 6)}>"
        return "\n".join(prefix + line for line in _sentence(content).split("\n"))


def render(line: str) -> str:
    """A line of the log file to be read by a person; what is no such line is returned as it is, but printable."""
    try:
        content = json.loads(line)
        return _readable({**dict.fromkeys(_OWN, ""), **content})
    except (ValueError, TypeError, RecursionError):
        return printable(line.rstrip("\n"))


def printable(text: str) -> str:
    """Text that a terminal does not obey: control characters are written as escapes."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


# --------------------------------------------------------------------------------------------------------- from records


def _content(record: logging.LogRecord) -> dict[str, Any]:
    """What a record tells, all of it JSON-able and of bounded size."""
    moment = datetime.datetime.fromtimestamp(record.created, datetime.timezone.utc)
    content: dict[str, Any] = {
        "time": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "level": record.levelname.lower(),
        "part": record.name.rpartition("daemon.")[2],
        "event": cut(str(getattr(record, "event", "foreign"))),
        "message": cut(_message(record)),
    }
    for name, value in _fields(record).items():
        content[name if name not in _OWN else f"{name}_"] = plain(value) if name != "traceback" else _end(str(value))
    return content


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception:  # a foreign record whose arguments do not fit its format
        return str(record.msg)


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    fields = dict(getattr(record, "fields", {}))
    if record.exc_info:
        fields["traceback"] = logging.Formatter().formatException(record.exc_info)
    return fields


def plain(value: Any, depth: int = 0) -> Any:
    """A JSON-able form of any value, cut where it is large. Never raises."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return int(value) if abs(value) < 2**63 else cut(hex(value))
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(float(value))
    if isinstance(value, Mapping) and depth < DEEPEST:
        return _plain_mapping(value, depth)
    if isinstance(value, list | tuple | set | frozenset) and depth < DEEPEST:
        return _plain_items(value, depth)
    return cut(_any_text(value))


def _plain_mapping(value: Mapping[Any, Any], depth: int) -> dict[str, Any]:
    pairs = list(value.items())
    content = {cut(_any_text(name)): plain(item, depth + 1) for name, item in pairs[:MOST_ITEMS]}
    return content if len(pairs) <= MOST_ITEMS else {**content, "...": f"{len(pairs) - MOST_ITEMS} more"}


def _plain_items(value: Any, depth: int) -> list[Any]:
    items = list(value)
    content = [plain(item, depth + 1) for item in items[:MOST_ITEMS]]
    return content if len(items) <= MOST_ITEMS else [*content, f"... {len(items) - MOST_ITEMS} more"]


def _any_text(value: Any) -> str:
    try:
        return str(value)
    except Exception:
        return f"({type(value).__name__} without a text)"


def cut(text: str) -> str:
    """The beginning of a text that is too long."""
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}... ({len(text)} characters)"


def _end(text: str) -> str:
    """The end of a text that is too long: of a traceback it is what matters."""
    return text if len(text) <= LONGEST else f"({len(text)} characters) ...{text[-LONGEST:]}"


# ----------------------------------------------------------------------------------------------------------- for people


def _readable(content: Mapping[str, Any]) -> str:
    return f"{_local_time(str(content['time']))}  {printable(str(content['level'])).upper():7}  {_sentence(content)}"


def _local_time(text: str) -> str:
    try:
        moment = datetime.datetime.fromisoformat(text.replace("Z", "+00:00"))
        return moment.astimezone().strftime("%Y-%m-%d %H:%M:%S")
    except (ValueError, OverflowError, OSError):
        return printable(text)


def _sentence(content: Mapping[str, Any]) -> str:
    """What happened and its fields in one line, and below it the traceback if there is one."""
    told = printable(": ".join(filter(None, (str(content["event"]), str(content["message"])))))
    fields = [
        f"{printable(name)}={_value(content[name])}" for name in content if name not in (*_OWN, "part", "traceback")
    ]
    trace = [f"    {printable(line)}" for line in str(content.get("traceback", "")).splitlines()]
    return "\n".join(["  ".join(filter(None, (told, " ".join(fields)))), *trace])


def _value(value: Any) -> str:
    text = value if isinstance(value, str) and value and not set(value) & set(" =\"'") else json.dumps(value)
    return printable(text)
