"""Block-diagonal biases over keys with unused room: a padded cache, and gappy keys that begin anywhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from faops.adapters.xformers.blocks import SequenceBias, check_counts
from faops.adapters.xformers.dense import CAUSAL, Pattern, check_window
from faops.adapters.xformers.seqlens import _GappySeqInfo, _PaddedSeqLenInfo, _SeqLenInfo
from faops.errors import ArgumentError

if TYPE_CHECKING:
    from faops.adapters.xformers.paged import PagedBlockDiagonalGappyKeysMask, PagedBlockDiagonalPaddedKeysMask

Padded = TypeVar("Padded", bound="BlockDiagonalPaddedKeysMask")
Gappy = TypeVar("Gappy", bound="BlockDiagonalGappyKeysMask")
Device = torch.device | str | None


@dataclass
class BlockDiagonalPaddedKeysMask(SequenceBias):
    """Every token of a sequence sees every used key of it. Each sequence has room for ``padding`` keys, used or not."""

    q_seqinfo: _SeqLenInfo
    k_seqinfo: _PaddedSeqLenInfo

    @classmethod
    def from_seqlens(
        cls: type[Padded],
        q_seqlen: Sequence[int],
        kv_padding: int,
        kv_seqlen: Sequence[int],
        causal_diagonal: Any = None,
        *,
        device: Device = None,
    ) -> Padded:
        """``kv_padding`` is the room of each sequence; ``causal_diagonal`` means nothing, older code passes it."""
        return cls(*_padded(q_seqlen, kv_padding, kv_seqlen, device))

    def make_paged(
        self, block_tables: Tensor, page_size: int, paged_type: type[PagedBlockDiagonalPaddedKeysMask]
    ) -> PagedBlockDiagonalPaddedKeysMask:
        """The same lengths over pages; ``paged_type`` is the paged class that goes with this one."""
        room = replace(self.k_seqinfo, padding=block_tables.shape[1] * page_size)
        return paged_type(self.q_seqinfo, room, block_tables, page_size, **self._extra())

    def _extra(self) -> dict[str, Any]:
        """What the paged class takes beside the four fields."""
        return {}

    def make_local_attention(self, window_left: int, window_right: int) -> BlockDiagonalLocalAttentionPaddedKeysMask:
        return BlockDiagonalLocalAttentionPaddedKeysMask(self.q_seqinfo, self.k_seqinfo, window_left, window_right)


@dataclass
class BlockDiagonalCausalWithOffsetPaddedKeysMask(BlockDiagonalPaddedKeysMask):
    """Each sequence causal from the bottom right of its used keys."""

    causal_diagonal: Any = None  # means nothing; older code passes it

    @property
    def pattern(self) -> Pattern:
        return CAUSAL


@dataclass
class BlockDiagonalLocalAttentionPaddedKeysMask(BlockDiagonalPaddedKeysMask):
    """A window to both sides in each sequence, from the bottom right of its used keys."""

    window_left: int
    window_right: int

    def __post_init__(self) -> None:
        check_window("window_left", self.window_left, 0)
        check_window("window_right", self.window_right, 0)

    @property
    def pattern(self) -> Pattern:
        return Pattern(self.window_left, self.window_right)

    @classmethod
    def from_seqlens_local(
        cls, q_seqlen: Sequence[int], kv_padding: int, kv_seqlen: Sequence[int], window_left: int, window_right: int
    ) -> BlockDiagonalLocalAttentionPaddedKeysMask:
        return cls(*_padded(q_seqlen, kv_padding, kv_seqlen, None), window_left, window_right)


@dataclass
class BlockDiagonalCausalLocalAttentionPaddedKeysMask(BlockDiagonalPaddedKeysMask):
    """Each sequence causal from the bottom right of its used keys, with the last ``_window_size`` of them only."""

    _window_size: int

    def __post_init__(self) -> None:
        check_window("window_size", self._window_size, 1)

    @property
    def pattern(self) -> Pattern:
        return Pattern(self._window_size - 1, 0)

    def _extra(self) -> dict[str, Any]:
        return {"_window_size": self._window_size}

    @classmethod
    def from_seqlens_local(
        cls, q_seqlen: Sequence[int], kv_padding: int, kv_seqlen: Sequence[int], window_size: int
    ) -> BlockDiagonalCausalLocalAttentionPaddedKeysMask:
        return cls(*_padded(q_seqlen, kv_padding, kv_seqlen, None), window_size)


@dataclass
class BlockDiagonalGappyKeysMask(SequenceBias):
    """Every token of a sequence sees every key of it; the keys of a sequence begin anywhere."""

    q_seqinfo: _SeqLenInfo
    k_seqinfo: _GappySeqInfo

    @classmethod
    def from_seqlens(
        cls: type[Gappy],
        q_seqlen: Sequence[int],
        kv_seqstarts: Sequence[int],
        kv_seqlen: Sequence[int],
        *,
        device: Device = None,
    ) -> Gappy:
        """``kv_seqstarts`` has one start for each sequence, and the number of all key tokens behind them."""
        return cls(*gappy(q_seqlen, kv_seqstarts, kv_seqlen, False, device))

    def make_paged(
        self,
        block_tables: Tensor,
        page_size: int,
        notional_padding: int,
        paged_type: type[PagedBlockDiagonalGappyKeysMask],
    ) -> PagedBlockDiagonalGappyKeysMask:
        """The same keys over pages, where each sequence had room for ``notional_padding`` keys before."""
        if notional_padding % page_size:
            raise ArgumentError("notional_padding", notional_padding, f"a multiple of the page size, {page_size}")
        room, info = block_tables.shape[1] * page_size, self.k_seqinfo
        starts = [start - index * notional_padding for index, start in enumerate(info.seqstart_py[:-1])]
        for index, start in enumerate(starts):
            if not 0 <= start < room:
                raise ArgumentError("kv_seqstarts", f"{start} in sequence {index}", f"within its pages, below {room}")
        offsets = notional_padding * torch.arange(len(starts) + 1, dtype=torch.int32, device=info.seqstart.device)
        seqstart = info.seqstart - offsets
        k_seqinfo = replace(
            info,
            seqstart=seqstart,
            seqstart_py=[*starts, -1],
            seqlen=info.seqlen + seqstart[:-1],
            seqlen_py=[start + length for start, length in zip(starts, info.seqlen_py)],
        )
        return paged_type(self.q_seqinfo, k_seqinfo, block_tables, page_size)


@dataclass
class BlockDiagonalCausalWithOffsetGappyKeysMask(BlockDiagonalGappyKeysMask):
    """Each sequence causal from the bottom right of its keys."""

    @property
    def pattern(self) -> Pattern:
        return CAUSAL


@dataclass
class BlockDiagonalLocalAttentionFromBottomRightGappyKeysMask(BlockDiagonalGappyKeysMask):
    """A window to both sides in each sequence, from the bottom right of its keys."""

    window_left: int
    window_right: int

    def __post_init__(self) -> None:
        check_window("window_left", self.window_left, 0)
        check_window("window_right", self.window_right, 0)

    @property
    def pattern(self) -> Pattern:
        return Pattern(self.window_left, self.window_right)

    @classmethod
    def from_seqlens_local_gappy(
        cls,
        q_seqlen: Sequence[int],
        kv_seqstarts: Sequence[int],
        kv_seqlen: Sequence[int],
        window_left: int,
        window_right: int,
        device: Device = None,
    ) -> BlockDiagonalLocalAttentionFromBottomRightGappyKeysMask:
        return cls(*gappy(q_seqlen, kv_seqstarts, kv_seqlen, False, device), window_left, window_right)


def _padded(
    q_seqlen: Sequence[int], padding: int, kv_seqlen: Sequence[int], device: Device
) -> tuple[_SeqLenInfo, _PaddedSeqLenInfo]:
    check_counts(q_seqlen, kv_seqlen)
    return (
        _SeqLenInfo.from_seqlens(q_seqlen, device=device),
        _PaddedSeqLenInfo.from_seqlens_padded(kv_seqlen, padding, device=device),
    )


def gappy(
    q_seqlen: Sequence[int], kv_seqstarts: Sequence[int], kv_seqlen: Sequence[int], paged: bool, device: Device
) -> tuple[_SeqLenInfo, _GappySeqInfo]:
    """The two infos of a gappy bias."""
    check_counts(q_seqlen, kv_seqlen)
    q_seqinfo = _SeqLenInfo.from_seqlens(q_seqlen, device=device)
    device = q_seqinfo.seqstart.device
    return q_seqinfo, _GappySeqInfo.from_seqlens_gappy(kv_seqstarts, kv_seqlen, paged, device=device)
