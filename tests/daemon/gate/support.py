"""What the tests of the idle gate share: clocks that stand still, and sensors that say what they are told."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass, field

from faops.daemon.config import Config
from faops.daemon.gate.gate import IdleGate, Reading
from faops.daemon.gate.nvidia import Nvidia

from .fake_nvml import Pynvml

WORKER, CHILD, OTHER, SERVER = 501, 502, 901, 902  # processes: ours and others
OUTER, OUTER_NEXT = 70001, 70002  # what a driver outside the container calls ours


class Clock:
    """Shows ``seconds``, until somebody moves it."""

    def __init__(self, seconds: float = 1000.0) -> None:
        self.seconds = seconds

    def __call__(self) -> float:
        return self.seconds

    def pass_by(self, seconds: float) -> None:
        self.seconds += seconds


@dataclass
class Told:
    """A sensor that says what it is told."""

    busy: str = ""
    closed: bool = False
    asked: list[tuple[set[int], Config]] = field(default_factory=list)

    def read(self, own: Collection[int], config: Config) -> Reading:
        self.asked.append((set(own), config))
        return Reading(self.busy, {"busy_cores": 1.5 if self.busy else 0.0})

    def close(self) -> None:
        self.closed = True


class Bench:
    """A gate whose sensor and clocks a test moves."""

    def __init__(self, config: Config | None = None) -> None:
        self.sensor = Told()
        self.clock, self.slept, self.wall = Clock(), Clock(0.0), Clock(1_750_000_000.0)
        self.gate = IdleGate(self.sensor, config or Config(idle_seconds=10.0), self.clock, self.slept, self.wall)

    def look(self, after: float = 1.0, busy: str = "") -> tuple[bool, str]:
        self.clock.pass_by(after)
        self.wall.pass_by(after)
        self.sensor.busy = busy
        state = self.gate.look({1, 2})
        return state.open, state.reason


class Gpu:
    """A watched GPU."""

    def __init__(self, pynvml: Pynvml, alike: bool = True) -> None:
        self.pynvml, self.clock = pynvml, Clock()
        self.own = {os.getpid()}
        self.config = Config()
        self.sensor = Nvidia("GPU-1234", self.clock, lambda: alike)

    def look(self, after: float = 1.0) -> Reading:
        self.clock.pass_by(after)
        return self.sensor.read(self.own, self.config)

    def busy(self, after: float = 1.0) -> str:
        return self.look(after).busy

    def tune(self) -> None:
        """A child of ours begins."""
        self.own = {os.getpid(), WORKER, CHILD}
