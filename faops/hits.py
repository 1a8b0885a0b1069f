"""How often programs ran a problem untuned: what tells a miss that matters from one that happened once.

Every process counts its own calls in memory, a :class:`Tally` for each miss, and adds what it has counted to a small
file whenever that has doubled: a million calls are twenty writes, and at least half of them stand in the file. The
first call of all is counted by the file of the miss itself. Calls that a CUDA graph replays do not pass through Python
and are not seen; those of a compiled model are.

    <environment>/misses/<hash of the key>.json     the miss
    <environment>/hits/<hash of the key>.txt        its further calls: numbers, to be added up

Nothing here is worth failing or slowing a call: what cannot be written is dropped. This module imports no torch.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterator
from pathlib import Path

from faops import settings
from faops.files import read_whole, write_whole

MISSES = "misses"  # directories of an environment
HITS = "hits"
SUFFIX = ".txt"
FULL = 4096  # bytes of a file: beyond that its numbers are replaced by their sum
MOST = 10**15  # calls; nobody makes more, and the number has to fit into anybody's integers

_FLAGS = os.O_CREAT | os.O_APPEND | os.O_WRONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0)


def recording() -> bool:
    """Whether the settings want misses. Raises SettingsError."""
    return bool(settings.get("tuning") and settings.get("record_misses") and not settings.get("emulate"))


# ---------------------------------------------------------------------------------------------- files


def place(miss: Path) -> Path:
    """The file of the hits that belong to the file of a miss."""
    return miss.parent.parent / HITS / (miss.stem + SUFFIX)


def read(miss: Path) -> int:
    """Calls that ran the problem of a miss untuned, as far as programs have told; what cannot be read counts as none.

    Raises nothing.
    """
    return min(1 + _sum(place(miss)), MOST)


def _sum(path: Path) -> int:
    try:
        words = read_whole(path, limit=2 * FULL).split()
    except (OSError, ValueError):
        return 0
    return sum(int(word) for word in words if word.isdecimal() and len(word) <= len(str(MOST)))


def add(miss: Path, count: int) -> None:
    """Add ``count`` calls to those of a miss. Does nothing where the miss is gone. Raises OSError."""
    if not os.path.lexists(miss):
        return
    path = place(miss)
    try:
        descriptor = os.open(path, _FLAGS, 0o666)
    except FileNotFoundError:
        path.parent.mkdir(exist_ok=True)
        descriptor = os.open(path, _FLAGS, 0o666)
    try:
        os.write(descriptor, b"\n%d" % count)  # the new line first, so that a number cut short joins no other
        size = os.fstat(descriptor).st_size
    finally:
        os.close(descriptor)
    if size > FULL:
        write_whole(path, f"\n{min(_sum(path), MOST)}")


def remove(miss: Path) -> None:
    """Forget the hits of a miss. Raises nothing."""
    with contextlib.suppress(OSError):
        place(miss).unlink()


# ---------------------------------------------------------------------------------------------- counting


class Tally:
    """The calls of this process that ran the problem of one miss untuned; ``written`` of them were told already.

    ``ticks`` is an iterator that is exhausted when it is time to write, since nothing counts faster than one that is
    written in C. Where every nanosecond matters, a call is counted by

        if next(tally.ticks, True):
            tally.write()

    Threads share it without a lock: of two that meet at its end one may count a few calls twice.
    """

    __slots__ = ("miss", "ticks", "written")

    def __init__(self, miss: Path, written: int = 0) -> None:
        self.miss = miss
        self.restart(written)

    def restart(self, written: int = 0) -> None:
        """Count from ``written`` on. The call that doubles it finds ``ticks`` exhausted."""
        self.written = written
        self.ticks: Iterator[None] = itertools.repeat(None, self._due - 1)

    @property
    def _due(self) -> int:
        return max(1, self.written)

    def count(self) -> None:
        """Count one call."""
        if next(self.ticks, True):
            self.write()

    def write(self) -> None:
        """Add what was counted since the last time to the file. Raises nothing; after a failure it is the last try."""
        count = self._due
        self.restart(self.written + count)
        try:
            if recording():
                add(self.miss, count)
        except Exception:  # the call has succeeded, whatever becomes of its number
            self.ticks = itertools.repeat(None)


_tallies: dict[Path, Tally] = {}


def tally(miss: Path, written: int = 0) -> Tally:
    """The tally of this process for the miss in a file; a new one has ``written`` calls."""
    return _tallies.setdefault(miss, Tally(miss, written))


def _restart_all() -> None:
    for one in _tallies.values():
        one.restart()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_restart_all)  # a child's calls are its own
