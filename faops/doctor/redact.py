"""Taking what identifies a person or a machine, or opens a door, out of a report, so that it can be shown to others."""

from __future__ import annotations

import getpass
import ipaddress
import platform
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

# Of environment variables, which are written in capitals.
SECRET_NAME = re.compile(r"TOKEN|SECRET|PASSW|CREDENTIAL|AUTH|COOKIE|PRIVATE|(?:^|_)(?:KEY|KEYS|PAT|PWD)$")
REMOVED = "<removed>"
Replacement = str | Callable[[re.Match[str]], str]


def redact(value: Any) -> Any:
    """A copy of a JSON-able value in which the home directory is ``~``, and names, addresses and keys are gone."""
    if isinstance(value, str):
        for pattern, replacement in (*_own(), *GENERAL):
            value = pattern.sub(replacement, value)
        return value
    if isinstance(value, Mapping):
        return {key: REMOVED if _is_secret(key) else redact(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [redact(item) for item in value]
    return value


def _is_secret(name: object) -> bool:
    return isinstance(name, str) and bool(SECRET_NAME.search(name))


def _own() -> list[tuple[re.Pattern[str], Replacement]]:
    """What names this very person or machine; the home directory first, as it often holds the user's name."""
    host = platform.node()
    found = [(_home(), "~"), (host, "<host>"), (host.partition(".")[0], "<host>"), (_user(), "<user>")]
    named = ((text, mark) for text, mark in found if text not in ("", "localhost"))
    return [(re.compile(rf"(?<!\w){re.escape(text)}(?!\w)"), mark) for text, mark in named]


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


def _if_address(match: re.Match[str]) -> str:
    """Versions look like addresses too. Those of four numbers that occur here begin below 10."""
    text = match.group()
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return text
    return text if address.version == 4 and int(text.partition(".")[0]) < 10 else "<address>"


# What names or opens something anywhere: accounts in URLs and paths, keys, addresses, serial numbers.
GENERAL: list[tuple[re.Pattern[str], Replacement]] = [
    (re.compile(r"(\w://)[^\s/@]+@"), rf"\1{REMOVED}@"),
    (re.compile(r"(/(?:home|Users)/)[^/\s'\":]+"), r"\1<user>"),
    (re.compile(r"\b(?:hf|ghp|gho|ghs|github_pat|glpat|sk|xox[abp])[_-][A-Za-z0-9_-]{12,}"), REMOVED),
    (re.compile(r"(?i)\b(\w*(?:token|secret|passw|credential|api_?key)\w*=)[^\s,;'\"]+"), rf"\1{REMOVED}"),
    (re.compile(r"\b[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b", re.IGNORECASE), "<uuid>"),
    (re.compile(r"(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?![\w.]*\w)"), _if_address),
    (re.compile(r"(?<![\w:])[0-9A-Fa-f]*:[0-9A-Fa-f:]*:[0-9A-Fa-f]+(?![\w:])"), _if_address),
]
