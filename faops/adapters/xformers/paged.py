"""Block-diagonal biases over keys in pages: (1, pages · page_size, heads, dim) tensors and a table of pages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, TypeVar

import torch
from torch import Tensor

from faops.adapters.xformers.blocks import SequenceBias, check_counts
from faops.adapters.xformers.dense import CAUSAL, Pattern, additive, check_window
from faops.adapters.xformers.padded import (
    BlockDiagonalCausalLocalAttentionPaddedKeysMask,
    BlockDiagonalCausalWithOffsetGappyKeysMask,
    BlockDiagonalCausalWithOffsetPaddedKeysMask,
    BlockDiagonalGappyKeysMask,
    BlockDiagonalPaddedKeysMask,
    gappy,
)
from faops.adapters.xformers.seqlens import _GappySeqInfo, _PaddedSeqLenInfo, _SeqLenInfo
from faops.errors import ArgumentError

Padded = TypeVar("Padded", bound="PagedBlockDiagonalPaddedKeysMask")
Gappy = TypeVar("Gappy", bound="PagedBlockDiagonalGappyKeysMask")
Device = torch.device | str | None


class PagedBias(SequenceBias):
    """Sequence b has the pages block_tables[b], in order; page i is the tokens from i · page_size on."""

    block_tables: Tensor
    page_size: int

    @property
    def room(self) -> int:
        """Keys that a sequence can have."""
        return self.block_tables.shape[1] * self.page_size

    def used(self) -> list[tuple[int, int]]:
        """First key and the one behind the last of each sequence, counted from its first page."""
        raise NotImplementedError

    def tokens(self, index: int, first: int, end: int, device: torch.device | str) -> Tensor:
        """int64, where keys ``first`` to ``end`` of a sequence lie among all tokens."""
        logical = torch.arange(first, end, device=device)
        pages = self.block_tables[index].to(device=device, dtype=torch.int64)
        return pages[logical // self.page_size] * self.page_size + logical % self.page_size

    def materialize(
        self, shape: tuple[int, ...], dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> Tensor:
        """As in xFormers ``shape`` ends in (rows, batch · room), but the result in (rows, tokens of all pages used)."""
        rows, batch = self.q_seqinfo.seqstart_py[-1], self.block_tables.shape[0]
        if tuple(shape[-2:]) != (rows, batch * self.room):
            raise ArgumentError("shape", tuple(shape), f"(..., {rows}, {batch * self.room}): rows, batch · room")
        tokens = (int(self.block_tables.max()) + 1) * self.page_size
        visible = torch.zeros(rows, tokens, dtype=torch.bool, device=device)
        for index, ((first, last), (start, end)) in enumerate(zip(self.q_seqinfo.intervals(), self.used())):
            places = self.tokens(index, start, end, device)
            visible[first:last, places] = self.pattern.visible(last - first, end - start, device)
        return additive(visible, dtype).expand(*shape[:-1], tokens)


@dataclass
class PagedBlockDiagonalPaddedKeysMask(PagedBias):
    """Every token of a sequence sees every used key of it."""

    q_seqinfo: _SeqLenInfo
    k_seqinfo: _PaddedSeqLenInfo
    block_tables: Tensor
    page_size: int
    _UNPAGED_TYPE: ClassVar[type[BlockDiagonalPaddedKeysMask]] = BlockDiagonalPaddedKeysMask

    def used(self) -> list[tuple[int, int]]:
        return [(0, length) for length in self.k_seqinfo.seqlen_py]

    @classmethod
    def from_seqlens(
        cls: type[Padded],
        q_seqlen: Sequence[int],
        kv_seqlen: Sequence[int],
        block_tables: Tensor,
        page_size: int,
        *,
        device: Device = None,
    ) -> Padded:
        """``block_tables`` is int32 (batch, pages a sequence)."""
        return cls(*_paged(q_seqlen, kv_seqlen, block_tables, page_size, device), block_tables, page_size)


@dataclass
class PagedBlockDiagonalCausalWithOffsetPaddedKeysMask(PagedBlockDiagonalPaddedKeysMask):
    """Each sequence causal from the bottom right of its used keys."""

    _UNPAGED_TYPE = BlockDiagonalCausalWithOffsetPaddedKeysMask

    @property
    def pattern(self) -> Pattern:
        return CAUSAL


@dataclass
class PagedBlockDiagonalCausalLocalPaddedKeysMask(PagedBlockDiagonalPaddedKeysMask):
    """Each sequence causal from the bottom right of its used keys, with the last ``_window_size`` of them only."""

    _window_size: int
    _UNPAGED_TYPE = BlockDiagonalCausalLocalAttentionPaddedKeysMask

    def __post_init__(self) -> None:
        check_window("window_size", self._window_size, 1)

    @property
    def pattern(self) -> Pattern:
        return Pattern(self._window_size - 1, 0)

    @classmethod
    def from_seqlens_local(
        cls,
        q_seqlen: Sequence[int],
        kv_seqlen: Sequence[int],
        block_tables: Tensor,
        page_size: int,
        window_size: int,
        *,
        device: Device = None,
    ) -> PagedBlockDiagonalCausalLocalPaddedKeysMask:
        infos = _paged(q_seqlen, kv_seqlen, block_tables, page_size, device)
        return cls(*infos, block_tables, page_size, window_size)


@dataclass
class PagedBlockDiagonalGappyKeysMask(PagedBias):
    """Every token of a sequence sees every key of it; the keys begin anywhere in the pages of the sequence."""

    q_seqinfo: _SeqLenInfo
    k_seqinfo: _GappySeqInfo
    block_tables: Tensor
    page_size: int
    _UNPAGED_TYPE: ClassVar[type[BlockDiagonalGappyKeysMask]] = BlockDiagonalGappyKeysMask

    def used(self) -> list[tuple[int, int]]:
        return list(zip(self.k_seqinfo.seqstart_py, self.k_seqinfo.seqlen_py))

    @classmethod
    def from_seqlens(
        cls: type[Gappy],
        q_seqlen: Sequence[int],
        kv_seqstarts: Sequence[int],
        kv_seqlen: Sequence[int],
        block_tables: Tensor,
        page_size: int,
        *,
        device: Device = None,
    ) -> Gappy:
        """``kv_seqstarts`` has one start for each sequence, counted from the first of its own pages."""
        device = block_tables.device if device is None else device
        return cls(*gappy(q_seqlen, kv_seqstarts, kv_seqlen, True, device), block_tables, page_size)


@dataclass
class PagedBlockDiagonalCausalWithOffsetGappyKeysMask(PagedBlockDiagonalGappyKeysMask):
    """Each sequence causal from the bottom right of its keys."""

    _UNPAGED_TYPE = BlockDiagonalCausalWithOffsetGappyKeysMask

    @property
    def pattern(self) -> Pattern:
        return CAUSAL


def _paged(
    q_seqlen: Sequence[int], kv_seqlen: Sequence[int], block_tables: Tensor, page_size: int, device: Device
) -> tuple[_SeqLenInfo, _PaddedSeqLenInfo]:
    check_counts(q_seqlen, kv_seqlen)
    room = block_tables.shape[1] * page_size
    return (
        _SeqLenInfo.from_seqlens(q_seqlen, device=device),
        _PaddedSeqLenInfo.from_seqlens_padded(kv_seqlen, room, device=device),
    )
