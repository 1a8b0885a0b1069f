"""The idle gate: whether a device may be tuned on now, without getting in the way of others or being disturbed by them.

One gate a device, asked about once a second and four times a second while something is tuned. It closes at the first
look that sees work by others, and opens when there has been none for ``daemon_idle_seconds``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from faops.daemon.gate.cpu import PROC, Cpu
from faops.daemon.gate.gate import Gate, GateState, IdleGate, Sensor
from faops.daemon.gate.load import Load
from faops.daemon.gate.npu import Npu
from faops.daemon.gate.nvidia import Nvidia
from faops.daemon.gate.unknown import Unknown

if TYPE_CHECKING:
    from faops.daemon.config import Config

__all__ = ["Gate", "GateState", "IdleGate", "gate_of"]


def gate_of(device: Mapping[str, Any], config: Config) -> Gate:
    """The gate of a device as the worker describes it: by its ``device``, ``vendor`` and ``uuid``."""
    return IdleGate(_sensor(device), config)


def _sensor(device: Mapping[str, Any]) -> Sensor:
    kind, _, index = str(device["device"]).partition(":")
    if kind == "cpu":
        return Cpu() if (PROC / "stat").exists() else Load()
    if kind == "npu":
        return Npu(int(index or 0))
    if device["vendor"] == "nvidia":
        return Nvidia(str(device["uuid"]))
    return Unknown(f"nobody tells how busy {device['device']} is (vendor {device['vendor']})")
