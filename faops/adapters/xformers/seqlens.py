"""How a row of tokens is divided into sequences, on the host and on the device: what block-diagonal biases are made of.

The names and fields are those of xFormers, underscores included, because code that updates lengths in place uses them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from faops.errors import ArgumentError

Moved = TypeVar("Moved")


def default_device(device: torch.device | str | None) -> torch.device:
    """The device given, else CUDA where there is one, else the CPU."""
    if device is not None:
        return torch.device(device)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def moved(value: Moved, device: torch.device | str) -> Moved:
    """A dataclass with all its tensors, and those of the dataclasses in it, on a device."""
    parts = {field.name: getattr(value, field.name) for field in fields(value)}  # type: ignore[arg-type]
    there = {
        name: part.to(device, non_blocking=True) if isinstance(part, Tensor) else part.to(device)
        for name, part in parts.items()
        if isinstance(part, Tensor | _SeqLenInfo)
    }
    return replace(value, **there)  # type: ignore[type-var]


@dataclass
class _SeqLenInfo:
    """Sequences one behind the other. Lengths 2, 3, 2 have seqstart 0, 2, 5, 7."""

    seqstart: Tensor  # int32 (batch + 1,)
    max_seqlen: int
    min_seqlen: int
    seqstart_py: list[int]  # the same as seqstart, on the host

    def to(self, device: torch.device | str) -> Any:
        return moved(self, device)

    def intervals(self) -> Iterator[tuple[int, int]]:
        """First token and the one behind the last, of each sequence."""
        return itertools.pairwise(self.seqstart_py)

    def lengths(self) -> list[int]:
        return [end - start for start, end in self.intervals()]

    @classmethod
    def from_seqlens(cls, seqlens: Iterable[int], *, device: torch.device | str | None = None) -> _SeqLenInfo:
        lengths = host_lengths(seqlens)
        starts = [0, *itertools.accumulate(lengths)]
        seqstart = torch.tensor(starts, dtype=torch.int32, device=default_device(device))
        return _SeqLenInfo(seqstart, max(lengths, default=-1), min(lengths, default=-1), starts)

    def from_seqlens_inplace(self, seqlens: Iterable[int]) -> None:
        """Other lengths of as many sequences, none longer than the longest before: tensors stay where they are."""
        starts = [0, *itertools.accumulate(self._checked(seqlens))]
        self.seqstart_py[:] = starts
        self.seqstart.copy_(torch.tensor(starts, dtype=torch.int32), non_blocking=True)

    def _checked(self, seqlens: Iterable[int]) -> list[int]:
        lengths, count = host_lengths(seqlens), len(self.seqstart_py) - 1
        if len(lengths) != count:
            raise ArgumentError("seqlens", f"{len(lengths)} lengths", f"{count}, as before")
        if max(lengths, default=-1) > self.max_seqlen:
            raise ArgumentError("seqlens", f"a length of {max(lengths)}", f"at most max_seqlen, {self.max_seqlen}")
        return lengths

    def split(self, x: Tensor, batch_sizes: Sequence[int] | None = None) -> list[Tensor]:
        """The sequences of x (1, total, ...), as (n, length, ...) for each n of ``batch_sizes``; all 1 by default."""
        if x.shape[0] != 1 or x.shape[1] != self.seqstart_py[-1]:
            raise ArgumentError("x", f"shape {tuple(x.shape)}", f"(1, {self.seqstart_py[-1]}, ...)")
        sizes = batch_sizes or [1] * (len(self.seqstart_py) - 1)
        bounds = [self.seqstart_py[count] for count in (0, *itertools.accumulate(sizes))]
        parts = [x[:, start:end] for start, end in itertools.pairwise(bounds)]
        return [part.reshape(size, -1, *part.shape[2:]) for size, part in zip(sizes, parts)]


@dataclass
class _PaddedSeqLenInfo(_SeqLenInfo):
    """Sequences with equal room for each. Lengths 2, 3, 2 with a padding of 4 have seqstart 0, 4, 8, 12."""

    seqlen: Tensor  # int32 (batch,)
    seqlen_py: list[int]
    padding: int

    def __post_init__(self) -> None:
        if len(self.seqstart_py) != len(self.seqlen_py) + 1:
            raise ArgumentError("seqstart_py", f"{len(self.seqstart_py)} starts", f"{len(self.seqlen_py) + 1}")

    def intervals(self) -> Iterator[tuple[int, int]]:
        return ((start, start + length) for start, length in zip(self.seqstart_py, self.seqlen_py))

    @classmethod
    def from_seqlens(cls, seqlens: Iterable[int], *, device: torch.device | str | None = None) -> _SeqLenInfo:
        raise RuntimeError("use _PaddedSeqLenInfo.from_seqlens_padded, or _SeqLenInfo.from_seqlens")

    @classmethod
    def from_seqlens_padded(
        cls, seqlens: Sequence[int], padding: int, *, device: torch.device | str | None = None
    ) -> _PaddedSeqLenInfo:
        lengths, device = _fitting(seqlens, padding), default_device(device)
        starts = [padding * index for index in range(len(lengths) + 1)]
        return _PaddedSeqLenInfo(
            seqstart=torch.tensor(starts, dtype=torch.int32, device=device),
            max_seqlen=max(lengths, default=-1),
            min_seqlen=min(lengths, default=-1),
            seqstart_py=starts,
            seqlen=torch.tensor(lengths, dtype=torch.int32, device=device),
            seqlen_py=lengths,
            padding=padding,
        )

    def from_seqlens_padded_inplace(self, seqlens: Sequence[int]) -> None:
        """Other lengths of as many sequences, none longer than the longest before: tensors stay where they are."""
        lengths = self._checked(_fitting(seqlens, self.padding))
        self.seqlen_py[:] = lengths
        self.seqlen.copy_(torch.tensor(lengths, dtype=torch.int32), non_blocking=True)

    def split(self, x: Tensor, batch_sizes: Sequence[int] | None = None) -> list[Tensor]:
        raise NotImplementedError("_PaddedSeqLenInfo.split")


@dataclass
class _GappySeqInfo(_SeqLenInfo):
    """Sequences anywhere, each with a start and a length; the last start is the number of tokens.

    Of a paged bias, starts and ``seqlen`` count from the first page of their own sequence, ``seqlen`` is where the
    keys end, start included, and the last start means nothing.
    """

    seqlen: Tensor  # int32 (batch,)
    seqlen_py: Sequence[int]

    def intervals(self) -> Iterator[tuple[int, int]]:
        return ((start, start + length) for start, length in zip(self.seqstart_py, self.seqlen_py))

    @classmethod
    def from_seqlens(cls, seqlens: Iterable[int], *, device: torch.device | str | None = None) -> _SeqLenInfo:
        raise NotImplementedError("use _GappySeqInfo.from_seqlens_gappy")

    @classmethod
    def from_seqlens_gappy(
        cls, seqstarts: Sequence[int], seqlens: Sequence[int], paged: bool, *, device: torch.device | str
    ) -> _GappySeqInfo:
        starts, lengths = list(seqstarts), host_lengths(seqlens)
        if not lengths:
            raise ArgumentError("seqlens", "no lengths", "at least one")
        if len(starts) != len(lengths) + (0 if paged else 1):
            expected = "one for each length" if paged else "one more than lengths: the last is the number of tokens"
            raise ArgumentError("seqstarts", f"{len(starts)} for {len(lengths)} lengths", expected)
        ends = [start + length for start, length in zip(starts, lengths)] if paged else lengths
        if paged:
            starts.append(-1)
        return _GappySeqInfo(
            seqstart=torch.tensor(starts, dtype=torch.int32, device=device),
            max_seqlen=max(lengths),
            min_seqlen=min(lengths),
            seqstart_py=starts,
            seqlen=torch.tensor(ends, dtype=torch.int32, device=device),
            seqlen_py=ends,
        )

    def split(self, x: Tensor, batch_sizes: Sequence[int] | None = None) -> list[Tensor]:
        raise NotImplementedError("_GappySeqInfo.split")


def host_lengths(seqlens: Iterable[int]) -> list[int]:
    if isinstance(seqlens, Tensor):
        raise ArgumentError("seqlens", "a tensor", "lengths on the host, such as a list; use .tolist()")
    lengths = list(seqlens)
    for length in lengths:
        if isinstance(length, bool) or not isinstance(length, int) or length < 0:
            raise ArgumentError("seqlens", repr(length), "ints of 0 or more")
    return lengths


def _fitting(seqlens: Sequence[int], padding: int) -> list[int]:
    lengths = host_lengths(seqlens)
    for length in lengths:
        if length > padding:
            raise ArgumentError("kv_seqlen", f"a length of {length}", f"at most the padding, {padding}")
    return lengths
