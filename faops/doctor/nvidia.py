"""What nvidia-smi says of the NVIDIA cards of this machine, asked once a run of doctor.

Its XML form is read (``nvidia-smi -q -x``): a field that a driver does not know is absent there, while asking for one
by name fails.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from xml.etree.ElementTree import Element

from faops.doctor import probes

LIBRARY = "libcuda.so.1"
# Reasons for low clocks that make timings worthless. A power cap or an idle card is normal.
SLOWDOWNS = {
    "hw_slowdown": "hardware slowdown",
    "hw_thermal_slowdown": "too hot (hardware)",
    "sw_thermal_slowdown": "too hot (software)",
    "hw_power_brake_slowdown": "power brake",
}


@dataclass(frozen=True)
class Card:
    """One NVIDIA card. Memory in MiB, 0 where it is not told; ``slices`` counts its MIG devices."""

    index: int
    name: str
    total_mib: int
    free_mib: int
    persistence: str
    compute_mode: str
    mig: str
    slices: int
    slowdowns: tuple[str, ...]
    memory_errors: int

    def __str__(self) -> str:
        return f"{self.index} {self.name}, {self.total_mib} MiB"


@dataclass(frozen=True)
class Report:
    """``cards`` in the order of nvidia-smi; or ``reason``, why there is no answer: "" where all went well.

    ``driver`` is its version and ``cuda`` the newest CUDA that it takes, such as "13.0"; "" where they are not told.
    """

    cards: tuple[Card, ...] = ()
    driver: str = ""
    cuda: str = ""
    reason: str = ""
    present: bool = True  # whether there is an nvidia-smi to ask


def driver_present() -> bool:
    """Whether an NVIDIA driver, or a part of one, is installed."""
    return probes.program("nvidia-smi") is not None or probes.library(LIBRARY)


def ask() -> Report:
    """Ask nvidia-smi. Waits for it no longer than TIMEOUT_SECONDS of :mod:`probes`."""
    smi = probes.program("nvidia-smi")
    if smi is None:
        return Report(reason="nvidia-smi is not installed", present=False)
    runs, said = probes.output_of([smi, "-q", "-x"])
    if not runs:
        return Report(reason=said or "it says nothing")
    try:
        log = ElementTree.fromstring(said)
    except ElementTree.ParseError as error:
        return Report(reason=f"its answer cannot be read: {error}")
    cards = tuple(_card(index, gpu) for index, gpu in enumerate(log.iter("gpu")))
    cuda = re.match(r"\d+\.\d+", _text(log, "cuda_version"))
    return Report(cards, _text(log, "driver_version"), cuda.group() if cuda else "")


def _card(index: int, gpu: Element) -> Card:
    return Card(
        index=index,
        name=_text(gpu, "product_name"),
        total_mib=_number(gpu, "fb_memory_usage/total"),
        free_mib=_number(gpu, "fb_memory_usage/free"),
        persistence=_text(gpu, "persistence_mode"),
        compute_mode=_text(gpu, "compute_mode"),
        mig=_text(gpu, "mig_mode/current_mig"),
        slices=len(gpu.findall("mig_devices/mig_device")),
        slowdowns=_slowdowns(gpu),
        memory_errors=sum(_number(item) for item in gpu.findall("ecc_errors/volatile/*") if "uncorrect" in item.tag),
    )


def _slowdowns(gpu: Element) -> tuple[str, ...]:
    """Drivers before 535 say "throttle" where newer ones say "event"."""
    found = []
    for block, prefix in (("clocks_event_reasons", "event"), ("clocks_throttle_reasons", "throttle")):
        for name, words in SLOWDOWNS.items():
            if _text(gpu, f"{block}/clocks_{prefix}_reason_{name}") == "Active":
                found.append(words)
    return tuple(found)


def _text(element: Element, path: str) -> str:
    return element.findtext(path, "").strip()


def _number(element: Element, path: str = "") -> int:
    """The whole number that a field begins with, such as 81559 of "81559 MiB"; 0 for "N/A" and the like."""
    text = element.findtext(path, "") if path else element.text or ""
    found = re.match(r"\s*(\d+)", text)
    return int(found.group(1)) if found else 0
