"""What npu-smi says of the Ascend NPUs of this machine, asked once a run of doctor."""

from __future__ import annotations

import re
from dataclasses import dataclass

from faops.doctor import probes

PROGRAM = "npu-smi"
# The two rows that `npu-smi info` prints for a chip; those of the processes below have neither.
# | 0     910B3               | OK            | 93.6        40                0    / 0             |
NAME_ROW = re.compile(r"^\|\s*(\d+)\s+(\S*[A-Za-z]\S*)\s*\|\s*([A-Za-z]+)\s*\|", re.MULTILINE)
# | 0                         | 0000:01:00.0  | 0           0    / 0          3161 / 65536         |
BUS_ROW = re.compile(r"^\|[\s\d]+\|\s*(?:[0-9A-Fa-f]{4}:[0-9A-Fa-f]{2}:[0-9A-Fa-f]{2}\.\d|NA)\s*\|", re.MULTILINE)


@dataclass(frozen=True)
class Npu:
    """One row of npu-smi: the number of the card, what it is called and how it is."""

    index: int
    name: str
    health: str

    def __str__(self) -> str:
        return f"{self.index} {self.name}: {self.health}"


@dataclass(frozen=True)
class Report:
    """``npus`` in the order of npu-smi, and the number of ``chips`` on them, which are the devices of PyTorch.

    Or ``reason``, why there is no answer; ``present`` tells whether there is an npu-smi to ask.
    """

    npus: tuple[Npu, ...] = ()
    chips: int = 0
    reason: str = ""
    present: bool = True


def installed() -> bool:
    """Whether npu-smi, and so some Ascend driver, is there."""
    return probes.program(PROGRAM) is not None


def ask() -> Report:
    """Ask npu-smi. Waits for it no longer than TIMEOUT_SECONDS of :mod:`probes`."""
    program = probes.program(PROGRAM)
    if program is None:
        return Report(reason="npu-smi is not installed", present=False)
    runs, said = probes.output_of([program, "info"])
    if not runs:
        return Report(reason=said or "it says nothing")
    npus = tuple(Npu(int(index), name, health) for index, name, health in NAME_ROW.findall(said))
    return Report(npus, len(BUS_ROW.findall(said)))
