"""A log file that is rotated and survives a full disk.

logging.handlers.RotatingFileHandler would leave halves of lines behind when the disk is full, and print a traceback for
each.
"""

from __future__ import annotations

import contextlib
import logging
import os
import stat
from pathlib import Path

MIB = 1 << 20
LARGEST = 5 * MIB  # bytes of a file
FILES = 3  # with the one that is written
MODE = 0o600


class FileHandler(logging.Handler):
    """Appends lines to ``path``. When it would get larger than LARGEST it becomes ``path``.1, which becomes .2.

    What cannot be written is dropped and counted in ``dropped``; the next line that can be is preceded by one that says
    how many are missing. A file that somebody removed or moved is made again.
    """

    def __init__(self, path: Path, formatter: logging.Formatter, largest: int = LARGEST) -> None:
        super().__init__()
        self.setFormatter(formatter)
        self.path = path
        self.largest = largest
        self.dropped = 0
        self._untold = 0  # of the dropped, since the last line
        self._descriptor: int | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line. Never raises."""
        try:
            told = self._format(self._missing()) if self._untold else b""
            self._write(told + self._format(record))
            self._untold = 0
        except Exception:  # the disk's (OSError), or that of a value in a record
            self.dropped += 1
            self._untold += 1
            self._close()

    def close(self) -> None:
        """Close the file; a later line opens it again."""
        with self.lock or contextlib.nullcontext():
            self._close()
        super().close()

    def _format(self, record: logging.LogRecord) -> bytes:
        return (self.format(record) + "\n").encode("utf-8", "backslashreplace")

    def _missing(self) -> logging.LogRecord:
        message = f"{self._untold} lines could not be written"
        record = logging.LogRecord("faops.daemon.log", logging.WARNING, "", 0, message, None, None)
        record.event = "log_dropped"
        return record

    def _write(self, line: bytes) -> None:
        """Append a line or two, all of it or nothing. Raises OSError."""
        descriptor = self._opened()
        size = os.fstat(descriptor).st_size
        if size and size + len(line) > self.largest:
            self._rotate()
            descriptor, size = self._opened(), 0
        if os.write(descriptor, line) != len(line):  # the disk is full
            os.ftruncate(descriptor, size)
            raise OSError(f"{self.path}: a line was not written whole")

    def _opened(self) -> int:
        """The descriptor of what is at ``path`` now."""
        if self._descriptor is not None and not self._is_current(self._descriptor):
            self._close()
        if self._descriptor is None:
            self._descriptor = _open(self.path)
        return self._descriptor

    def _is_current(self, descriptor: int) -> bool:
        try:
            return os.path.samestat(os.stat(self.path), os.fstat(descriptor))
        except FileNotFoundError:
            return False

    def _rotate(self) -> None:
        for number in range(FILES - 1, 0, -1):
            with contextlib.suppress(FileNotFoundError):
                os.replace(numbered(self.path, number - 1), numbered(self.path, number))

    def _close(self) -> None:
        if self._descriptor is not None:
            with contextlib.suppress(OSError):
                os.close(self._descriptor)
            self._descriptor = None


def numbered(path: Path, number: int) -> Path:
    """The path of an older file; 0 is the one that is written."""
    return path.with_name(f"{path.name}.{number}") if number else path


def _open(path: Path) -> int:
    """Open a regular file to append to, 0600. Raises OSError."""
    descriptor = os.open(
        path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY, MODE
    )
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(f"{path} is not a regular file")
        os.fchmod(descriptor, MODE)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor
