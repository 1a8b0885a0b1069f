"""Files that faops keeps: a reader sees all of one or nothing, and what lies in its place cannot hurt who opens it."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
import uuid
from collections.abc import Callable
from pathlib import Path

from faops.architectures import MIB
from faops.errors import CacheError

TEMPORARY_SUFFIX = ".tmp"
LOOKS = 20  # at directories that come and go
LARGEST = 4 * MIB  # bytes of a file worth reading: an entry with hundreds of timings has a hundredth of it

Signature = tuple[int, int, int]


def file_name(key: str) -> str:
    """Name of the file that holds what is kept about the problem with this key."""
    return hashlib.sha256(key.encode()).hexdigest()[:32] + ".json"


def write_whole(path: Path, text: str, valid: Callable[[], bool] = lambda: True) -> bool:
    """Write ``text`` to ``path``: a temporary file in the same directory, fsync, rename. Raises OSError.

    ``valid`` is asked when nothing is left but the rename; if it says no, nothing is written. Returns what it said. A
    process killed on the way leaves a file ending in TEMPORARY_SUFFIX, which no reader opens.
    """
    temporary = path.with_name(f".{path.stem}-{uuid.uuid4().hex}{TEMPORARY_SUFFIX}")
    renamed = False
    try:
        with open(temporary, "x", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        if valid():
            os.replace(temporary, path)
            renamed = True
    finally:
        if not renamed:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
    return renamed


def read_whole(path: Path, limit: int = LARGEST) -> str:
    """The text of a regular file of at most ``limit`` bytes.

    Raises OSError for what is not there, cannot be read, is no regular file (a FIFO would block whoever opens it) or is
    too large, and ValueError for text that is not UTF-8.
    """
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOCTTY", 0)
    descriptor = os.open(path, flags)
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, "it is a directory", str(path))
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "it is not a regular file", str(path))
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            content = file.read(limit + 1)
    finally:
        os.close(descriptor)
    if len(content) > limit:
        raise OSError(errno.EFBIG, f"it is larger than {limit / MIB:g} MiB", str(path))
    return content.decode("utf-8")


def signature(path: Path) -> Signature | None:
    """What differs once a file was replaced or changed; None where there is none to look at."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def below(directory: Path, pattern: str) -> list[Path]:
    """The paths below ``directory`` that match a glob pattern, sorted. Raises OSError where something cannot be read.

    Other processes remove directories meanwhile, over which Path.glob stumbles: then it looks again.
    """
    for _ in range(LOOKS):
        with contextlib.suppress(FileNotFoundError):
            return sorted(directory.glob(pattern))
    return []


def remove(path: Path) -> bool:
    """Remove a file of the cache; whether it was there. Raises CacheError where it cannot be."""
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise CacheError(f"{path} cannot be removed: {error.strerror or error}") from None
    return True
