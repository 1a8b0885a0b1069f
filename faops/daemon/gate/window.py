"""The hours of the day in which the daemon may tune."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass

RANGE = re.compile(r"([0-9]{1,2}):([0-9]{2})\s*-\s*([0-9]{1,2}):([0-9]{2})")
DAY = 24 * 60  # minutes


@dataclass(frozen=True)
class Window:
    """A range of local time, in minutes after midnight: from ``start`` until just before ``end``, maybe over midnight.

    It goes by what a clock on the wall shows. On the day that has 23 hours it may so be an hour shorter, and on the
    day that has 25 an hour longer.
    """

    start: int
    end: int

    @staticmethod
    def parse(text: str) -> Window:
        """Read "22:00-06:00"; "24:00" may end it. Raises ValueError."""
        found = RANGE.fullmatch(text.strip())
        if not found:
            raise ValueError("expected hours of the day such as 22:00-06:00")
        hour, minute, end_hour, end_minute = map(int, found.groups())
        start, end = 60 * hour + minute, 60 * end_hour + end_minute
        if start >= DAY or end > DAY or max(minute, end_minute) >= 60:
            raise ValueError("expected hours of the day from 00:00 to 24:00, such as 22:00-06:00")
        if start == end % DAY:
            raise ValueError("expected two different hours, such as 22:00-06:00, or nothing for the whole day")
        return Window(start, end % DAY)

    def holds(self, now: float) -> bool:
        """Whether ``now``, in seconds since the epoch, lies in it."""
        local = time.localtime(now)
        minute = 60 * local.tm_hour + local.tm_min
        if self.start < self.end:
            return self.start <= minute < self.end
        return minute >= self.start or minute < self.end

    def __str__(self) -> str:
        return "-".join(f"{minutes // 60:02}:{minutes % 60:02}" for minutes in (self.start, self.end))
