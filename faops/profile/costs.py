"""What attention cost besides itself: transposed copies of its tensors, masks made anew, and bytes moved."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from faops.problem import AttentionProblem
from faops.profile.events import Event, Kind, Operand, Shape, Timeline
from faops.profile.patterns import Pattern

COMPRESSED_MASK = (2048, 2048)  # what an NPU takes in place of a causal or banded mask of any size

DOUT_FIRST = ("aten::", "flash_attn", "xformers")  # operators whose backward takes dout before q, k and v


@dataclass
class Call:
    """One call of attention: the operators that it was, and what is known of its tensors."""

    events: tuple[Event, ...]
    operands: tuple[Operand, ...] = ()
    problem: AttentionProblem | None = None
    pattern: Pattern | None = None

    @property
    def start(self) -> float:
        return self.events[0].start

    @property
    def lane(self) -> tuple[str, ...]:
        return self.events[0].lane

    @property
    def backward(self) -> bool:
        return self.pattern.backward if self.pattern else self.events[0].backward

    @property
    def first_query(self) -> int:
        """Where q stands among the operands: a backward of PyTorch and FlashAttention is given dout first."""
        name = self.events[0].name
        return 1 if self.events[0].backward and name.startswith(DOUT_FIRST) else 0

    def shapes(self) -> set[tuple[int, int]]:
        """(elements, last dim) of its q, k, v and out, in whatever layout."""
        if self.problem is not None and not self.operands:
            return _shapes_of(self.problem)
        return {(operand.numel, operand.shape[-1]) for operand in self.operands if len(operand.shape) >= 3}

    def score_shapes(self) -> set[Shape]:
        """What (M, N) may be: which dim holds the length depends on the layout."""
        if self.pattern is not None:
            scores = self.pattern.scores
            return {scores.shape[-2:]} if scores else set()
        if self.problem is not None:
            return {(self.problem.seqlen_q, self.problem.seqlen_k)}
        first = self.first_query
        if len(self.operands) < first + 2:
            return set()
        q, k = self.operands[first].shape, self.operands[first + 1].shape
        return {(rows, keys) for rows, keys in zip(q[:-1], k[:-1]) if rows > 1 and keys > 1}


def calls(timeline: Timeline, patterns: Sequence[Pattern]) -> list[Call]:
    """All calls of attention in a recording, in the order of their start."""
    found = [
        Call((event,), event.inputs, event.problem if not event.inputs else None)
        for event in timeline.events
        if event.kind in (Kind.FUSED, Kind.TILED)
    ]
    found += [Call(pattern.between, pattern.operands, pattern=pattern) for pattern in patterns]
    return sorted(found, key=lambda call: call.start)


def _shapes_of(problem: AttentionProblem) -> set[tuple[int, int]]:
    queries = problem.batch * problem.seqlen_q * problem.heads_q
    keys = problem.batch * problem.seqlen_k * problem.heads_kv
    return {
        (rows * dim, dim) for rows, dim in (
            (queries, problem.head_dim), (queries, problem.head_dim_v), (keys, problem.head_dim),
            (keys, problem.head_dim_v),
        )
    }  # fmt: skip


# --- copies -----------------------------------------------------------------------------------------------------------


def transposes(timeline: Timeline, found: Sequence[Call]) -> list[Event]:
    """Copies of tensors shaped like q, k, v or out into another layout. A transposed view is free and no copy."""
    return [event for event in _copies(timeline, found) if _is_transpose(event)]


def repeats(timeline: Timeline, found: Sequence[Call]) -> list[Event]:
    """Copies that repeat keys or values for all query heads that share them."""
    return [event for event in _copies(timeline, found) if _is_repeat(event)]


def _copies(timeline: Timeline, found: Sequence[Call]) -> Iterator[Event]:
    """Copies of tensors shaped like those of attention, and those that a fused operator of an NPU makes itself."""
    shapes = {shape for call in found for shape in call.shapes()}
    for event in timeline.events:
        if event.kind is Kind.COPY:
            sizes = {(item.numel, item.shape[-1]) for item in (*event.inputs, *event.outputs) if len(item.shape) >= 3}
            if sizes & shapes or (timeline.source == "kernel_details" and event.inside):
                yield event


def _is_transpose(copy: Event) -> bool:
    if not copy.name.startswith("aten::"):  # a kernel of an NPU, by its type
        return True
    target, origin = copy.inputs[0], copy.inputs[-1]
    if target.strides is None or origin.strides is None or len(target.shape) != len(origin.shape):
        return False
    return not _broadcast_dims(origin) and _order(target) != _order(origin)


def _is_repeat(copy: Event) -> bool:
    """Whether whole rows are repeated; the gradient of a sum repeats a single number."""
    if not copy.inputs:
        return False
    origin = copy.inputs[-1]
    dims = _broadcast_dims(origin)
    return bool(dims) and len(origin.shape) - 1 not in dims


def _broadcast_dims(operand: Operand) -> list[int]:
    strides = operand.strides or operand.shape
    return [axis for axis, (size, stride) in enumerate(zip(operand.shape, strides)) if size > 1 and not stride]


def _order(operand: Operand) -> tuple[int, ...]:
    """The dims from the outermost in memory to the innermost, those of one element left out."""
    strides = operand.strides or ()
    dims = [axis for axis, size in enumerate(operand.shape) if size > 1]
    return tuple(sorted(dims, key=lambda axis: -strides[axis])) if strides else tuple(dims)


# --- masks ------------------------------------------------------------------------------------------------------------


@dataclass
class Masks:
    """How often a mask of all rows and keys was made, beside how many forward calls there were with such scores.

    A mask that is made for every call could be made once, or be left to the kernel.
    """

    shape: Shape
    made: int = 0
    calls: int = 0
    seconds: float = 0.0
    operators: list[str] = field(default_factory=list)

    @property
    def every_call(self) -> bool:
        return self.calls > 1 and self.made >= self.calls


def masks(timeline: Timeline, found: Sequence[Call]) -> list[Masks]:
    """The masks that were made, by shape. Operators in a row, without attention between, make one mask."""
    wanted: dict[Shape, Masks] = {}
    forward = [call for call in found if not call.backward]
    for call in forward:
        for shape in call.score_shapes():
            wanted.setdefault(shape, Masks(shape)).calls += 1
    if timeline.device == "npu" and forward:
        wanted.setdefault(COMPRESSED_MASK, Masks(COMPRESSED_MASK, calls=len(forward)))
    scores = {id(event): call for call in found if call.pattern for event in call.events}
    starts = {id(call.pattern.softmax if call.pattern else call.events[0]) for call in found}
    for lane in timeline.lanes():
        fresh: set[Shape] = set()  # masks made since the last call of attention
        for event in lane:
            if id(event) in starts:
                fresh.clear()
            made = _mask_shape(event, scores.get(id(event)))
            if made in wanted:
                mask = wanted[made]
                mask.made += made not in fresh
                mask.seconds += timeline.time_of(event)
                mask.operators += [event.name] if event.name not in mask.operators else []
                fresh.add(made)
    return [mask for mask in wanted.values() if mask.made]


def _mask_shape(event: Event, call: Call | None) -> Shape:
    """(M, N) of what an operator makes, where it may be a mask and is not the scores themselves; else ()."""
    if event.kind is not Kind.MASK or not event.outputs:
        return ()
    made = event.outputs[0]
    scores = call.pattern.scores if call is not None and call.pattern is not None else None
    if len(made.shape) < 2 or (scores is not None and made.numel == scores.numel and len(made.shape) > 2):
        return ()
    return made.shape[-2:]


# --- bytes ------------------------------------------------------------------------------------------------------------


@dataclass
class Traffic:
    """Bytes that attention moved, by how they were found, and the least that a fused kernel would have moved."""

    counted: int = 0  # from recorded shapes: every operand of every operator, read or written once
    modelled: int = 0  # from the problem: every tensor of the call once
    least: int = 0
    unknown: int = 0  # calls of which neither shapes nor problem are known


def traffic(found: Sequence[Call]) -> Traffic:
    """The bytes of all calls. What a cache saves is not known and not counted."""
    total = Traffic()
    for call in found:
        if call.problem is not None:
            total.modelled += call.problem.bytes_moved()
            total.least += call.problem.bytes_moved()
        elif call.pattern is not None and call.operands:
            total.counted += sum(operand.bytes for event in call.events for operand in _moved(event))
            total.least += sum(operand.bytes for operand in call.operands)
        elif call.operands:
            moved = sum(operand.bytes for operand in (*call.operands, *_results(call)))
            total.counted += moved
            total.least += moved
        else:
            total.unknown += 1
    return total


def _moved(event: Event) -> Iterator[Operand]:
    if not event.projection:
        yield from event.inputs if event.kind is not Kind.COPY else event.inputs[-1:]
        yield from event.outputs


def _results(call: Call) -> tuple[Operand, ...]:
    """What a fused operator wrote: recorded, or else out of q's shape forward, and gradients of q, k and v backward."""
    event = call.events[0]
    if event.outputs:
        return event.outputs
    first = call.first_query
    return call.operands[first : first + (3 if event.backward else 1)]
