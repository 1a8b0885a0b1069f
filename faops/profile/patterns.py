"""Attention that was not fused: a product, a softmax of its result, and a product of that.

A softmax counts only between two such products. One of a router or a classifier does not: its scores come from a
product with weights, and no product takes them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from faops.profile.events import Event, Kind, Operand, Timeline
from faops.profile.operands import factors

# Operators that may lie between a product and the softmax: scaling, masks, bias, dropout, changes of dtype.
REACH = 40
# The same where no shapes tell which product belongs to which softmax.
REACH_WITHOUT_SHAPES = 12
# Operators after the second product among which exponentials are summed up: some divide what came of it.
SUM_REACH = 6


@dataclass(frozen=True, eq=False)
class Pattern:
    """MatMul–Softmax–MatMul. ``certain`` is False where the order of kernels is all that is known."""

    first: Event
    softmax: Event
    second: Event
    between: tuple[Event, ...]  # all from the first product to the second, in order
    certain: bool

    @property
    def backward(self) -> bool:
        return self.softmax.kind is Kind.SOFTMAX_GRADIENT

    @property
    def scores(self) -> Operand | None:
        """The whole matrix of scores, which was written to memory."""
        return self.softmax.inputs[0] if self.softmax.inputs else next(iter(self.first.outputs), None)

    @property
    def operands(self) -> tuple[Operand, ...]:
        """What attention read and wrote besides scores: q and k, v and out; those of them that were recorded."""
        left, right = factors(self.second.name, self.second.inputs)
        scores = self.scores
        if left and scores and (left.numel, left.shape[-1]) == (scores.numel, scores.shape[-1]):
            left, right = right, left
        found = (*factors(self.first.name, self.first.inputs), left, *self.second.outputs)
        return tuple(operand for operand in found if operand)

    def __str__(self) -> str:
        names = " – ".join(event.name for event in (self.first, self.softmax, self.second))
        scores = self.scores
        return f"{names}, scores {'x'.join(map(str, scores.shape))}" if scores else names


def find(timeline: Timeline) -> list[Pattern]:
    """All such sequences, in the order in which they ran."""
    found = [pattern for lane in timeline.lanes() for pattern in _in_lane(lane)]
    return sorted(found, key=lambda pattern: pattern.first.start)


def _in_lane(lane: list[Event]) -> Iterator[Pattern]:
    for place, softmax in enumerate(lane):
        if softmax.kind not in (Kind.SOFTMAX, Kind.SOFTMAX_GRADIENT):
            continue
        reach = REACH if softmax.inputs else REACH_WITHOUT_SHAPES
        before, after = (
            range(place - 1, max(-1, place - 1 - reach), -1),
            range(place + 1, min(len(lane), place + reach)),
        )
        start = _nearest(lane, before, partial(_makes, softmax=softmax))
        if start is None:
            continue
        end = _nearest(lane, after, partial(_takes, first=lane[start], softmax=softmax))
        if end is not None and (not softmax.by_hand or _is_summed(softmax, lane[place : end + SUM_REACH])):
            first, second = lane[start], lane[end]
            certain = bool(softmax.inputs and first.outputs and second.inputs)
            yield Pattern(first, softmax, second, tuple(lane[start : end + 1]), certain)


def _is_summed(exponentials: Event, events: list[Event]) -> bool:
    """Whether exponentials are summed up, as those of a softmax are and those of an activation are not."""
    shapes = {operand.shape for operand in exponentials.inputs}
    return any(event.name == "aten::sum" and shapes & {operand.shape for operand in event.inputs} for event in events)


def _nearest(lane: list[Event], places: range, suits: Callable[[Event], bool]) -> int | None:
    """The place of the first product that suits, before any attention of another kind."""
    for place in places:
        event = lane[place]
        if event.kind in (Kind.FUSED, Kind.TILED):
            return None
        if event.kind is Kind.PRODUCT and suits(event):
            return None if event.projection else place  # with weights it is that of a router or a classifier
    return None


def _makes(product: Event, softmax: Event) -> bool:
    """Whether a softmax may be that of a product's result."""
    if not (product.outputs and softmax.inputs):
        return _is_batched(product)
    made, scores = product.outputs[0], softmax.inputs[0]
    return made.numel == scores.numel and scores.shape[-1] in made.shape[-2:] and scores.shape[-1] > 1


def _takes(product: Event, first: Event, softmax: Event) -> bool:
    """Whether a product may take the probabilities that became of an earlier one's result."""
    known = softmax.inputs or first.outputs
    if not (product.inputs and known):
        return _is_batched(product)
    made, scores = (first.outputs or known)[0], known[0]
    if len(made.shape) == 2:  # in two dims a coincidence is likely, so the matrix must be the very same
        return any(operand.shape == made.shape for operand in product.inputs)
    return any(
        operand.numel == scores.numel and scores.shape[-1] in operand.shape[-2:] and math.prod(operand.shape[-2:]) > 1
        for operand in product.inputs
    )


def _is_batched(product: Event) -> bool:
    """Whether a product without shapes is one of batches, which products with weights are not."""
    return "bmm" in product.name or "Batch" in product.name or "gemm" in product.name.lower()
