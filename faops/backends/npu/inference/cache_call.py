"""A KV-cache call by an operator: what both decode kernels do around it.

Rotate, append, find the keys, run the operator over them, and overwrite the rows that see none. Keys that are gathered
come in parts, whose results are merged by their lse. Sinks join the result by its lse too: the operator takes 16-bit
ones in one layout only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from faops.backends.npu import masks
from faops.backends.npu.inference import append, merge, pages, rotary, scores
from faops.backends.npu.inference.pages import Keys, PageRule
from faops.backends.npu.inference.scores import Range, Scores
from faops.backends.npu.inference.sequences import Sequence, sequences_of
from faops.device import detect
from faops.inputs import DecodeInputs
from faops.layout import conform, empty_lse, empty_out
from faops.problem import Band
from faops.registry import Config

KIB = 1024

Result = tuple[Tensor, Tensor | None]
# (q, keys, band, scores, scale, config, need_lse) → (out, lse), as fused.attend.
Attend = Callable[[Tensor, Keys, Band, Scores | None, float, Config, bool], Result]


@dataclass(frozen=True, slots=True)
class Operator:
    """What an operator can do: how it is run, the pages it reads in place, and whether it biases and gives lse.

    ``bands_one_row`` where it takes a band for one row too.
    """

    attend: Attend
    rule: PageRule
    shifts: bool = True  # takes pse_shift
    gives_lse: bool = True
    bands_one_row: bool = False


def run(inputs: DecodeInputs, config: Config, operator: Operator) -> Result:
    """(out, lse) of a call whose new keys are not in the cache yet.

    Raises ArgumentError for lengths, rows and positions outside of the tensors, before anything is written.
    """
    sequences = sequences_of(inputs)
    q = _updated(inputs, sequences)
    if q.numel() == 0 or all(one.visible == 0 for one in sequences):
        out = empty_out(inputs.q, inputs.v_cache.shape[3]).zero_()
        return out, empty_lse(inputs.q).fill_(-torch.inf) if inputs.need_lse else None
    out, lse = _Call(inputs, q, sequences, config, operator).attend()
    if inputs.sinks is not None:
        assert lse is not None
        out, lse = merge.join_sinks(out, lse, inputs.sinks)
    out = conform(out, inputs.q)
    return out, lse.contiguous() if inputs.need_lse and lse is not None else None


def _updated(inputs: DecodeInputs, sequences: list[Sequence]) -> Tensor:
    """Writes the new keys, rotated, and values into the cache; returns q, rotated."""
    device = detect(inputs.q.device)
    past = [one.past for one in sequences]
    q, k = rotary.rotated(inputs, past, rotary.takes(inputs, device))
    if k is not None:
        append.append(inputs, k, sequences, device)
    return q


class _Call:
    """Attention of rows ``q``, rotated, over what the cache holds by now; at least one of them sees a key."""

    def __init__(
        self, inputs: DecodeInputs, q: Tensor, sequences: list[Sequence], config: Config, operator: Operator
    ) -> None:
        self.inputs = inputs
        self.q = q
        self.sequences = sequences
        self.config = config
        self.operator = operator
        # One row sees a range of keys, whatever the band.
        self.one_row = q.shape[1] == 1 and not operator.bands_one_row
        self.band = Band() if self.one_row else inputs.band.simplify(q.shape[1], max(one.last for one in sequences))

    def attend(self) -> Result:
        keys = self._in_place()
        if keys is not None:
            return self._over(keys, alone=True)
        longest = max(one.visible for one in self.sequences)
        # The first keys of a window are of some rows only, and parts without an lse cannot be merged.
        whole = not self.operator.gives_lse or (not self.one_row and self.band.left >= 0)
        step = pages.keys_at_a_time(self.inputs, longest, KIB * self.config.integer("gather"), whole)
        parts = pages.gathered(self.inputs, self.sequences, step)
        if step >= longest:
            return self._over(next(parts), alone=True)
        return self._merged(parts)

    def _merged(self, parts: Iterator[Keys]) -> Result:
        outs, lses = [], []
        for keys in parts:
            out, lse = self._over(keys, alone=False)
            assert lse is not None
            outs.append(out)
            lses.append(lse)
        return merge.merge(outs, lses, merge.takes(self.q.shape[3], detect(self.q.device)))

    def _in_place(self) -> Keys | None:
        if self.config["keys"] != "in_place":
            return None
        keys = pages.in_place(self.inputs, self.sequences, self.operator.rule)
        return None if keys is not None and self._is_narrowed(keys) and not self.operator.shifts else keys

    def _is_narrowed(self, keys: Keys) -> bool:
        """Whether the one row of a sequence does not see all of its ``keys``."""
        return self.one_row and any(one.first > start for one, start in zip(self.sequences, keys.starts))

    def _over(self, keys: Keys, alone: bool) -> Result:
        """The results over ``keys``, ``alone`` or to be merged with others."""
        inputs = self.inputs
        found = None
        if inputs.mask is not None or inputs.bias is not None or self._is_narrowed(keys):
            found = self._scores(keys)
        need_lse = inputs.need_lse or inputs.sinks is not None or not alone
        # All rows see what lies before the last part.
        band = self.band if keys.behind == 0 else Band()
        out, lse = self.operator.attend(self.q, keys, band, found, inputs.scale, self.config, need_lse)
        scores.settle(out, lse, self._dead(keys) if found is None else found.dead)
        return out, lse

    def _scores(self, keys: Keys) -> Scores:
        ranges = [
            Range(one.first, start + count, one.last)
            for one, start, count in zip(self.sequences, keys.starts, keys.counts)
        ]
        inputs = self.inputs
        return scores.scores_of(self.q, ranges, keys.starts, keys.width, self.band, inputs.mask, inputs.bias)

    def _dead(self, keys: Keys) -> Tensor | None:
        """The rows that see none of ``keys``, bool (B, 1, M), by band and lengths; None if there are none."""
        rows = self.q.shape[1]
        if keys.behind == 0:
            dead = [masks.dead_rows(rows, one.last - one.pad, self.band) for one in self.sequences]
        else:
            dead = [0 if count else rows for count in keys.counts]
        if not any(dead):
            return None
        table = [[row < count for row in range(rows)] for count in dead]
        return torch.tensor(table).unsqueeze(1).to(self.q.device)
