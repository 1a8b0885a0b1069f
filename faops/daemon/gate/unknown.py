"""A device of which nobody tells how busy it is."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from faops.daemon.gate.gate import Reading

if TYPE_CHECKING:
    from faops.daemon.config import Config

REGARDLESS = "daemon_idle_gate: 0 in faops.yaml tunes regardless"


class Unknown:
    """Counts as busy, for the reason ``why``: only somebody who knows the machine can say that it does not matter."""

    def __init__(self, why: str) -> None:
        self.why = why

    def read(self, own: Collection[int], config: Config) -> Reading:
        """See :class:`~faops.daemon.gate.gate.Sensor`."""
        return Reading(f"{self.why}; {REGARDLESS}")

    def close(self) -> None:
        """Nothing is held."""
