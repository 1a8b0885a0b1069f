"""Chunked attention (``attention_chunk`` of flash-attn 3, the local layers of Llama 4) as a mask.

Keys fall into chunks of equal size, counted from a sequence's first key, and a row sees the keys of its own chunk: the
one that holds its position i + N - M. Causal and window apply as well.
"""

from __future__ import annotations

import torch
from torch import Tensor


def visible(chunk: int, first: Tensor, rows: int, columns: int, leftpad: Tensor | None = None) -> Tensor:
    """bool (B, 1, rows, columns), True where a row's chunk holds the key.

    Args:
        chunk: keys in a chunk, at least 1.
        first: (B,) the position of each sequence's row 0; negative where there are more rows than keys.
        rows, columns: query rows and key positions; columns are absolute, so that ``leftpad`` of them precede the keys.
        leftpad: (B,) the position of each sequence's first key, where its first chunk starts; None is 0.
    """
    start = first[:, None] + torch.arange(rows, device=first.device)
    if leftpad is not None:
        start = start - leftpad[:, None]
    start = start - start % chunk  # rounds down, for positions before the first key too
    if leftpad is not None:
        start = start + leftpad[:, None]
    column = torch.arange(columns, device=first.device)
    start = start[:, None, :, None]
    return (column >= start) & (column < start + chunk)


def hides(chunk: int, columns: int, causal: bool) -> bool:
    """Whether chunks hide keys that causality does not.

    With all keys in the first chunk that is so for rows before it only, which causality leaves without any key.
    """
    return chunk > 0 and not (causal and chunk >= columns)
