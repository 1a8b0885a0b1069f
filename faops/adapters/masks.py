"""Padding masks in O(batch × keys): how the mask function tells the attention function what a query may see.

transformers builds one mask a forward pass and hands it to every layer. Models expect that mask to be None or a tensor
with four dimensions, may move or copy it, and hide keys of three kinds in it: padding, keys outside a band (causal,
sliding window), and keys of another sequence packed into the same row. A *key mask* says all of this in an int64
tensor of shape (batch, 1, 1, keys), so no query × key tensor is needed:

    0                                   the key is hidden from every query
    2·(left + 2) + causal, at least 2   the key is visible within the band (left, 0 if causal else left)
    + segment · 2^40                    and only to the queries of the same segment

The query rows are the last ones: row i of M stands at key i + keys - M. All visible keys carry the same band.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from faops.errors import ArgumentError
from faops.problem import UNLIMITED, Band

SEGMENT_SHIFT = 40
SMALLEST_CODE = 2
ATTRIBUTE = "_faops_key_mask"  # the decoded form, kept on the tensor so that layers after the first need not read it


@dataclass(frozen=True)
class Packing:
    """The visible tokens of a batch as one row of sequences, in the form of a varlen call."""

    indices: Tensor  # int64 (total,): positions in the flattened (batch · keys) tokens
    cu_seqlens: Tensor  # int32 (sequences + 1,)
    max_seqlen: int


@dataclass(frozen=True)
class KeyMask:
    """What a key mask tensor says. ``visible`` is bool (batch, keys), or None when no key is hidden from all.

    ``packed``: rows hold several sequences. ``packing`` is None where a varlen call would gain nothing, or would not
    keep the meaning of the band.
    """

    band: Band
    visible: Tensor | None
    packed: bool
    packing: Packing | None


def encode(band: Band, visible: Tensor, segments: Tensor | None) -> Tensor:
    """The key mask tensor for ``visible``, bool (batch, keys), and ``segments``, int64 (batch, keys) or None."""
    code = 2 * (band.left + 2) + (band.right == 0)
    codes = torch.full_like(visible, code, dtype=torch.int64)
    if segments is not None:
        codes = codes + (segments << SEGMENT_SHIFT)
    codes = torch.where(visible, codes, 0)[:, None, None, :]
    setattr(codes, ATTRIBUTE, _describe(band, visible, segments))
    return codes


def representable(band: Band) -> bool:
    """Whether :func:`encode` can express the band: causal, or the same width on both sides."""
    return band.right in (0, band.left)


def is_key_mask(mask: Tensor) -> bool:
    """Whether ``mask`` has the form of a key mask; masks for :func:`faops.attention` are bool or floating."""
    return mask.dtype == torch.int64 and mask.dim() == 4 and mask.shape[1] == mask.shape[2] == 1


def decode(mask: Tensor) -> KeyMask:
    """Read a key mask tensor; waits for the device if it was copied since it was made. Raises ArgumentError."""
    found: KeyMask | None = getattr(mask, ATTRIBUTE, None)
    if found is not None:
        return found
    codes = mask[:, 0, 0, :]
    largest = int((codes & ((1 << SEGMENT_SHIFT) - 1)).max()) if codes.numel() else SMALLEST_CODE
    if largest < SMALLEST_CODE:
        raise ArgumentError("attention_mask", "an int64 tensor of zeros and ones", "a bool or floating-point mask")
    left = (largest >> 1) - 2
    band = Band(left, 0 if largest & 1 else left)
    segments = codes >> SEGMENT_SHIFT
    described = _describe(band, codes != 0, segments if bool(segments.any()) else None)
    setattr(mask, ATTRIBUTE, described)
    return described


def expand(mask: Tensor, seqlen_q: int) -> Tensor:
    """The bool mask (batch, 1, seqlen_q, keys) that a key mask means, in tensor operations only.

    For traced code, which cannot read values; it costs O(seqlen_q × keys).
    """
    keys = mask.shape[-1]
    code = (mask & ((1 << SEGMENT_SHIFT) - 1)).amax()
    left, causal = (code >> 1) - 2, (code & 1).bool()
    rows = torch.arange(keys - seqlen_q, keys, device=mask.device)
    ahead = torch.arange(keys, device=mask.device)[None, :] - rows[:, None]
    in_band = torch.where(causal, ahead <= 0, (left < 0) | (ahead <= left)) & ((left < 0) | (ahead >= -left))
    segments = mask >> SEGMENT_SHIFT
    same_segment = segments[..., keys - seqlen_q :].transpose(-1, -2) == segments
    return (mask != 0) & in_band & (same_segment | (segments.amax() == 0))


def _describe(band: Band, visible: Tensor, segments: Tensor | None) -> KeyMask:
    starts = visible.clone()
    starts[:, 1:] &= ~visible[:, :-1]
    everything, one_run = torch.stack([visible.all(), (starts.sum(1) <= 1).all()]).tolist()
    # Packing closes the gaps between visible keys: harmless to a causal order, but it moves a window's edge.
    keeps_band = band.right == 0 and (one_run or band.left == UNLIMITED)
    packing = _pack(visible, segments) if keeps_band and (segments is not None or not everything) else None
    return KeyMask(band, None if everything else visible, segments is not None, packing)


def _pack(visible: Tensor, segments: Tensor | None) -> Packing:
    batch, length = visible.shape
    sequence = torch.arange(batch, device=visible.device)[:, None].expand(batch, length)
    if segments is not None:
        sequence = sequence * length + segments
    indices = visible.flatten().nonzero().flatten()
    _, lengths = torch.unique_consecutive(sequence.flatten()[indices], return_counts=True)
    cu_seqlens = torch.zeros(lengths.numel() + 1, dtype=torch.int32, device=visible.device)
    cu_seqlens[1:] = lengths.cumsum(0)
    return Packing(indices, cu_seqlens, int(lengths.max()) if lengths.numel() else 0)
