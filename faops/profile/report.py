"""From a recording to a verdict: was attention fused, and what did it cost besides?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from faops.profile import costs, patterns
from faops.profile.costs import Call, Masks, Traffic
from faops.profile.events import Event, Kind, Timeline
from faops.profile.patterns import Pattern

Verdict = Literal["fused", "tiled", "not fused", "no attention"]

UNFUSED = "MatMul – Softmax – MatMul"
TILED_WORDS = "blockwise: tiled, not one kernel"


@dataclass
class Row:
    """Calls of attention by one operator or kernel. ``seconds`` is their time on the device, all together."""

    name: str
    kind: str  # "fused", "tiled" or "not fused"
    label: str
    calls: int = 0
    seconds: float = 0.0
    kernels: dict[str, int] = field(default_factory=dict)  # of the device: name -> how often

    def add(self, seconds: float, kernels: dict[str, int]) -> None:
        self.calls += 1
        self.seconds += seconds
        for name, count in kernels.items():
            self.kernels[name] = self.kernels.get(name, 0) + count


@dataclass
class Copies:
    """Copies of one sort: how many, and what they took."""

    count: int = 0
    seconds: float = 0.0
    bytes: int = 0  # read and written; of those whose shapes are known


@dataclass
class Report:
    """What a recording shows about attention. ``as_dict`` is its JSON form."""

    source: str
    device: str
    rows: list[Row]
    patterns: list[Pattern]
    transposes: Copies
    repeats: Copies
    masks: list[Masks]
    traffic: Traffic
    shapes_known: bool

    @property
    def verdict(self) -> Verdict:
        """ "fused": nothing else ran; "tiled": attention by blocks ran too, but never with all scores at once."""
        kinds = {row.kind for row in self.rows}
        if "not fused" in kinds:
            return "not fused"
        if "tiled" in kinds:
            return "tiled"
        return "fused" if kinds else "no attention"

    @property
    def wasteful(self) -> bool:
        """Whether inputs were transposed or repeated by copying, or a mask was made for every call."""
        return bool(self.transposes.count or self.repeats.count or any(mask.every_call for mask in self.masks))

    def passed(self, strict: bool = False) -> bool:
        """Whether attention was fused; ``strict`` allows neither tiled attention nor waste around it."""
        if strict:
            return self.verdict == "fused" and not self.wasteful
        return self.verdict in ("fused", "tiled")

    def as_dict(self) -> dict[str, Any]:
        return {
            "verdict": self.verdict,
            "source": self.source,
            "device": self.device,
            "shapes_recorded": self.shapes_known,
            "attention": [vars(row) for row in self.rows],
            "not_fused": [
                {
                    "operators": [event.name for event in (found.first, found.softmax, found.second)],
                    "scores": list(found.scores.shape) if found.scores else None,
                    "backward": found.backward,
                    "certain": found.certain,
                }
                for found in self.patterns
            ],
            "transposes": vars(self.transposes),
            "repeated_heads": vars(self.repeats),
            "masks": [{**vars(mask), "every_call": mask.every_call} for mask in self.masks],
            "bytes": vars(self.traffic),
        }


def analyse(timeline: Timeline) -> Report:
    """What a recording shows about attention."""
    found = patterns.find(timeline)
    if any(event.kind is Kind.FUSED for event in timeline.events):
        found = [pattern for pattern in found if pattern.certain]  # the order of kernels alone proves nothing here
    calls = costs.calls(timeline, found)
    return Report(
        source=timeline.source,
        device=timeline.device,
        rows=_rows(timeline, calls),
        patterns=found,
        transposes=_copies(timeline, costs.transposes(timeline, calls)),
        repeats=_copies(timeline, costs.repeats(timeline, calls)),
        masks=costs.masks(timeline, calls),
        traffic=costs.traffic(calls),
        shapes_known=any(event.inputs or event.problem for event in timeline.events),
    )


def _rows(timeline: Timeline, calls: Sequence[Call]) -> list[Row]:
    rows: dict[tuple[str, str], Row] = {}
    for call in calls:
        name, kind, label = _described(call)
        row = rows.setdefault((name, kind), Row(name, kind, label))
        kernels: dict[str, int] = {}
        for event in call.events:
            for kernel, count in event.device_kernels.items():
                kernels[kernel] = kernels.get(kernel, 0) + count
        row.add(sum(map(timeline.time_of, call.events)), kernels)
    return sorted(rows.values(), key=lambda row: -row.seconds)


def _described(call: Call) -> tuple[str, str, str]:
    """Name, kind and words of a call."""
    event = call.events[0]
    if call.pattern is not None:
        names = (call.pattern.first.name, call.pattern.softmax.name, call.pattern.second.name)
        return UNFUSED, "not fused", ", ".join(dict.fromkeys(names))
    if event.kind is Kind.TILED:
        return event.name, "tiled", TILED_WORDS
    label = f"{event.label}, backward" if event.backward and event.label else event.label
    return event.name, "fused", f"{label}, called by {event.inside}" if event.inside not in ("", event.name) else label


def _copies(timeline: Timeline, events: Sequence[Event]) -> Copies:
    return Copies(
        len(events),
        sum(map(timeline.time_of, events)),
        sum(operand.bytes for event in events for operand in (*event.inputs[-1:], *event.outputs)),
    )
