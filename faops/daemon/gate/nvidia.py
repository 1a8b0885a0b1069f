"""Whether an NVIDIA GPU is idle."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

from faops.daemon.gate.gate import Reading
from faops.daemon.gate.nvml import Driver, UntoldError, Use
from faops.daemon.gate.owners import Owners, numbered_alike
from faops.daemon.gate.unknown import REGARDLESS

if TYPE_CHECKING:
    from faops.daemon.config import Config

RETRY_SECONDS = 10.0  # after the driver could not be asked: somebody may install or restart it


class Nvidia:
    """The use of one GPU by others.

    While nothing of ours is on it, all use is others'. While we tune, it is that of processes which are not ours. One
    that holds memory and computes nothing, such as a server that waits for requests, does not count.
    """

    def __init__(
        self, uuid: str, clock: Callable[[], float] = time.monotonic, alike: Callable[[], bool] = numbered_alike
    ) -> None:
        self.uuid, self._clock = uuid, clock
        self._owners = Owners(alike)
        self._driver: Driver | None = None
        self._untold = ""
        self._asked_at = -RETRY_SECONDS

    def read(self, own: Collection[int], config: Config) -> Reading:
        """See :class:`~faops.daemon.gate.gate.Sensor`."""
        now = self._clock()
        try:
            use = self._reached(now).use()
        except UntoldError as error:
            self.close()
            self._untold = str(error)
            return Reading(f"nobody tells how busy the GPU is: {error}; or {REGARDLESS}")
        self._owners.note(own, use.memory or {}, now)
        return Reading(self._busy(use, config.busy_percent), self._figures(use))

    def close(self) -> None:
        """See :class:`~faops.daemon.gate.gate.Sensor`."""
        if self._driver is not None:
            self._driver.close()
            self._driver = None

    def _reached(self, now: float) -> Driver:
        if self._driver is None:
            if now - self._asked_at < RETRY_SECONDS:
                raise UntoldError(self._untold)
            self._asked_at = now
            self._driver = Driver(self.uuid)
        return self._driver

    def _busy(self, use: Use, allowed: float) -> str:
        """Who uses it, in words; "" for nobody."""
        others = self._others(use)
        if sum(others.values()) > allowed:
            return _named(others)
        if self._owners.unclear:
            return f"one of {_listed(self._owners.unclear)} is not ours, and in a container nobody tells which"
        if use.utilisation is None:
            return self._present(use) if use.shares is None else ""
        if self._owners.working:
            return self._beside_us(use, allowed) if use.shares is None else ""
        return self._used(use.utilisation, allowed)

    def _used(self, utilisation: float, allowed: float) -> str:
        return f"other programs use {utilisation:.0f} % of the GPU" if utilisation > allowed else ""

    def _others(self, use: Use) -> dict[int, float]:
        """Per cent of the GPU that each process uses which is certainly not ours."""
        shares = use.shares or {}
        unclear = self._owners.unclear
        return {pid: share for pid, share in shares.items() if not self._owners.is_ours(pid) and pid not in unclear}

    def _beside_us(self, use: Use, allowed: float) -> str:
        """Who may compute beside us where the driver does not tell what each process uses."""
        if self._owners.came:
            return f"{_listed(self._owners.came)} came to the GPU"
        only_others = bool(use.memory) and not self._owners.here
        return self._used(use.utilisation or 0.0, allowed) if only_others else ""

    def _present(self, use: Use) -> str:
        """Who is there at all, which is what remains where no use is told, as on a MIG instance."""
        others = {pid for pid in use.memory or () if not self._owners.is_ours(pid)}
        return f"{_listed(others)} on the GPU, of which no use is told (as of MIG instances)" if others else ""

    def _figures(self, use: Use) -> dict[str, float]:
        memory = {pid: held for pid, held in (use.memory or {}).items() if not self._owners.is_ours(pid)}
        figures = {"others": float(len(memory)), "others_memory_bytes": float(sum(memory.values()))}
        if use.utilisation is not None:
            figures["utilisation"] = use.utilisation
        if use.shares is not None:
            figures["others_utilisation"] = min(100.0, sum(self._others(use).values()))
        return figures


def _named(others: dict[int, float]) -> str:
    percent = min(100.0, sum(others.values()))
    if len(others) == 1:
        return f"pid {next(iter(others))} uses {percent:.0f} % of the GPU"
    most = max(others, key=lambda pid: others[pid])
    return f"{len(others)} other programs use {percent:.0f} % of the GPU, most of it pid {most}"


def _listed(pids: Collection[int]) -> str:
    return f"pid {', '.join(str(pid) for pid in sorted(pids))}"
