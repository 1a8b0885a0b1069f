"""Writing a file so that a reader sees all of it or none of it."""

from __future__ import annotations

import contextlib
import os
import uuid
from pathlib import Path

TEMPORARY_SUFFIX = ".tmp"


def write_whole(path: Path, text: str) -> None:
    """Write ``text`` to ``path``: a temporary file in the same directory, fsync, rename. Raises OSError.

    A process killed on the way leaves a file ending in TEMPORARY_SUFFIX, which no reader opens.
    """
    temporary = path.with_name(f".{path.stem}-{uuid.uuid4().hex}{TEMPORARY_SUFFIX}")
    try:
        with open(temporary, "x", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
