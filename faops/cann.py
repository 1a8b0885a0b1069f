"""The version of CANN, Ascend's libraries and operators, as its files tell it; nothing of it is loaded.

Where the files lie: CANN documentation, Software Installation, "File Paths". The environment variables are those that
``set_env.sh`` of CANN sets.
"""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

HOMES = ("ASCEND_HOME_PATH", "ASCEND_TOOLKIT_HOME")
INSTALLED = "ascend_toolkit_install.info"  # has the line "version=8.3.RC1"
PARTS = ("share/info/runtime/version.info", "runtime/version.info", "compiler/version.info")  # "Version=9.0.0"
OPERATORS = "opp/version.info"
VERSION = re.compile(r"^version\s*=\s*\[?([^\s\]:]+)", re.IGNORECASE | re.MULTILINE)


def home() -> Path | None:
    """The directory of the CANN that this process would load; None where ``set_env.sh`` was not sourced."""
    return next((Path(path) for name in HOMES if (path := os.environ.get(name))), None)


def version() -> str:
    """Version of the CANN at :func:`home`, such as "8.3.RC1"; "" where there is none or its files say nothing."""
    root = home()
    return "" if root is None else _first(_files(root))


def build() -> str:
    """What tells two CANNs apart whose operators may run at different speeds: the version, and that of the package of
    operators where it has another ("8.0.0-opp-7.6.0.1.220"): it is updated by itself. "" where nothing is known."""
    root = home()
    if root is None:
        return ""
    toolkit, operators = _first(_files(root)), _first([root / OPERATORS])
    return toolkit if operators in ("", toolkit) else "-opp-".join(filter(None, (toolkit or "unknown", operators)))


def _files(root: Path) -> Iterator[Path]:
    """The files that may tell the version; the toolkit's own record first, for its parts may count differently."""
    own = f"{platform.machine().lower()}-linux"
    for folder in dict.fromkeys((own, "", "aarch64-linux", "x86_64-linux")):
        yield root / folder / INSTALLED
    yield from (root / part for part in PARTS)


def _first(files: Iterable[Path]) -> str:
    """The first version that one of ``files`` tells."""
    return next((found.group(1) for path in files if (found := VERSION.search(_text(path)))), "")


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
