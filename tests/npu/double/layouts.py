"""The layouts of query, key, value and out, and how one sequence lies in each."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tests.npu.double.machine import fresh

LANES = 8  # equal copies of each softmax statistic


@dataclass(frozen=True)
class Geometry:
    """Sizes of a dense or packed call. ``lengths_q`` and ``lengths_k`` are of the packed sequences, else None."""

    layout: str
    batch: int
    heads: int
    heads_kv: int
    seqlen_q: int  # of TND: all of them together
    seqlen_k: int
    dim: int
    dim_v: int
    lengths_q: tuple[int, ...] | None = None
    lengths_k: tuple[int, ...] | None = None

    @property
    def packed(self) -> bool:
        return self.layout == "TND"

    def size_q(self, b: int) -> int:
        return self.seqlen_q if self.lengths_q is None else self.lengths_q[b]

    def size_k(self, b: int) -> int:
        return self.seqlen_k if self.lengths_k is None else self.lengths_k[b]

    def out_shape(self) -> tuple[int, ...]:
        heads, dim_v = self.heads, self.dim_v
        return {
            "BSH": (self.batch, self.seqlen_q, heads * dim_v),
            "SBH": (self.seqlen_q, self.batch, heads * dim_v),
            "BSND": (self.batch, self.seqlen_q, heads, dim_v),
            "BNSD": (self.batch, heads, self.seqlen_q, dim_v),
            "TND": (self.seqlen_q, heads, dim_v),
        }[self.layout]

    def statistics_shape(self) -> tuple[int, ...]:
        if self.packed:
            return (self.seqlen_q, self.heads, LANES)
        return (self.batch, self.heads, self.seqlen_q, LANES)


def sequence_of(tensor: Tensor, layout: str, heads: int, b: int, lengths: tuple[int, ...] | None) -> Tensor:
    """Entry b as a view of shape (heads, S, D)."""
    if layout == "TND":
        assert lengths is not None
        start = sum(lengths[:b])
        return tensor[start : start + lengths[b]].transpose(0, 1)
    if layout == "BNSD":
        return tensor[b]
    entry = tensor[:, b] if layout == "SBH" else tensor[b]
    if layout in ("BSH", "SBH"):
        entry = entry.unflatten(-1, (heads, -1))
    return entry.transpose(0, 1)


def pack_statistics(rows: list[Tensor], geometry: Geometry, as_input: bool, device: torch.device) -> Tensor:
    """Softmax statistics (N, S_b) of each sequence as the operator stores them, eight equal lanes each.

    Packed ones have the shape (T, N, 8), but unless they are asked for ``as_input`` their memory holds one (N, S_b)
    block a sequence: read by its shape, such a tensor is wrong wherever there are two heads or more.
    """
    stored = fresh(geometry.statistics_shape(), torch.float32, device)
    flat = stored.view(-1)
    for b, values in enumerate(rows):
        block = values.float()[..., None].expand(*values.shape, LANES)
        if not geometry.packed:
            stored[b] = block
            continue
        start = sum(geometry.size_q(i) for i in range(b))
        if as_input:
            stored[start : start + geometry.size_q(b)] = block.transpose(0, 1)
        else:
            size = geometry.heads * LANES
            flat[start * size : (start + geometry.size_q(b)) * size] = block.reshape(-1)
    return stored


def unpack_statistics(stored: Tensor, geometry: Geometry, as_input: bool) -> list[Tensor]:
    """What :func:`pack_statistics` packed, as float64 (N, S_b) of each sequence."""
    rows = []
    for b in range(geometry.batch):
        if not geometry.packed:
            rows.append(stored[b, :, :, 0].double())
            continue
        start = sum(geometry.size_q(i) for i in range(b))
        part = stored.contiguous()[start : start + geometry.size_q(b)]
        if as_input:
            rows.append(part[..., 0].transpose(0, 1).double())
        else:
            rows.append(part.reshape(geometry.heads, -1, LANES)[..., 0].double())
    return rows
