"""Taking what identifies a person or a machine out of a report, so that it can be shown to others."""

from __future__ import annotations

import getpass
import platform
import re
from pathlib import Path
from typing import Any


def redact(value: Any) -> Any:
    """A copy of a JSON-able value in whose texts the home directory is ``~``, and user and host name are left out."""
    if isinstance(value, str):
        for pattern, replacement in _replacements():
            value = pattern.sub(replacement, value)
        return value
    if isinstance(value, dict):
        return {key: redact(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [redact(item) for item in value]
    return value


def _replacements() -> list[tuple[re.Pattern[str], str]]:
    """Pairs of what to look for and what to put there; the home directory first, as it often holds the user name."""
    found = [(_home(), "~"), (platform.node(), "<host>"), (_user(), "<user>")]
    return [(re.compile(rf"(?<!\w){re.escape(text)}(?!\w)"), mark) for text, mark in found if text]


def _home() -> str:
    try:
        home = str(Path.home())
    except RuntimeError:
        return ""
    return "" if home == Path(home).anchor else home


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):
        return ""
