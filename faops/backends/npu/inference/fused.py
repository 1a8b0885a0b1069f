"""One call of npu_fused_infer_attention_score, whose two versions differ in how they spell their arguments.

For one row a sequence the operator is IncreFlashAttention inside: no band, and inner_precise of 0 or 1. For several
it is PromptFlashAttention: the band is a sparse mode with the compressed mask. In the layout TND both are one kernel,
which takes a band for any number of rows but neither a mask of one's own nor pse_shift.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from faops.backends.npu import masks, operators
from faops.backends.npu.inference.pages import Keys, PageRule
from faops.backends.npu.inference.scores import Scores
from faops.problem import UNLIMITED, Band
from faops.registry import Config

OPERATORS = {"v1": "npu_fused_infer_attention_score", "v2": "npu_fused_infer_attention_score_v2"}
UNBOUNDED = 2147483647  # pre_tokens and next_tokens without a limit
CAUSAL, BAND = 3, 4  # sparse modes; both count from the bottom right
# Pages that the operator reads, from torch_npu's documents: for one row, several rows, packed rows of any number.
ONE_ROW, ROWS, PACKED = PageRule(16, 512), PageRule(128, 512), PageRule(16, 1024)


def band_arguments(band: Band, device: torch.device, packed: bool = False) -> dict[str, Any]:
    """What makes the operator compute a band, for several rows or packed ones."""
    if band.full and not packed:
        return {}
    if band.causal:
        return {"sparse_mode": CAUSAL, "atten_mask": masks.compressed(device)}
    # Packed rows without any mask come out as the mean of all values, in at least one CANN: a band without limits is
    # the way to ask for all keys.
    return {
        "sparse_mode": BAND,
        "atten_mask": masks.compressed(device),
        "pre_tokens": UNBOUNDED if band.left == UNLIMITED else band.left,
        "next_tokens": UNBOUNDED if band.right == UNLIMITED else band.right,
    }


def attend(
    q: Tensor, keys: Keys, band: Band, scores: Scores | None, scale: float, config: Config, need_lse: bool
) -> tuple[Tensor, Tensor | None]:
    """(out (B, M, H, D), lse (B, H, M)) of rows q (B, M, H, D); rows without a key hold anything.

    ``band`` counts from each sequence's last key in ``keys``; with ``scores``, which contain it, it is not looked at.
    """
    batch, seqlen_q, heads, dim = q.shape
    layout = layout_of(keys, config)
    packed = layout == "TND"
    arguments: dict[str, Any] = {}
    if scores is not None:
        arguments = {"pse": scores.shift, "atten_mask": scores.hidden}
    elif seqlen_q > 1 or packed:
        arguments = band_arguments(band, q.device, packed)
    if packed:
        arguments["actual_seq_qlen"] = [seqlen_q * (index + 1) for index in range(batch)]
    # A sequence without keys is given one: no document says what the operator makes of none. Its rows are dead.
    arguments["actual_seq_kvlen"] = [max(1, count) for count in keys.counts]
    if keys.table is not None:
        arguments |= {"block_table": keys.table, "block_size": keys.page_size}
    out, lse = operators.call(
        OPERATORS[str(config["operator"])], *arranged(q, keys, layout), head_num=heads,
        num_key_value_heads=keys.heads(dim), scale=scale, input_layout=layout,
        inner_precise=config.integer("inner_precise"), return_softmax_lse=need_lse, **arguments,
    )  # fmt: skip
    shape = (batch, seqlen_q, heads, dim)
    out = out.transpose(1, 2) if layout == "BNSD" else out.view(shape)
    if not need_lse:
        return out, None
    return out, lse.view(shape[:3]).transpose(1, 2) if packed else lse.squeeze(-1)


def layout_of(keys: Keys, config: Config) -> str:
    """The input_layout: what the keys' memory asks for, or the config's where it leaves a choice."""
    if keys.heads_first:
        return "BNSD"
    wanted = str(config["layout"])
    return "BSND" if wanted not in ("BSH", "TND") or (wanted == "TND" and keys.table is None) else wanted


def arranged(q: Tensor, keys: Keys, layout: str) -> tuple[Tensor, Tensor, Tensor]:
    """``q`` (B, M, H, D), keys and values contiguous in ``layout``; the keys lie so but for the number of axes."""
    if layout == "BNSD":
        return q.transpose(1, 2).contiguous(), keys.k, keys.v
    q = q.contiguous()
    if layout == "BSH" and keys.table is None:
        return q.flatten(2), keys.k.flatten(2), keys.v.flatten(2)
    return {"BSND": q, "BSH": q.flatten(2), "TND": q.flatten(0, 1)}[layout], keys.k, keys.v
