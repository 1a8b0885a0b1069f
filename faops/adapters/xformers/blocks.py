"""Block-diagonal biases: sequences packed into one row of tokens, each of which sees its own keys alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from faops.adapters.xformers.dense import CAUSAL, EVERYTHING, AttentionBias, Pattern, additive, check_window
from faops.adapters.xformers.seqlens import _SeqLenInfo
from faops.errors import ArgumentError

Bias = TypeVar("Bias", bound="BlockDiagonalMask")


class SequenceBias(AttentionBias):
    """What all biases of sequences share: the same pattern in each sequence, counted from its own first token."""

    q_seqinfo: _SeqLenInfo
    k_seqinfo: _SeqLenInfo

    @property
    def pattern(self) -> Pattern:
        return EVERYTHING

    def materialize(
        self, shape: tuple[int, ...], dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> Tensor:
        sizes = (self.q_seqinfo.seqstart_py[-1], self.k_seqinfo.seqstart_py[-1])
        if tuple(shape[-2:]) != sizes:
            raise ArgumentError("shape", tuple(shape), f"(..., {sizes[0]}, {sizes[1]}), the tokens of all sequences")
        visible = torch.zeros(sizes, dtype=torch.bool, device=device)
        for (first, last), (start, end) in zip(self.q_seqinfo.intervals(), self.k_seqinfo.intervals()):
            visible[first:last, start:end] = self.pattern.visible(last - first, end - start, device)
        return additive(visible, dtype).expand(shape)


@dataclass
class BlockDiagonalMask(SequenceBias):
    """Every token of a sequence sees every key of it."""

    q_seqinfo: _SeqLenInfo
    k_seqinfo: _SeqLenInfo
    _batch_sizes: Sequence[int] | None = None

    @classmethod
    def from_seqlens(
        cls: type[Bias],
        q_seqlen: Sequence[int],
        kv_seqlen: Sequence[int] | None = None,
        *,
        device: torch.device | str | None = None,
    ) -> Bias:
        """Of lengths on the host; those of the keys are those of the queries by default."""
        q_seqinfo = _SeqLenInfo.from_seqlens(q_seqlen, device=device)
        if kv_seqlen is None or list(kv_seqlen) == list(q_seqlen):
            return cls(q_seqinfo=q_seqinfo, k_seqinfo=q_seqinfo)
        check_counts(q_seqlen, kv_seqlen)
        return cls(q_seqinfo=q_seqinfo, k_seqinfo=_SeqLenInfo.from_seqlens(kv_seqlen, device=device))

    @classmethod
    def from_tensor_list(cls: type[Bias], tensors: Sequence[Tensor]) -> tuple[Bias, Tensor]:
        """Of tensors (n, length, ...), whose n are sequences each; also returns them packed, (1, total, ...)."""
        bias = cls.from_seqlens(_lengths(tensors), device=tensors[0].device)
        bias._batch_sizes = [tensor.shape[0] for tensor in tensors]
        return bias, _pack(tensors)

    @classmethod
    def from_tensor_lists_qkv(
        cls: type[Bias],
        tensors_q: Sequence[Tensor],
        tensors_k: Sequence[Tensor],
        tensors_v: Sequence[Tensor] | None = None,
    ) -> tuple[Bias, Tensor, Tensor, Tensor | None]:
        """As :meth:`from_tensor_list`, for queries, keys and values of their own lengths."""
        check_counts(tensors_q, tensors_k)
        for name, others in (("tensors_k", tensors_k), ("tensors_v", tensors_v or tensors_k)):
            batches = ([tensor.shape[0] for tensor in tensors] for tensors in (tensors_q, others))
            if len(others) != len(tensors_q) or len({tuple(sizes) for sizes in batches}) != 1:
                raise ArgumentError(name, f"{len(others)} tensors", "as many as tensors_q, with the same first axes")
        if tensors_v is not None and _lengths(tensors_v) != _lengths(tensors_k):
            raise ArgumentError(
                "tensors_v", f"lengths {_lengths(tensors_v)}", f"those of tensors_k, {_lengths(tensors_k)}"
            )
        bias = cls.from_seqlens(_lengths(tensors_q), _lengths(tensors_k), device=tensors_q[0].device)
        bias._batch_sizes = [tensor.shape[0] for tensor in tensors_q]
        return bias, _pack(tensors_q), _pack(tensors_k), None if tensors_v is None else _pack(tensors_v)

    def split_queries(self, tensor: Tensor) -> list[Tensor]:
        """The sequences of a packed tensor (1, total queries, ...), shaped as they were given."""
        return self.q_seqinfo.split(tensor, self._batch_sizes)

    def split_kv(self, tensor: Tensor) -> list[Tensor]:
        """The same for keys or values."""
        return self.k_seqinfo.split(tensor, self._batch_sizes)

    def split(self, tensor: Tensor) -> list[Tensor]:
        """The reverse of :meth:`from_tensor_list`."""
        if self.q_seqinfo is not self.k_seqinfo:
            raise ArgumentError(
                "tensor", f"shape {tuple(tensor.shape)}", "split_queries() or split_kv(): lengths differ"
            )
        return self.q_seqinfo.split(tensor, self._batch_sizes)

    def make_causal(self) -> BlockDiagonalCausalMask:
        return BlockDiagonalCausalMask(self.q_seqinfo, self.k_seqinfo, self._batch_sizes)

    def make_causal_from_bottomright(self) -> BlockDiagonalCausalFromBottomRightMask:
        return BlockDiagonalCausalFromBottomRightMask(self.q_seqinfo, self.k_seqinfo, self._batch_sizes)

    def make_local_attention(self, window_size: int) -> BlockDiagonalCausalLocalAttentionMask:
        return BlockDiagonalCausalLocalAttentionMask(self.q_seqinfo, self.k_seqinfo, self._batch_sizes, window_size)

    def make_local_attention_from_bottomright(
        self, window_size: int
    ) -> BlockDiagonalCausalLocalAttentionFromBottomRightMask:
        return BlockDiagonalCausalLocalAttentionFromBottomRightMask(
            self.q_seqinfo, self.k_seqinfo, self._batch_sizes, window_size
        )


@dataclass
class BlockDiagonalCausalMask(BlockDiagonalMask):
    """Each sequence causal from its top left."""

    @property
    def pattern(self) -> Pattern:
        return Pattern(right=0, top_left=True)


@dataclass
class BlockDiagonalCausalFromBottomRightMask(BlockDiagonalMask):
    """Each sequence causal from its bottom right; no sequence may have more queries than keys."""

    def __post_init__(self) -> None:
        for index, (rows, keys) in enumerate(zip(self.q_seqinfo.lengths(), self.k_seqinfo.lengths())):
            if keys < rows:
                raise ArgumentError("kv_seqlen", f"{keys} keys of sequence {index}", f"at least its queries, {rows}")

    @property
    def pattern(self) -> Pattern:
        return CAUSAL


@dataclass
class BlockDiagonalCausalLocalAttentionMask(BlockDiagonalCausalMask):
    """Each sequence causal from its top left, with the last ``_window_size`` keys only."""

    _window_size: int = 0  # has no default in truth; dataclasses want one behind _batch_sizes

    def __post_init__(self) -> None:
        check_window("window_size", self._window_size, 1)
        for rows, keys in zip(self.q_seqinfo.lengths(), self.k_seqinfo.lengths()):
            if rows - self._window_size >= keys:
                expected = f"more than {rows - keys}: the last of {rows} queries would see none of {keys} keys"
                raise ArgumentError("window_size", self._window_size, expected)

    @property
    def pattern(self) -> Pattern:
        return Pattern(self._window_size - 1, 0, top_left=True)


@dataclass
class BlockDiagonalCausalLocalAttentionFromBottomRightMask(BlockDiagonalCausalFromBottomRightMask):
    """Each sequence causal from its bottom right, with the last ``_window_size`` keys only."""

    _window_size: int = 0  # as above

    def __post_init__(self) -> None:
        super().__post_init__()
        check_window("window_size", self._window_size, 1)

    @property
    def pattern(self) -> Pattern:
        return Pattern(self._window_size - 1, 0)


def check_counts(q_seqlen: Sequence[object], kv_seqlen: Sequence[object]) -> None:
    if len(q_seqlen) != len(kv_seqlen):
        raise ArgumentError("kv_seqlen", f"{len(kv_seqlen)} sequences", f"as many as q_seqlen, {len(q_seqlen)}")


def _lengths(tensors: Sequence[Tensor]) -> list[int]:
    return [tensor.shape[1] for tensor in tensors for _ in range(tensor.shape[0])]


def _pack(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.reshape(1, -1, *tensor.shape[2:]) for tensor in tensors], dim=1)
