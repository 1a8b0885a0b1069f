"""The devices of this machine, and which of them a name in the tuning cache means."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

import torch

from faops.autotune.cache import environment
from faops.device import DeviceProfile, detect, present
from faops.errors import DaemonError

Json = dict[str, Any]

ACCELERATORS = ("cuda", "npu")
_THREADS = re.compile(r"_(\d{1,4})t_")  # in the identity of a CPU
MOST_THREADS = 4096


@dataclass(frozen=True)
class Place:
    """Where a problem is tuned: a torch device by its name, and its profile. ``threads`` is 0 but on a CPU."""

    device: str
    profile: DeviceProfile

    @property
    def threads(self) -> int:
        return self.profile.threads


def prepare(threads: int) -> None:
    """Compute with so many threads on a CPU; 0 leaves it to torch."""
    if threads:
        torch.set_num_threads(threads)


def places() -> list[Place]:
    """Every device that can be tuned on, the CPU first."""
    names = [f"{kind}:{index}" for kind in present() if kind in ACCELERATORS for index in range(_count(kind))]
    return [Place(name, detect(name)) for name in ("cpu", *names)]


def _count(kind: str) -> int:
    return int(torch.get_device_module(kind).device_count())


def devices() -> list[Json]:
    """What each device is, JSON-able: "device" (a torch device), "name", "identity" and "environment" (in the tuning
    cache), "vendor", "arch", "threads" (0 but on a CPU), "units", "uuid" (NVML's, "" for others)."""
    return [
        {
            "device": place.device,
            "name": place.profile.name,
            "identity": place.profile.identity,
            "environment": environment.directory_name(),
            "vendor": place.profile.vendor,
            "arch": place.profile.arch,
            "threads": place.threads,
            "units": place.profile.units,
            "uuid": _uuid(place),
        }
        for place in places()
    ]


def _uuid(place: Place) -> str:
    if place.profile.vendor != "nvidia":
        return ""
    uuid = getattr(torch.cuda.get_device_properties(place.device), "uuid", None)  # which old torch does not tell
    return "" if uuid is None else f"GPU-{uuid}"


def place_of(identity: str, threads: int = 0, known: list[Place] | None = None) -> Place:
    """The first device of this machine that is ``identity`` in the tuning cache. Raises DaemonError where none is.

    A CPU is meant whatever the number of ``threads`` a program computes with (0: as the identity says), since tuning
    can compute with any. ``known`` are the :func:`places`, if they were asked for.
    """
    found = places() if known is None else known
    for place in found:
        if place.profile.identity == identity:
            return place
    said = _THREADS.search(identity)
    for count in (threads, int(said.group(1)) if said else 0):
        place = replace(found[0], profile=replace(found[0].profile, threads=count))
        if 0 < count <= MOST_THREADS and place.profile.identity == identity:
            return place
    here = ", ".join(dict.fromkeys(place.profile.identity for place in found))
    raise DaemonError(f"{identity} is no device of this machine, which has {here}")


def check_environment(name: str) -> None:
    """Raise DaemonError unless the software is that of the environment called ``name``."""
    if name != environment.directory_name():
        raise DaemonError(f"it is of other software ({name}), this is {environment.directory_name()}")
