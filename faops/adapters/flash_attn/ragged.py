"""Packed tokens, several sequences one behind the other, in the forms that a kernel for equal lengths can take.

Nothing here waits for the device: all indices are computed on it.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from faops.adapters.flash_attn.conventions import FlashAttnArgumentError, may_read
from faops.validate import check_index


def check_offsets(name: str, offsets: Tensor, tokens: Tensor, longest: int | None = None) -> None:
    """Offsets int32 (B + 1,), B >= 1, that start at 0, do not decrease, end within ``tokens``, and are at most
    ``longest`` apart.
    """
    check_index(name, offsets, tokens, (None,), "(batch + 1,)")
    if offsets.shape[0] < 2:
        raise FlashAttnArgumentError(name, f"{offsets.shape[0]} offsets", "at least 2, those of one sequence")
    if not may_read(offsets):
        return
    values = offsets.tolist()
    if values[0] != 0:
        raise FlashAttnArgumentError(name, f"a first offset of {values[0]}", "offsets that start at 0")
    for before, after in itertools.pairwise(values):
        if after < before:
            raise FlashAttnArgumentError(name, f"{after} after {before}", "offsets that do not decrease")
        if longest is not None and after - before > longest:
            raise FlashAttnArgumentError(name, f"a sequence of {after - before}", f"at most {longest}, as stated")
    if values[-1] > tokens.shape[0]:
        expected = f"at most {tokens.shape[0]}, the tokens there are"
        raise FlashAttnArgumentError(name, f"a last offset of {values[-1]}", expected)


@dataclass(frozen=True)
class Places:
    """Where each packed token belongs. Tokens behind the last sequence belong nowhere."""

    sequence: Tensor  # int64 (total,); the last one for a token that belongs nowhere
    row: Tensor  # int64 (total,), 0 for the first token of a sequence
    valid: Tensor  # bool (total,)
    lengths: Tensor  # int64 (B,)

    @classmethod
    def read(cls, offsets: Tensor, total: int) -> Places:
        """The places of ``total`` tokens by their sequences' offsets, int32 (B + 1,) with B of 1 or more."""
        starts, token = offsets.long(), torch.arange(total, device=offsets.device)
        sequence = torch.searchsorted(starts[1:], token, right=True).clamp(max=offsets.shape[0] - 2)
        return cls(sequence, token - starts[sequence], token < starts[-1], starts.diff())

    @classmethod
    def dense(cls, batch: int, rows: int, device: torch.device) -> Places:
        """The places of (batch, rows) tokens, flattened."""
        sequence = torch.arange(batch, device=device).repeat_interleave(rows)
        row = torch.arange(rows, device=device).repeat(batch)
        return cls(sequence, row, torch.ones_like(row, dtype=torch.bool), torch.full((batch,), rows, device=device))


class RightAligned:
    """Packed rows as (B, longest, ...), each sequence at the right end, where bottom-right alignment wants it.

    The rows in front of a sequence are 0; what is computed for them is dropped by :meth:`gather`.
    """

    def __init__(self, places: Places, longest: int) -> None:
        self.batch, self.longest = places.lengths.shape[0], longest
        row = longest - places.lengths[places.sequence] + places.row
        self._nowhere = self.batch * longest
        self._slot = torch.where(places.valid, places.sequence * longest + row, self._nowhere)

    def spread(self, packed: Tensor) -> Tensor:
        """(total, ...) as (B, longest, ...)."""
        # One slot more than there are rows takes the tokens that belong nowhere.
        slots = packed.new_zeros(self._nowhere + 1, *packed.shape[1:]).index_copy(0, self._slot, packed)
        return slots[:-1].view(self.batch, self.longest, *packed.shape[1:])

    def gather(self, spread: Tensor, nowhere: float) -> Tensor:
        """(B, longest, ...) as (total, ...); the value ``nowhere`` for tokens that belong nowhere."""
        slots = torch.cat([spread.flatten(0, 1), spread.new_full((1, *spread.shape[2:]), nowhere)])
        return slots[self._slot]


def used_first(offsets: Tensor, used: Tensor, total: int) -> tuple[Tensor, Tensor]:
    """An order of the packed tokens in which each sequence keeps its first ``used``, and all others stand behind the
    last sequence: int64 (total,); and the sequences' offsets in that order, int32 (B + 1,).
    """
    places = Places.read(offsets, total)
    kept = places.valid & (places.row < used.long()[places.sequence])
    starts = torch.nn.functional.pad(used.cumsum(0), (1, 0))
    return torch.argsort(~kept, stable=True), starts.to(torch.int32)


def check_used(name: str, used: Tensor, offsets: Tensor) -> None:
    """``used``, int32 (B,), tokens of each sequence lie within it."""
    batch = offsets.shape[0] - 1
    check_index(name, used, offsets, (batch,), f"(batch,) = ({batch},)")
    if not may_read(used):
        return
    for have, length in zip(used.tolist(), offsets.diff().tolist()):
        if not 0 <= have <= length:
            raise FlashAttnArgumentError(name, have, f"between 0 and {length}, the tokens of its sequence")
