"""Reading the log file: its last lines, and those that are still to come."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from faops.daemon.log.file import FILES, numbered

BLOCK = 1 << 16  # bytes read at once
LOOK_SECONDS = 0.2  # between looks for new lines


def tail(path: Path, count: int) -> list[str]:
    """The last ``count`` lines of the log, oldest first; fewer where it has fewer. Raises OSError.

    Reads the files backwards from their ends, and an older one only where the newer do not have enough.
    """
    return _last_of_files(path, count, first=0)


def follow(path: Path, count: int = 0, stopped: Callable[[], bool] = lambda: False) -> Iterator[str]:
    """The last ``count`` lines and then each new one once it is written; ends only when ``stopped`` says so.

    Goes on with the new file when the log is rotated, removed or cut short, and waits for one that is not there yet.
    Raises OSError where it cannot be read.
    """
    source = _Source(path)
    try:
        yield from source.skip(count)
        while True:
            ending = stopped()  # asked first, so that what was written before is told
            lines = source.new_lines()
            yield from lines
            if ending:
                break
            if not lines:
                time.sleep(LOOK_SECONDS)
    finally:
        source.close()


class _Source:
    """The log file that is written now, read as it grows."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: BinaryIO | None = None
        self._rest = b""  # the beginning of a line
        self._open()

    def skip(self, count: int) -> list[str]:
        """Go to the end, and return the last lines before it."""
        if self._file is None:
            return tail(self.path, count)
        end = _end_of_lines(self._file)
        lines = _last(self._file, count, end)
        self._file.seek(end)
        return [*_last_of_files(self.path, count - len(lines), first=1), *lines]

    def new_lines(self) -> list[str]:
        """The lines written since the last call."""
        replaced = self._is_replaced()  # looked at first: nothing is written to a file that has been replaced
        lines = self._read()
        if replaced:
            self.close()
            self._open()
            lines += self._read()
        return lines

    def close(self) -> None:
        """Close the file."""
        if self._file:
            self._file.close()
        self._file, self._rest = None, b""

    def _open(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._file = open(self.path, "rb")  # noqa: SIM115

    def _is_replaced(self) -> bool:
        if self._file is None:
            return True
        try:
            status = os.stat(self.path)
        except FileNotFoundError:
            return True
        return not os.path.samestat(status, os.fstat(self._file.fileno())) or status.st_size < self._file.tell()

    def _read(self) -> list[str]:
        if self._file is None:
            return []
        *lines, self._rest = (self._rest + self._file.read()).split(b"\n")
        return [_decoded(line) for line in lines]


def _last_of_files(path: Path, count: int, first: int) -> list[str]:
    """The last lines of the log's files from number ``first`` on."""
    lines: list[str] = []
    for number in range(first, FILES):
        if len(lines) >= count:
            break
        with contextlib.suppress(FileNotFoundError), open(numbered(path, number), "rb") as file:
            lines = _last(file, count - len(lines), file.seek(0, os.SEEK_END)) + lines
    return lines


def _last(file: BinaryIO, count: int, end: int) -> list[str]:
    """The last ``count`` lines before the position ``end``."""
    if count <= 0:
        return []
    blocks: list[bytes] = []
    start, breaks = end, 0
    while start > 0 and breaks <= count:
        size = min(BLOCK, start)
        start -= size
        file.seek(start)
        blocks.append(file.read(size))
        breaks += blocks[-1].count(b"\n")
    lines = b"".join(reversed(blocks)).removesuffix(b"\n").split(b"\n") if blocks else []
    return [_decoded(line) for line in lines[-count:]]


def _end_of_lines(file: BinaryIO) -> int:
    """The position behind the last whole line."""
    size = file.seek(0, os.SEEK_END)
    start = max(0, size - BLOCK)
    file.seek(start)
    return start + file.read(size - start).rfind(b"\n") + 1


def _decoded(line: bytes) -> str:
    return line.decode("utf-8", "replace")
