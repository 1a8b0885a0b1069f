"""Which pairs of query and key a sparse mode and a mask hide, and what masks the operators refuse."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from tests.npu.double.errors import INNER_NULL_POINTER, INVALID_PARAMETER, TILING, refuse
from tests.npu.double.layouts import Geometry

DEFAULT, ALL, TOP_LEFT, BOTTOM_RIGHT, BAND, PREFIX, PREFIX_COMPRESSED, OUTER_BOTTOM_RIGHT, OUTER_TOP_LEFT = range(9)
COMPRESSED = 2048


@dataclass
class Sparsity:
    """The mask arguments of a call, checked."""

    operator: str
    mode: int
    mask: Tensor | None
    before: int  # pre_tokens
    after: int  # next_tokens
    prefix: Sequence[int]
    inner_precise: int

    def hidden(self, geometry: Geometry, b: int) -> Tensor | None:
        """Pairs of sequence b without part in it; None without a mask, which makes every mode void."""
        if self.mask is None:
            return None
        rows, keys = geometry.size_q(b), geometry.size_k(b)
        down = torch.arange(rows, device=self.mask.device)[:, None]
        across = torch.arange(keys, device=self.mask.device)[None, :]
        from_top, from_bottom = across - down, across - (down + keys - rows)
        if self.mode in (DEFAULT, ALL, PREFIX):
            return self._of_sequence(geometry, b)
        if self.mode == TOP_LEFT:
            return from_top > 0
        if self.mode == BOTTOM_RIGHT:
            return from_bottom > 0
        if self.mode == BAND:
            return self._outside(from_bottom)
        if self.mode == PREFIX_COMPRESSED:
            return (from_bottom > 0) & (across >= self.prefix[b])
        # The outer split: one sequence is cut and has a band, the last one of mode 7 or the first one of mode 8.
        occupied = [i for i in range(geometry.batch) if geometry.size_q(i) and geometry.size_k(i)]
        if self.mode == OUTER_BOTTOM_RIGHT:
            return self._outside(from_bottom) if b == occupied[-1] else from_bottom > 0
        return self._outside(from_bottom) if b == occupied[0] else from_top > 0

    def undefined(self, geometry: Geometry, b: int) -> Tensor | None:
        """Rows (1 or N, Sq) for which mask and mode disagree: the mask shows a pair that the mode leaves out."""
        if self.mask is None or self.mode not in (DEFAULT, PREFIX):
            return None
        rows, keys = geometry.size_q(b), geometry.size_k(b)
        down = torch.arange(rows, device=self.mask.device)[:, None]
        across = torch.arange(keys, device=self.mask.device)[None, :]
        if self.mode == DEFAULT:
            outside = self._outside(across - down)
        else:
            outside = (across - (down + keys - rows) > 0) & (across >= self.prefix[b])
        shown = ~self._of_sequence(geometry, b) & outside
        return shown.any(-1)

    def repairs(self, geometry: Geometry) -> bool:
        """Whether rows without a visible key are computed as such: asked for, or seen by the operator itself."""
        if geometry.packed:
            # Masks with a hidden row are not supported for packed sequences; a band may have them.
            return self.inner_precise == 2 and self.mode in (BAND, OUTER_BOTTOM_RIGHT, OUTER_TOP_LEFT)
        return self.inner_precise == 2 or (self.mode == BOTTOM_RIGHT and geometry.seqlen_q > geometry.seqlen_k)

    def _outside(self, offset: Tensor) -> Tensor:
        return (offset < -self.before) | (offset > self.after)

    def _of_sequence(self, geometry: Geometry, b: int) -> Tensor:
        """The full mask's part (1 or N, Sq, Skv) of sequence b."""
        assert self.mask is not None
        hidden = self.mask.bool()
        if geometry.packed:
            return hidden[None, : geometry.size_q(b), : geometry.size_k(b)]
        if hidden.dim() == 2:
            return hidden[None]
        return hidden[b if hidden.shape[0] > 1 else 0]


def check(sparsity: Sparsity, geometry: Geometry) -> None:
    """Refuse what the documents exclude. Without a mask nothing is looked at, as nothing of it takes effect."""
    mask, mode, operator = sparsity.mask, sparsity.mode, sparsity.operator
    if sparsity.inner_precise not in (0, 1, 2):
        refuse(operator, INVALID_PARAMETER, f"inner_precise is {sparsity.inner_precise}; it is 0, 1 or 2")
    if mask is None:
        return
    if mask.dtype not in (torch.bool, torch.uint8):
        refuse(operator, INVALID_PARAMETER, f"atten_mask has dtype {mask.dtype}; it is bool or uint8")
    if mode in (TOP_LEFT, BOTTOM_RIGHT, BAND, OUTER_BOTTOM_RIGHT, OUTER_TOP_LEFT):
        _check_compressed(operator, mask, mode)
    elif mode == PREFIX_COMPRESSED:
        _check_prefix_mask(operator, mask)
    else:
        _check_full(operator, mask, mode, geometry)
    if mode in (PREFIX, PREFIX_COMPRESSED):
        _check_prefix(sparsity, geometry)
    if mode in (DEFAULT, BAND, OUTER_BOTTOM_RIGHT, OUTER_TOP_LEFT):
        _check_sides(sparsity, geometry)
    if geometry.packed:
        _check_packed(sparsity, geometry)


@functools.cache
def compressed_mask(device: torch.device) -> Tensor:
    """The mask that modes 2, 3, 4, 7 and 8 need, True above the diagonal."""
    return torch.ones(COMPRESSED, COMPRESSED, dtype=torch.bool, device=device).triu(1)


def is_compressed(mask: Tensor) -> bool:
    """Whether a 2048 x 2048 mask is the compressed one. Looked at once, as callers keep it."""
    known = _seen.get(mask)
    if known != mask._version:
        if not torch.equal(mask.view(COMPRESSED, COMPRESSED).bool(), compressed_mask(mask.device)):
            return False
        _seen[mask] = mask._version
    return True


# Masks that were right, with their version then.
_seen: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def _check_compressed(operator: str, mask: Tensor, mode: int) -> None:
    if tuple(mask.shape) != (COMPRESSED, COMPRESSED):
        refuse(operator, TILING, f"sparse_mode {mode} needs the compressed 2048 x 2048 mask, got {tuple(mask.shape)}")
    if not is_compressed(mask):
        refuse(operator, TILING, f"sparse_mode {mode}: atten_mask is not the mask that is set above the diagonal")


def _check_prefix_mask(operator: str, mask: Tensor) -> None:
    if tuple(mask.shape) != (COMPRESSED + 1024, COMPRESSED):
        refuse(operator, TILING, f"sparse_mode 6 needs the compressed 3072 x 2048 mask, got {tuple(mask.shape)}")
    rectangle = torch.arange(COMPRESSED, device=mask.device) >= COMPRESSED // 2
    lower = mask[COMPRESSED:].bool() == rectangle
    if not lower.all() or not torch.equal(mask[:COMPRESSED].bool(), compressed_mask(mask.device)):
        refuse(operator, TILING, "sparse_mode 6: atten_mask is not a triangle above a rectangle")


def _check_full(operator: str, mask: Tensor, mode: int, geometry: Geometry) -> None:
    if geometry.packed:
        assert geometry.lengths_q is not None and geometry.lengths_k is not None
        allowed = {(max(geometry.lengths_q), max(geometry.lengths_k))}
    else:
        pairs = (geometry.seqlen_q, geometry.seqlen_k)
        allowed = {(geometry.batch, geometry.heads, *pairs), (geometry.batch, 1, *pairs)}
        if mode != PREFIX:
            allowed |= {(1, 1, *pairs), pairs}
    if tuple(mask.shape) not in allowed:
        refuse(operator, INNER_NULL_POINTER, f"atten_mask has the shape {tuple(mask.shape)}, not one of {allowed}")


def _check_prefix(sparsity: Sparsity, geometry: Geometry) -> None:
    operator = sparsity.operator
    if geometry.batch > 32 or len(sparsity.prefix) != geometry.batch:
        refuse(operator, TILING, f"prefix has {len(sparsity.prefix)} numbers for a batch of {geometry.batch} (<= 32)")
    for b, length in enumerate(sparsity.prefix):
        rows, keys = geometry.size_q(b), geometry.size_k(b)
        if not max(0, keys - rows) <= length <= keys:
            refuse(operator, TILING, f"prefix {length} is outside of {max(0, keys - rows)} to {keys}")


def _check_sides(sparsity: Sparsity, geometry: Geometry) -> None:
    before, after = sparsity.before, sparsity.after
    if before + after < 0:
        refuse(sparsity.operator, TILING, f"pre_tokens {before} and next_tokens {after} leave nothing between them")
    if sparsity.mode != DEFAULT:
        return
    rows, keys = (max(size(b) for b in range(geometry.batch)) for size in (geometry.size_q, geometry.size_k))
    if after < 0 and -after >= keys:
        refuse(sparsity.operator, TILING, f"next_tokens {after} leaves out all {keys} keys")
    if before < 0 and -before >= rows:
        refuse(sparsity.operator, TILING, f"pre_tokens {before} leaves out all {rows} rows")


def _check_packed(sparsity: Sparsity, geometry: Geometry) -> None:
    operator, mode = sparsity.operator, sparsity.mode
    sizes = [(geometry.size_q(b), geometry.size_k(b)) for b in range(geometry.batch)]
    sizes = [(rows, keys) for rows, keys in sizes if rows]
    if mode == BOTTOM_RIGHT and any(rows > keys for rows, keys in sizes):
        refuse(operator, TILING, f"sparse_mode 3 of packed sequences needs Sq <= Skv in each, got {sizes}")
    if mode == OUTER_BOTTOM_RIGHT:
        if any(rows > keys for rows, keys in sizes[:-1]):
            refuse(operator, TILING, f"sparse_mode 7 needs Sq <= Skv in all but the last sequence, got {sizes}")
        if sparsity.before < sizes[-1][1] or sparsity.after > 0:
            refuse(operator, TILING, "sparse_mode 7 needs pre_tokens >= the last Skv and next_tokens <= 0")
    if mode == OUTER_TOP_LEFT and sparsity.before < sizes[0][1]:
        refuse(operator, TILING, "sparse_mode 8 needs pre_tokens >= the first Skv")
