"""Which of the processes on a device are ours, where the driver numbers them otherwise than we do."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection

# Of the namespace in which the kernel itself numbers processes (source: Linux, include/linux/proc_ns.h). Drivers tell
# these numbers, whatever a container calls its processes.
FIRST_NAMESPACE = "pid:[4026531836]"
TAIL_SECONDS = 2.0  # NVIDIA's driver tells of the last second


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

    What the driver tells may be ``tail`` seconds old: as long, a process that has ended counts as being there.
    """

    def __init__(self, alike: Callable[[], bool] = numbered_alike, tail: float = TAIL_SECONDS) -> None:
        self.working = False  # whether a child of ours lives, or did a moment ago
        self.here = False  # whether one of ours was seen on the device
        self.came: set[int] = set()  # others that came to the device while one of ours was there
        self.unclear: set[int] = set()
        self._before: set[int] = set()  # who was there before
        self._alike = alike()
        self._ours: dict[int, float] = {}  # until when a number counts as ours
        self._tail = tail
        self._worked_at = self._seen_at = -tail

    def note(self, own: Collection[int], holders: Collection[int], now: float) -> None:
        """Take in who is ours by our numbers, and who is on the device by the driver's."""
        children, present = set(own) - {os.getpid()}, set(holders)
        self._ours = {pid: until for pid, until in self._ours.items() if until > now}
        self._keep(children, now)
        self.unclear = set() if self._alike or not children else self._guess(present, now)
        self._worked_at = now if children else self._worked_at
        self._seen_at = now if self.unclear or not present.isdisjoint(self._ours) else self._seen_at
        self.working, self.here = now - self._worked_at < self._tail, now - self._seen_at < self._tail
        if not self.here:
            self._before = present
        self.came = present - set(self._ours) - self._before - self.unclear

    def is_ours(self, pid: int) -> bool:
        """Whether a process, by the driver's number, is ours or was a moment ago."""
        return pid in self._ours

    def _guess(self, present: set[int], now: float) -> set[int]:
        """Go on knowing which is ours, or find it among those that came; gives those of whom nobody can tell."""
        known = present & set(self._ours)
        new = present - self._before - self.came
        self._keep(known or (new if len(new) == 1 else ()), now)
        return set() if known or len(new) == 1 else new

    def _keep(self, pids: Collection[int], now: float) -> None:
        self._ours.update(dict.fromkeys(pids, now + self._tail))
