"""Which of the processes on a device are ours, where the driver numbers them otherwise than we do."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection

# Of the namespace in which the kernel itself numbers processes (source: Linux, include/linux/proc_ns.h). Drivers tell
# these numbers, whatever a container calls its processes.
FIRST_NAMESPACE = "pid:[4026531836]"
TAIL_SECONDS = 2.0  # drivers tell of the last second


def numbered_alike() -> bool:
    """Whether drivers and we call processes by the same numbers: not so in most containers."""
    try:
        return os.readlink("/proc/self/ns/pid") == FIRST_NAMESPACE
    except OSError:
        return False


class Owners:
    """Tells our processes from others.

    In a container, the one process that came to the device while a child of ours lived is taken for ours, and those
    that come after it for others. Where two came between two looks, nobody can tell: they are in ``unclear``.
    """

    def __init__(self, alike: Callable[[], bool] = numbered_alike) -> None:
        self.working = False  # whether a child of ours may be, or just was, on the device
        self.came: set[int] = set()  # others that came meanwhile
        self.unclear: set[int] = set()
        self._before: set[int] = set()  # who was there before
        self._alike = alike()
        self._ours: dict[int, float] = {}  # until when a number counts as ours
        self._worked_at = -TAIL_SECONDS

    def note(self, own: Collection[int], holders: Collection[int], now: float) -> None:
        """Take in who is ours by our numbers, and who is on the device by the driver's."""
        children = set(own) - {os.getpid()}
        self._worked_at = now if children else self._worked_at
        self.working = now - self._worked_at < TAIL_SECONDS
        self._ours = {pid: until for pid, until in self._ours.items() if until > now}
        self._keep(children, now)
        self._alike = self._alike or not children.isdisjoint(holders)
        if not self.working:
            self._before, self.came, self.unclear = set(holders), set(), set()
        elif self._alike:
            self.came, self.unclear = set(holders) - set(self._ours) - self._before, set()
        else:
            self._guess(set(holders), now)

    def is_ours(self, pid: int) -> bool:
        """Whether a process, by the driver's number, is ours or was a moment ago."""
        return pid in self._ours

    def _guess(self, holders: set[int], now: float) -> None:
        self.came &= holders
        known = holders & set(self._ours)
        new = holders - known - self._before - self.came
        if known:
            self.came |= new
        elif len(new) == 1:
            known = new
        self.unclear = set() if known else new
        self._keep(known, now)

    def _keep(self, pids: Collection[int], now: float) -> None:
        self._ours.update(dict.fromkeys(pids, now + TAIL_SECONDS))
