"""S_dmask: the probabilities that flash-attn returns for testing, with the dropout pattern in their sign.

A pass of its own over the scores, in plain torch operations: the whole matrix is what was asked for. An entry is
``exp(score - largest score of its row)``, negative where it was dropped. flash-attn's kernels scale each block of
``_get_block_size_n`` columns by the largest score that they had seen by then; here a row is one block, and that
function says so.
"""

from __future__ import annotations

import torch
from torch import Tensor

from faops.adapters.flash_attn.conventions import Options
from faops.philox import keep_tile
from faops.problem import Band
from faops.reference import in_band

ROUND = 128  # both axes of S_dmask are rounded up to this


def round_up(size: int) -> int:
    return -(-size // ROUND) * ROUND


def dense(q: Tensor, k: Tensor, options: Options, rng: Tensor) -> Tensor:
    """S_dmask (B, H, M rounded, N rounded) in q's dtype, for q (B, M, H, D) and k (B, N, Hk, D)."""
    result = q.new_zeros(q.shape[0], q.shape[2], round_up(q.shape[1]), round_up(k.shape[1]))
    for b in range(q.shape[0]):
        _fill(result[b], q[b], k[b], b, options, rng)
    return result


def varlen(
    q: Tensor,
    k: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    options: Options,
    rng: Tensor,
) -> Tensor:
    """The same for packed q (total_q, H, D) and k (total_k, Hk, D): each sequence at the top left of its matrix."""
    starts_q, starts_k = cu_seqlens_q.tolist(), cu_seqlens_k.tolist()
    batch = len(starts_q) - 1
    result = q.new_zeros(batch, q.shape[1], round_up(max_seqlen_q), round_up(max_seqlen_k))
    for b in range(batch):
        rows, keys = slice(*starts_q[b : b + 2]), slice(*starts_k[b : b + 2])
        _fill(result[b], q[rows], k[keys], b, options, rng)
    return result


@torch.no_grad()
def _fill(result: Tensor, q: Tensor, k: Tensor, b: int, options: Options, rng: Tensor) -> None:
    """Write the matrices of sequence ``b`` into ``result`` (H, at least M, at least N); q is (M, H, D)."""
    M, heads, N = q.shape[0], q.shape[1], k.shape[0]
    if M == 0 or N == 0:
        return
    scores = _scores(q, k, b, options)
    values = torch.exp(scores - scores.amax(-1, keepdim=True)).nan_to_num(0.0)  # a dead row is -inf throughout
    numbers = torch.arange(b * heads, (b + 1) * heads, device=q.device)
    keep = keep_tile(rng, (0, M), (0, N), numbers, options.dropout_p)
    result[:, :M, :N] = torch.where(keep, values, -values)


def _scores(q: Tensor, k: Tensor, b: int, options: Options) -> Tensor:
    """Scores of one sequence as the softmax sees them, float32 (H, M, N), -inf where hidden."""
    M, heads, head_dim = q.shape
    N = k.shape[0]
    k = k.repeat_interleave(heads // k.shape[1], dim=1)
    scale = head_dim**-0.5 if options.softmax_scale is None else options.softmax_scale
    scores = torch.einsum("ihd,jhd->hij", q.float(), k.float()) * scale
    if options.softcap > 0:
        scores = options.softcap * torch.tanh(scores / options.softcap)
    offset = torch.arange(N, device=q.device) - (torch.arange(M, device=q.device)[:, None] + N - M)
    slopes = options.alibi_slopes
    if slopes is not None:
        scores = scores - (slopes[b] if slopes.dim() == 2 else slopes)[:, None, None] * offset.abs()
    return scores.masked_fill(~in_band(offset, Band.of(options.causal, options.window)), -torch.inf)
