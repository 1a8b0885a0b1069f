"""How much other programs compute at this moment: a tuned CPU should be an idle one."""

from __future__ import annotations

import os
import time
from pathlib import Path

STATISTICS = Path("/proc/stat")
IDLE_FIELDS = (3, 4)  # of the line "cpu": idle and waiting for input or output (source: proc(5))


def foreign_cores(seconds: float, statistics: Path = STATISTICS) -> float | None:
    """Cores that other programs keep busy, averaged over the next ``seconds``; None where the system does not say.

    In a container the figure is that of the whole host, which is what disturbs a measurement.
    """
    try:
        busy_before, own_before = _busy_ticks(statistics), time.process_time()
        time.sleep(seconds)
        busy, own = _busy_ticks(statistics) - busy_before, time.process_time() - own_before
        return max(0.0, (busy / os.sysconf("SC_CLK_TCK") - own) / seconds)
    except (OSError, ValueError, IndexError, AttributeError):
        return None


def _busy_ticks(statistics: Path) -> int:
    """Clock ticks that all cores together have spent working since boot. Guest time is in user time already."""
    name, *words = statistics.read_text().splitlines()[0].split()
    if name != "cpu":
        raise ValueError(f"{statistics} begins with {name!r}")
    values = [int(word) for word in words[:8]]
    return sum(value for index, value in enumerate(values) if index not in IDLE_FIELDS)
