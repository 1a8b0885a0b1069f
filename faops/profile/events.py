"""What a recording says, alike for every profiler: operators and kernels in the order in which they ran."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Literal

from faops.errors import FaopsError
from faops.problem import AttentionProblem

Shape = tuple[int, ...]
Source = Literal["trace", "kernel_details"]


class TraceError(FaopsError):
    """A recording cannot be made, or not be read."""


class Kind(Enum):
    """What an operator or kernel is to attention."""

    FUSED = "fused"  # all of attention in one operator
    TILED = "tiled"  # attention of several operators, block by block: the scores are never whole
    PRODUCT = "product"  # of two matrices, batched or not
    SOFTMAX = "softmax"  # the exponentials of a softmax written by hand included
    SOFTMAX_GRADIENT = "softmax gradient"
    COPY = "copy"  # of one tensor to another place or layout
    MASK = "mask"  # what masks are made with
    OTHER = "other"


@dataclass(frozen=True)
class Operand:
    """A tensor that an operator read or wrote. ``strides`` are None where nobody recorded them."""

    shape: Shape
    dtype: str = ""
    itemsize: int = 0  # bytes; 0 where the dtype is unknown
    strides: Shape | None = None

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """Bytes of storage behind it: what is broadcast counts once."""
        strides = self.strides or (1,) * len(self.shape)
        return self.itemsize * math.prod(size for size, stride in zip(self.shape, strides) if stride)


@dataclass(eq=False)
class Event:
    """One operator or kernel that ran. Times in microseconds.

    ``lane`` is the thread or the stream: events of one lane follow each other. ``inside`` is the kernel of faops that
    called it, and ``problem`` what that kernel was asked, where the recording is marked (:mod:`faops.profile.ranges`).
    """

    name: str
    kind: Kind
    lane: tuple[str, ...] = ()
    start: float = 0.0
    duration: float = 0.0
    label: str = ""  # who made it, in words
    inputs: tuple[Operand, ...] = ()
    outputs: tuple[Operand, ...] = ()
    inside: str = ""
    problem: AttentionProblem | None = None
    projection: bool = False  # a product with weights
    by_hand: bool = False  # a softmax made of exponentials
    backward: bool = False
    device_time: float = 0.0  # of the kernels that it launched
    device_kernels: dict[str, int] = field(default_factory=dict)  # name -> how often


@dataclass
class Timeline:
    """All that was found in a recording, lane by lane in the order of time."""

    source: Source
    events: list[Event]
    device: str = "cpu"  # "cpu", "cuda" or "npu": where the time was measured

    def lanes(self) -> Iterator[list[Event]]:
        """The events of each lane, in the order of their start."""
        found: dict[tuple[str, ...], list[Event]] = {}
        for event in self.events:
            found.setdefault(event.lane, []).append(event)
        for lane in found.values():
            yield sorted(lane, key=lambda event: event.start)

    def time_of(self, event: Event) -> float:
        """Seconds that an event took on the device."""
        return 1e-6 * (event.device_time if self.device == "cuda" and event.device_time else event.duration)
