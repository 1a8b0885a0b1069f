"""What is added to the scores, as an operator's pse: a bias, or ALiBi.

pse_type 0 adds pse to scale·qk (type 1, the only one of npu_fusion_attention, adds it before scaling). Type 2 takes
one slope a head and computes -slope·|i - j| itself in float32, for equal lengths.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from faops.inputs import AttentionInputs
from faops.problem import AttentionProblem

AFTER_SCALE, ALIBI = 0, 2  # pse_type

PSE_LIMIT = 1 << 30  # bytes of a materialised pse above which it is refused

# Stands for -inf, which a kernel that keeps a running maximum may turn into NaN: exp() of it less any score is 0.
HIDDEN = {torch.float16: -65504.0, torch.bfloat16: -1e30, torch.float32: -1e30}


def built_in(problem: AttentionProblem) -> bool:
    """Whether the operator computes the ALiBi of ``problem`` itself."""
    return problem.alibi and not problem.bias and problem.seqlen_q == problem.seqlen_k


def pse_bytes(problem: AttentionProblem) -> int:
    """Bytes of the pse that ``problem`` needs materialised; 0 where there is none."""
    explicit_alibi = problem.alibi and not built_in(problem)
    if not (problem.bias or explicit_alibi):
        return 0
    rows = problem.seqlen_q if explicit_alibi or "m" in problem.bias else 1
    batch = problem.batch if rows == 1 or explicit_alibi or "b" in problem.bias else 1
    return batch * problem.heads_q * rows * problem.seqlen_k * problem.torch_dtype.itemsize


def keywords(inputs: AttentionInputs, first_row: int) -> dict[str, Any]:
    """pse and pse_type for the rows of a dense call from ``first_row`` on; neither where nothing is added."""
    slopes, bias = inputs.alibi_slopes, inputs.bias
    if slopes is None and bias is None:
        return {}
    seqlen_q, seqlen_k = inputs.q.shape[1] - first_row, inputs.k.shape[1]
    if bias is None and slopes is not None and inputs.q.shape[1] == seqlen_k:
        return {"pse": slopes.float().contiguous(), "pse_type": ALIBI}
    added = None if bias is None else bias[:, :, first_row:] if bias.shape[2] > 1 else bias
    if slopes is not None:
        alibi = distances(slopes, seqlen_q, seqlen_k)
        added = alibi if added is None else added + alibi
    assert added is not None
    return {"pse": spread(added, inputs.q, seqlen_q, seqlen_k), "pse_type": AFTER_SCALE}


def distances(slopes: Tensor, seqlen_q: int, seqlen_k: int) -> Tensor:
    """ALiBi written out, float32 (B or 1, H, M, N)."""
    rows = torch.arange(seqlen_k - seqlen_q, seqlen_k, device=slopes.device).unsqueeze(1)
    apart = (torch.arange(seqlen_k, device=slopes.device) - rows).abs()
    return -slopes.float().reshape(-1, slopes.shape[-1], 1, 1) * apart


def spread(added: Tensor, q: Tensor, seqlen_q: int, seqlen_k: int) -> Tensor:
    """``added`` in q's dtype and a shape that an operator takes: (B or 1, H, M, N) or (B, H, 1, N)."""
    batch, heads = q.shape[0], q.shape[2]
    rows = seqlen_q if added.shape[2] > 1 else 1
    shape = (batch if rows == 1 else added.shape[0], heads, rows, seqlen_k)
    return added.to(q.dtype).clamp(min=HIDDEN[q.dtype]).expand(shape).contiguous()
