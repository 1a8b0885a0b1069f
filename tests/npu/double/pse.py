"""The position encoding argument of the fusion operators (``pse``): its four types, its shapes, its gradient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tests.npu.double.errors import INVALID_PARAMETER, TILING, refuse
from tests.npu.double.layouts import Geometry
from tests.npu.double.sparse import BOTTOM_RIGHT, DEFAULT, OUTER_BOTTOM_RIGHT, OUTER_TOP_LEFT, TOP_LEFT

ADD_THEN_SCALE, SCALE_THEN_ADD = 1, 0
SLOPES, SLOPES_ROOT = 2, 3  # the operator makes ALiBi itself
LAST_ROWS = 1024  # what a compressed encoding keeps of a longer one


@dataclass
class Encoding:
    """The pse arguments of a call, checked."""

    operator: str
    values: Tensor | None
    type: int
    q_start: int
    k_start: int

    @property
    def before_scale(self) -> bool:
        return self.type == ADD_THEN_SCALE

    def of_sequence(self, geometry: Geometry, b: int) -> Tensor | None:
        """What is added to the scores of sequence b, broadcastable to (N, Sq, Skv), float64."""
        if self.values is None:
            return None
        rows, keys = geometry.size_q(b), geometry.size_k(b)
        if self.type in (SLOPES, SLOPES_ROOT):
            down = torch.arange(rows, device=self.values.device)[:, None] + self.q_start
            across = torch.arange(keys, device=self.values.device)[None, :] + self.k_start
            distance = (across - down).abs().double()
            slopes = self.values if self.values.dim() == 1 else self.values[b]
            return -slopes.double()[:, None, None] * (distance.sqrt() if self.type == SLOPES_ROOT else distance)
        if self.values.dim() == 1:
            start = sum(geometry.heads * geometry.size_q(i) * geometry.size_k(i) for i in range(b))
            return self.values[start : start + geometry.heads * rows * keys].view(-1, rows, keys).double()
        entry = self.values[b if self.values.shape[0] > 1 else 0].double()
        return _extended(entry, rows) if self.is_compressed(geometry) else entry

    def is_compressed(self, geometry: Geometry) -> bool:
        assert self.values is not None
        return self.values.dim() == 4 and self.values.shape[2] == LAST_ROWS and geometry.seqlen_q > LAST_ROWS


def _extended(last: Tensor, rows: int) -> Tensor:
    """All rows of an encoding that depends on the distance alone, from its last ones, for a lower triangle."""
    heads, kept, keys = last.shape
    down = torch.arange(rows, device=last.device)[:, None]
    across = torch.arange(keys, device=last.device)[None, :]
    shifted = (across + rows - 1 - down).clamp(max=keys - 1)  # above the diagonal: hidden by the mask
    return last[:, kept - 1].expand(heads, keys)[:, shifted]


def check(encoding: Encoding, geometry: Geometry, query: Tensor, mode: int, starts: Sequence[Sequence[int]]) -> None:
    operator, values = encoding.operator, encoding.values
    if encoding.type not in (0, 1, 2, 3):
        refuse(operator, INVALID_PARAMETER, f"pse_type is {encoding.type}; it is 0, 1, 2 or 3")
    if values is None:
        if encoding.type != ADD_THEN_SCALE:
            refuse(operator, INVALID_PARAMETER, f"pse_type {encoding.type} without pse; it is 1 then")
        return
    if mode in (OUTER_BOTTOM_RIGHT, OUTER_TOP_LEFT):
        refuse(operator, TILING, f"sparse_mode {mode} does not support pse")
    if geometry.packed and any(geometry.size_q(b) == 0 for b in range(geometry.batch)):
        refuse(operator, TILING, "pse is not supported where a sequence is empty")
    if encoding.type in (SLOPES, SLOPES_ROOT):
        _check_slopes(encoding, geometry)
        return
    if any(starts):
        refuse(operator, INVALID_PARAMETER, "q_start_idx and kv_start_idx belong to pse types 2 and 3")
    if values.dtype != query.dtype:
        refuse(operator, INVALID_PARAMETER, f"pse has dtype {values.dtype}, query {query.dtype}")
    _check_shape(encoding, geometry, mode)


def _check_slopes(encoding: Encoding, geometry: Geometry) -> None:
    values, operator = encoding.values, encoding.operator
    assert values is not None
    if values.dtype != torch.float32:
        refuse(operator, INVALID_PARAMETER, f"slopes have dtype {values.dtype}; they are float32")
    if tuple(values.shape) not in ((geometry.heads,), (geometry.batch, geometry.heads)):
        refuse(operator, TILING, f"slopes have the shape {tuple(values.shape)}; it is (N,) or (B, N)")
    if any(geometry.size_q(b) != geometry.size_k(b) for b in range(geometry.batch)):
        refuse(operator, TILING, f"pse_type {encoding.type} needs Sq == Skv")


def _check_shape(encoding: Encoding, geometry: Geometry, mode: int) -> None:
    values, operator = encoding.values, encoding.operator
    assert values is not None
    batch, heads, rows, keys = geometry.batch, geometry.heads, geometry.seqlen_q, geometry.seqlen_k
    shape = tuple(values.shape)
    if geometry.packed:
        total = sum(heads * geometry.size_q(b) * geometry.size_k(b) for b in range(batch))
        if shape != (total,):
            refuse(operator, TILING, f"pse of packed sequences has the shape {shape}; here it is ({total},)")
        return
    if shape in ((batch, heads, LAST_ROWS, keys), (1, heads, LAST_ROWS, keys)) and rows > LAST_ROWS:
        if rows != keys or mode not in (DEFAULT, TOP_LEFT, BOTTOM_RIGHT):
            refuse(operator, TILING, "a pse of the last 1024 rows needs Sq == Skv and a causal mask")
        return
    if shape not in ((batch, heads, rows, keys), (batch, heads, 1, keys), (1, heads, rows, keys)):
        refuse(operator, TILING, f"pse has the shape {shape}, not (B, N, Sq, Skv), (B, N, 1, Skv) or (1, N, Sq, Skv)")
