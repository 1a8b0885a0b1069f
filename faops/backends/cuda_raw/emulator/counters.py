"""What one launch did, as the emulator counts it in mode "counters"."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass

SECTOR_BYTES = 32
MATRIX_FLOPS = {"m16n8k16_f16": 4096, "m16n8k16_bf16": 4096, "m16n8k8_f16": 2048}


@dataclass(frozen=True)
class SharedSite:
    """One call that accesses shared memory. A request is what a warp's lanes ask for together."""

    function: str
    file: str
    line: int
    access_bytes: int  # of a lane
    requests: int
    wavefronts: int  # passes over the 32 banks
    ideal: int  # wavefronts without conflicts

    @property
    def conflicts(self) -> int:
        """Wavefronts that bank conflicts add."""
        return self.wavefronts - self.ideal


@dataclass(frozen=True)
class GlobalSite:
    """One call that accesses device memory."""

    function: str
    file: str
    line: int
    kind: str  # "load", "store" or "copy" (copy_async)
    access_bytes: int  # of a lane
    requests: int
    lane_accesses: int
    sectors: int  # of 32 bytes, different ones within a request
    bytes: int  # that the lanes asked for


@dataclass(frozen=True)
class Counters:
    """Counts of a whole grid. Matrix instructions and collectives count once a warp, barriers once a block."""

    shared: tuple[SharedSite, ...]
    device: tuple[GlobalSite, ...]
    matrix: dict[str, int]
    collectives: dict[str, int]
    barriers: int

    @property
    def matrix_flops(self) -> int:
        """Floating-point operations of the matrix instructions."""
        return sum(MATRIX_FLOPS[kind] * count for kind, count in self.matrix.items())

    @property
    def conflicts(self) -> int:
        """Wavefronts that bank conflicts add, over all calls."""
        return sum(site.conflicts for site in self.shared)

    @property
    def bytes_loaded(self) -> int:
        """Bytes that lanes asked device memory for, by loads and asynchronous copies."""
        return sum(site.bytes for site in self._device("load", "copy"))

    @property
    def bytes_copied(self) -> int:
        """The part of ``bytes_loaded`` that asynchronous copies brought."""
        return sum(site.bytes for site in self._device("copy"))

    @property
    def bytes_stored(self) -> int:
        """Bytes that lanes wrote to device memory."""
        return sum(site.bytes for site in self._device("store"))

    @property
    def sector_bytes_loaded(self) -> int:
        """Bytes of the sectors that loads and asynchronous copies touched, no cache in between."""
        return SECTOR_BYTES * sum(site.sectors for site in self._device("load", "copy"))

    @property
    def sector_bytes_stored(self) -> int:
        """Bytes of the sectors that stores touched."""
        return SECTOR_BYTES * sum(site.sectors for site in self._device("store"))

    def access_sizes(self, *kinds: str) -> dict[int, int]:
        """Accesses of single lanes to device memory by their bytes; ``kinds`` as in GlobalSite, none means all."""
        sizes: dict[int, int] = {}
        for site in self._device(*kinds):
            sizes[site.access_bytes] = sizes.get(site.access_bytes, 0) + site.lane_accesses
        return sizes

    def _device(self, *kinds: str) -> Iterable[GlobalSite]:
        return (site for site in self.device if not kinds or site.kind in kinds)


def parse(text: str) -> Counters:
    """Counters from the runtime's JSON text."""
    loaded = json.loads(text)
    shared, device = [], []
    for site in loaded["sites"]:
        place = site["function"], site["file"], site["line"]
        if site["access"] == "shared":
            shared.append(SharedSite(*place, site["access_bytes"], site["requests"], site["wavefronts"], site["ideal"]))
        else:
            numbers = site["requests"], site["lane_accesses"], site["sectors"], site["bytes"]
            device.append(GlobalSite(*place, site["access"], site["access_bytes"], *numbers))
    shared.sort(key=_order)
    device.sort(key=_order)
    return Counters(tuple(shared), tuple(device), loaded["matrix"], loaded["collectives"], loaded["barriers"])


def _order(site: SharedSite | GlobalSite) -> tuple[str, int, str, int]:
    return site.file, site.line, site.function, site.access_bytes
