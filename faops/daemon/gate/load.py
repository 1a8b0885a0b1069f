"""Whether a CPU is idle where the system has no /proc, as on macOS: by its load average."""

from __future__ import annotations

import os
from collections.abc import Collection
from typing import TYPE_CHECKING

from faops.daemon.gate.gate import Reading

if TYPE_CHECKING:
    from faops.daemon.config import Config


class Load:
    """The programs that wanted to compute in the last minute, on average.

    Coarser than what Linux tells: work is noticed after some seconds. Whose it is nobody says, so while a child of ours
    lives what was last known stands; after it has worked, it takes a minute until the load counts as idle again.
    """

    def __init__(self) -> None:
        self._last = Reading("begins to watch the load")

    def read(self, own: Collection[int], config: Config) -> Reading:
        """See :class:`~faops.daemon.gate.gate.Sensor`."""
        if set(own) <= {os.getpid()}:
            self._last = _judged(config.busy_cores)
        return self._last

    def close(self) -> None:
        """Nothing is held."""


def _judged(allowed: float) -> Reading:
    try:
        load = os.getloadavg()[0]
    except OSError as error:
        return Reading(f"the load cannot be read: {error}")
    busy = f"the load of the last minute was {load:.1f} of {os.cpu_count()} cores" if load > allowed else ""
    return Reading(busy, {"busy_cores": load})
