"""A call's tensors as an operator of the fusion family gets them, and its results as faops gives them back.

What these two have in common: rows that see no key never reach the operator. It would compute something for them,
after a fashion that its documents leave open; faops says out 0, lse -inf and gradients 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from faops.backends.npu import layouts, masks, pse
from faops.backends.npu.fusion import packing
from faops.backends.npu.fusion.support import LENGTH_LIMIT
from faops.errors import UnavailableError
from faops.inputs import AttentionInputs
from faops.layout import empty_lse, empty_out
from faops.registry import Config

LANES = 8  # the operators keep each softmax result eight times
# In place of the lse of a row that sees no key, for backward: exp(score - this) is 0 whatever the operator takes for a
# hidden score.
NEVER = 1e30


class Arrangement(Protocol):
    """How the tensors of a call go to an operator and come back."""

    layout: str
    empty: bool  # no row sees a key, so there is nothing to compute

    def rows(self, tensor: Tensor) -> Tensor:
        """A tensor like q (its last size aside) for the operator."""

    def keys(self, tensor: Tensor) -> Tensor:
        """A tensor like k for the operator."""

    def from_rows(self, result: Tensor | None, head_dim: int) -> Tensor:
        """What the operator returned for the rows, like q: 0 for rows that it did not get, or for all."""

    def from_keys(self, result: Tensor | None, like: Tensor) -> Tensor:
        """What the operator returned for the keys, like k: 0 for keys that it did not get, or for all."""

    def to_lse(self, softmax_max: Tensor | None, softmax_sum: Tensor | None) -> Tensor:
        """lse from the operator's two results, -inf for rows that it did not get, or for all."""

    def to_softmax(self, lse: Tensor) -> tuple[Tensor, Tensor]:
        """softmax_max and softmax_sum that stand for ``lse``."""

    def keywords(self, encoding: str) -> dict[str, Any]:
        """What is hidden, added to the scores, and where sequences end."""

    def unseen(self) -> Tensor | None:
        """Which of the rows that the operator gets see no key after all, because of values that only the device
        knows: bool (B or 1, H or 1, rows); None where that cannot be.
        """


def arrange(
    inputs: AttentionInputs, config: Config, operands: Sequence[Tensor], results: Sequence[Tensor] = ()
) -> Arrangement:
    """The arrangement of a call. ``operands`` go to the operator; a result must lie like each of ``results``."""
    if inputs.cu_seqlens_q is not None:
        return Packed(inputs)
    return Dense(inputs, layouts.choose(str(config["layout"]), operands, results))


class Dense:
    """Sequences of one length. The band's dead rows are the first ones of each."""

    def __init__(self, inputs: AttentionInputs, layout: str) -> None:
        self.inputs = inputs
        self.layout = layout
        batch, seqlen_q, heads, _ = inputs.q.shape
        self.seqlen_k = inputs.k.shape[1]
        self.band = inputs.band.simplify(seqlen_q, self.seqlen_k)
        self.first = masks.dead_rows(seqlen_q, self.seqlen_k, self.band)
        self.seqlen_q = seqlen_q - self.first
        self.empty = batch == 0 or heads == 0 or self.seqlen_q == 0

    def rows(self, tensor: Tensor) -> Tensor:
        return layouts.arrange(tensor[:, self.first :], self.layout)

    def keys(self, tensor: Tensor) -> Tensor:
        return layouts.arrange(tensor, self.layout)

    def from_rows(self, result: Tensor | None, head_dim: int) -> Tensor:
        q = self.inputs.q
        if result is None:
            return empty_out(q, head_dim).zero_()
        rows = layouts.restore(result, self.layout, q.shape[2])
        if not self.first:
            return rows
        full = empty_out(q, head_dim)
        full[:, : self.first] = 0
        full[:, self.first :] = rows
        return full

    def from_keys(self, result: Tensor | None, like: Tensor) -> Tensor:
        if result is None:
            return empty_out(like, like.shape[-1]).zero_()
        return layouts.restore(result, self.layout, like.shape[2])

    def to_lse(self, softmax_max: Tensor | None, softmax_sum: Tensor | None) -> Tensor:
        if softmax_max is None or softmax_sum is None:
            return empty_lse(self.inputs.q).fill_(-math.inf)
        lse = softmax_max[..., 0] + softmax_sum[..., 0].log()
        if not self.first:
            return lse
        full = empty_lse(self.inputs.q)
        full[..., : self.first] = -math.inf
        full[..., self.first :] = lse
        return full

    def to_softmax(self, lse: Tensor) -> tuple[Tensor, Tensor]:
        return lanes(lse[..., self.first :])

    def keywords(self, encoding: str) -> dict[str, Any]:
        inputs, device = self.inputs, self.inputs.q.device
        if inputs.mask is None:
            hidden = masks.of_band(self.band, self.seqlen_q, self.seqlen_k, device, encoding)
        else:
            batch, heads = inputs.q.shape[0], inputs.q.shape[2]
            mask = from_row(inputs.mask, self.first)
            hidden = masks.of_mask(masks.hide(mask, self.band, batch, heads, self.seqlen_q, self.seqlen_k))
        return hidden | pse.keywords(inputs, self.first)

    def unseen(self) -> Tensor | None:
        mask, bias = self.inputs.mask, self.inputs.bias
        if mask is None and bias is None:
            return None
        visible = torch.ones((), dtype=torch.bool, device=self.inputs.q.device)
        if mask is not None:
            visible = visible & from_row(mask, self.first)
        if bias is not None:
            visible = visible & (from_row(bias, self.first) > -math.inf)
        if not self.band.full:
            outside = masks.outside(self.band, self.seqlen_q, self.seqlen_k, self.inputs.q.device)
            visible = visible & ~outside
        return visible.any(-1).logical_not().expand(-1, -1, self.seqlen_q)


class Packed:
    """Sequences of several lengths, one after the other."""

    layout = layouts.PACKED

    def __init__(self, inputs: AttentionInputs) -> None:
        self.inputs = inputs
        self.packing = packing.of(inputs)
        self.empty = self.packing.rows == 0 or inputs.q.shape[1] == 0
        longest = max(self.packing.rows, self.packing.keys[1] - self.packing.keys[0])
        if longest > LENGTH_LIMIT:
            raise UnavailableError(
                f"npu_fusion_attention takes up to {LENGTH_LIMIT} packed rows or keys in one call, not {longest}"
            )

    def rows(self, tensor: Tensor) -> Tensor:
        solid = self.packing.solid
        if solid is None:
            return tensor[packing.row_index(self.packing, tensor.device)]
        return tensor[slice(*solid)].contiguous()

    def keys(self, tensor: Tensor) -> Tensor:
        return tensor[slice(*self.packing.keys)].contiguous()

    def from_rows(self, result: Tensor | None, head_dim: int) -> Tensor:
        q = self.inputs.q
        if result is not None and self.packing.rows == q.shape[0]:
            return result
        full = empty_out(q, head_dim).zero_()
        if result is not None:
            full[self._places()] = result
        return full

    def from_keys(self, result: Tensor | None, like: Tensor) -> Tensor:
        first, last = self.packing.keys
        if result is not None and not self.packing.unread and last - first == like.shape[0]:
            return result
        full = empty_out(like, like.shape[-1]).zero_()
        if result is not None:
            full[first:last] = result
        for span in self.packing.unread:
            full[slice(*span)] = 0
        return full

    def to_lse(self, softmax_max: Tensor | None, softmax_sum: Tensor | None) -> Tensor:
        q = self.inputs.q
        full = empty_lse(q).fill_(-math.inf)
        if softmax_max is None or softmax_sum is None:
            return full
        stored = (softmax_max[..., 0] + softmax_sum[..., 0].log()).flatten()
        lse = stored[packing.softmax_order(self.packing, q.shape[1], q.device)]
        if self.packing.rows == q.shape[0]:
            return lse
        full[:, self._places()] = lse
        return full

    def to_softmax(self, lse: Tensor) -> tuple[Tensor, Tensor]:
        rows, heads = self.packing.rows, lse.shape[0]
        order = packing.softmax_order(self.packing, heads, lse.device)
        stored = lse.new_empty(rows * heads)
        stored[order] = lse[:, self._places()]
        return lanes(stored.view(rows, heads))

    def keywords(self, encoding: str) -> dict[str, Any]:
        inputs = self.inputs
        band = inputs.band.simplify(inputs.max_seqlen_q, inputs.max_seqlen_k)
        hidden = masks.of_band(band, inputs.max_seqlen_q, inputs.max_seqlen_k, inputs.q.device, encoding)
        return hidden | {"actual_seq_qlen": self.packing.ends_q, "actual_seq_kvlen": self.packing.ends_k}

    def unseen(self) -> None:
        return None

    def _places(self) -> Tensor | slice:
        """Where the operator's rows are among those of q."""
        solid = self.packing.solid
        return packing.row_index(self.packing, self.inputs.q.device) if solid is None else slice(*solid)


def from_row(matrix: Tensor, first: int) -> Tensor:
    """A bias or mask for the rows from ``first`` on."""
    return matrix[:, :, first:] if matrix.shape[2] > 1 else matrix


def lanes(lse: Tensor) -> tuple[Tensor, Tensor]:
    """softmax_max and softmax_sum (..., 8) that stand for ``lse``: itself, and 1."""
    finite = torch.where(lse == -math.inf, NEVER, lse)
    softmax_max = finite.unsqueeze(-1).expand(*finite.shape, LANES).contiguous()
    return softmax_max, torch.ones_like(softmax_max)
