"""Reading what torch.profiler writes: a chrome trace, with the shapes of the operators' inputs where it recorded them.

Operators form a tree by time on each thread. It is walked from the top: what is attention as a whole counts once and
is not looked into; of anything else, the parts that do work count.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from faops.problem import AttentionProblem
from faops.profile import kernels, ranges
from faops.profile.events import Event, Kind, Timeline, TraceError
from faops.profile.operands import inputs_of, outputs_of

OPERATORS = ("cpu_op", "user_annotation")  # categories whose ranges form the tree
KERNELS = ("kernel",)
ASCEND = "Ascend Hardware"  # the process in which torch_npu lists what ran on the device


@dataclass
class Node:
    """A range of the trace with the ranges within it."""

    name: str
    entry: dict[str, Any]
    start: float
    end: float
    parent: Node | None = None
    children: list[Node] = field(default_factory=list)
    event: Event | None = None  # what it counts as


@dataclass(frozen=True)
class Within:
    """What surrounds a node."""

    kernel: str = ""
    problem: AttentionProblem | None = None
    projection: bool = False


def read(path: Path) -> Timeline:
    """The operators and kernels of a trace file (.json, or .json.gz). Raises TraceError."""
    entries = _entries(path)
    roots, by_id = _trees(entries)
    events = [event for root in roots for event in _walk(root, Within())]
    launched = [entry for entry in entries if entry.get("cat") in KERNELS]
    for entry in launched:
        alone = _credit(entry, by_id.get(_argument(entry, "External id")))
        if alone is not None:
            events.append(alone)
    return Timeline("trace", events, device="cuda" if launched else "cpu")


def _entries(path: Path) -> list[dict[str, Any]]:
    """The complete events of a trace."""
    document = _document(path)
    found = document.get("traceEvents") if isinstance(document, dict) else document
    if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
        raise TraceError(f"{path}: not a trace: a list of traceEvents is expected")
    if any(entry.get("name") == "process_name" and _argument(entry, "name") == ASCEND for entry in found):
        raise TraceError(f"{path}: a trace of torch_npu; read the kernel_details.csv beside it (--kernel-details)")
    entries = [entry for entry in found if entry.get("ph") == "X" and _timed(entry)]
    if not any(entry.get("cat") in (*OPERATORS, *KERNELS) for entry in entries):
        raise TraceError(f"{path}: holds no operators and no kernels; was it made by torch.profiler?")
    return entries


def _timed(entry: dict[str, Any]) -> bool:
    """Whether an entry says when and how long, in numbers (which some write as text); makes them numbers."""
    try:
        entry["ts"], entry["dur"] = float(entry["ts"]), float(entry.get("dur", 0))
    except (KeyError, TypeError, ValueError):
        return False
    return True


def _document(path: Path) -> Any:
    try:
        content = path.read_bytes()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
        return json.loads(content)
    except (OSError, EOFError) as error:
        raise TraceError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    except ValueError as error:  # not JSON, or cut off, or not text
        raise TraceError(f"{path}: not a complete JSON file: {error}") from None


def _argument(entry: dict[str, Any], name: str) -> Any:
    arguments = entry.get("args")
    return arguments.get(name) if isinstance(arguments, dict) else None


def _trees(entries: list[dict[str, Any]]) -> tuple[list[Node], dict[Any, Node]]:
    """The outermost ranges of all threads, and every range by its External id."""
    nodes = [_node(entry) for entry in entries if entry.get("cat") in OPERATORS]
    nodes.sort(key=lambda node: (node.start, -node.end))
    roots: list[Node] = []
    stacks: dict[tuple[str, ...], list[Node]] = {}
    for node in nodes:
        stack = stacks.setdefault(_lane(node.entry), [])
        while stack and stack[-1].end <= node.start:
            stack.pop()
        if stack:
            node.parent = stack[-1]
            stack[-1].children.append(node)
        else:
            roots.append(node)
        stack.append(node)
    return roots, {number: node for node in nodes if (number := _argument(node.entry, "External id")) is not None}


def _node(entry: dict[str, Any]) -> Node:
    return Node(str(entry.get("name", "")), entry, entry["ts"], entry["ts"] + entry["dur"])


def _lane(entry: dict[str, Any]) -> tuple[str, ...]:
    return str(entry.get("pid")), str(entry.get("tid"))


def _walk(node: Node, within: Within) -> Iterator[Event]:
    """The events of a node: the node itself, or what it calls."""
    mark = ranges.parse(node.name)
    if mark is not None:
        yield from _of_mark(node, *mark)
        return
    if node.name.endswith(kernels.COMPILING):
        node.event = _event(node, kernels.Family("", Kind.OTHER), within)  # takes its kernels, and counts for nothing
        return
    family = kernels.operator(node.name)
    if family is not None and family.kind is Kind.FUSED:
        yield _event(node, family, within)
        return
    if node.name in kernels.PROJECTIONS:
        within = Within(within.kernel, within.problem, projection=True)
    found = [event for child in node.children for event in _walk(child, within)]
    if family is not None:
        found = [event for event in found if event.kind is Kind.COPY] if family.kind is Kind.MASK else []
        found.append(_event(node, family, within))
    elif not found and node.name.startswith("aten::") and node.name not in kernels.VIEWS:
        found.append(_event(node, kernels.Family("", Kind.OTHER), within))
    yield from found


def _of_mark(node: Node, kernel: str, problem: AttentionProblem) -> Iterator[Event]:
    """The events of a launch of faops: one, but for kernels that leave the work to operators of others."""
    own = Kind.TILED if kernel.startswith(kernels.TILED) else Kind.FUSED if kernel.startswith(kernels.OWN) else None
    if own is None:
        within = Within(kernel, problem)
        yield from (event for child in node.children for event in _walk(child, within))
        return
    node.event = Event(
        kernel, own, _lane(node.entry), node.start, node.end - node.start, label="faops", inside=kernel,
        problem=problem, backward=problem.op == "backward",
    )  # fmt: skip
    yield node.event


def _event(node: Node, family: kernels.Family, within: Within) -> Event:
    inputs = inputs_of(node.entry.get("args"))
    node.event = Event(
        node.name, family.kind, _lane(node.entry), node.start, node.end - node.start, family.label, inputs,
        outputs_of(node.name, family.kind, inputs, node.entry.get("args")), inside=within.kernel,
        problem=within.problem, projection=within.projection, by_hand=family.by_hand,
        backward=kernels.is_backward(node.name),
    )  # fmt: skip
    return node.event


def _credit(entry: dict[str, Any], node: Node | None) -> Event | None:
    """Add a kernel to the event that launched it; gives an event of its own where there is none and it matters."""
    name, duration = str(entry.get("name", "")), entry["dur"]
    while node is not None and node.event is None:
        node = node.parent
    if node is not None and node.event is not None:
        node.event.device_time += duration
        node.event.device_kernels[name] = node.event.device_kernels.get(name, 0) + 1
        return None
    family = kernels.gpu_kernel(name)
    if family is None:
        return None
    lane = ("stream", str(_argument(entry, "device")), str(_argument(entry, "stream")))
    return Event(
        name, family.kind, lane, entry["ts"], duration, family.label, device_time=duration,
        backward=kernels.is_backward(name),
    )  # fmt: skip
