"""Dense calls without a cache, as the inference operators take them: contiguous, one head dim, and rows of one range.

Tensors that lie heads first are passed as BNSD, all others as BSND or BSH; what is neither is copied. Head dims are
padded with zeros to what the operator computes, which changes neither scores nor the values that are kept.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from faops.backends.npu import masks
from faops.backends.npu.inference import scores
from faops.backends.npu.inference.kernel import HEAD_DIM_STEP
from faops.backends.npu.inference.pages import Keys
from faops.backends.npu.inference.scores import Range, Scores
from faops.inputs import AttentionInputs
from faops.layout import empty_lse, empty_out
from faops.problem import UNLIMITED, Band
from faops.registry import Config

Result = tuple[Tensor, Tensor | None]


def padded_dim(head_dim: int, head_dim_v: int) -> int:
    """The one head dim that the operator gets."""
    return -(-max(head_dim, head_dim_v) // HEAD_DIM_STEP) * HEAD_DIM_STEP


def padded(x: Tensor, dim: int) -> Tensor:
    return x if x.shape[-1] == dim else pad(x, (0, dim - x.shape[-1]))


def nothing_seen(inputs: AttentionInputs) -> Result:
    """The results where no row sees a key."""
    out = empty_out(inputs.q, inputs.v.shape[-1]).zero_()
    return out, empty_lse(inputs.q).fill_(-torch.inf) if inputs.need_lse else None


class Plain:
    """A dense call with at least one row and key: its tensors ``q`` (B, M, H, D') and ``keys``, and what hides scores.

    ``explicit`` asks for a mask of one's own in place of a band.
    """

    def __init__(self, inputs: AttentionInputs, config: Config, explicit: bool = False) -> None:
        seqlen_q, seqlen_k = inputs.q.shape[1], inputs.k.shape[1]
        dim = padded_dim(inputs.q.shape[3], inputs.v.shape[3])
        q, k, v = (padded(x, dim) for x in (inputs.q, inputs.k, inputs.v))
        mask, bias = inputs.mask, inputs.bias
        self.band = inputs.band.simplify(seqlen_q, seqlen_k)
        if seqlen_q == 1 and self.band.left != UNLIMITED:  # one row sees a range of keys, which others need not be in
            first = max(0, seqlen_k - 1 - self.band.left)
            k, v = k[:, first:], v[:, first:]
            mask, bias = _from(mask, first), _from(bias, first)
        if seqlen_q == 1:
            self.band = Band()
        self.q = q
        self.keys = _keys(q, k, v, str(config["layout"]))
        self.scores: Scores | None = None
        if mask is not None or bias is not None or (explicit and not self.band.full):
            width, batch = self.keys.width, q.shape[0]
            ranges = [Range(0, width, width)] * batch
            self.scores = scores.scores_of(q, ranges, self.keys.starts, width, self.band, mask, bias)

    def dead(self) -> Tensor | None:
        """The rows that see no key, bool (1, 1, M) or as the scores say; None if there are none."""
        if self.scores is not None:
            return self.scores.dead
        rows, width = self.q.shape[1], self.keys.width
        count = masks.dead_rows(rows, width, self.band)
        if count == 0:
            return None
        return (torch.arange(rows, device=self.q.device) < count).view(1, 1, rows)


def _from(matrix: Tensor | None, first: int) -> Tensor | None:
    return matrix if matrix is None or matrix.shape[3] == 1 else matrix[..., first:]


def _keys(q: Tensor, k: Tensor, v: Tensor, layout: str) -> Keys:
    batch, width = k.shape[:2]
    if layout == "as_given":
        layout = "BNSD" if all(_lies_heads_first(x) for x in (q, k, v)) else "BSND"
    heads_first = layout == "BNSD"
    k, v = (x.transpose(1, 2).contiguous() if heads_first else x.contiguous() for x in (k, v))
    return Keys(k, v, [0] * batch, [width] * batch, width, heads_first)


def _lies_heads_first(x: Tensor) -> bool:
    return x.transpose(1, 2).is_contiguous()
