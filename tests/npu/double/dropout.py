"""The dropout mask of the fusion operators: bits drawn from a seed and an offset, the same again in backward.

Which bits the device draws is not documented, so these are drawn from a generator of PyTorch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tests.npu.double.errors import INVALID_PARAMETER, refuse
from tests.npu.double.layouts import Geometry


@dataclass
class Mask:
    kept: Tensor | None  # bool (numels,)
    seed: int = 0
    offset: int = 0
    numels: int = 0

    def of_sequence(self, geometry: Geometry, b: int) -> Tensor | None:
        if self.kept is None:
            return None
        sizes = [geometry.heads * geometry.size_q(i) * geometry.size_k(i) for i in range(b + 1)]
        part = self.kept[sum(sizes[:b]) : sum(sizes)]
        return part.view(geometry.heads, geometry.size_q(b), geometry.size_k(b))


def numels_of(geometry: Geometry) -> int:
    return sum(geometry.heads * geometry.size_q(b) * geometry.size_k(b) for b in range(geometry.batch))


def drawn(operator: str, geometry: Geometry, keep_prob: float, arguments: dict[str, Any], device: torch.device) -> Mask:
    """Forward's mask. Whether a given seed is followed is left open (the documents say so, the code of torch_npu
    draws another), so a seed without a mask is refused.
    """
    numels = numels_of(geometry)
    given, seed, offset = (arguments.get(name) for name in ("dropout_mask", "seed", "offset"))
    if keep_prob == 1:
        return Mask(None, numels=numels)
    if given is not None:
        return Mask(_bits(operator, given, numels), seed or 0, offset or 0, numels)
    if seed or offset:
        refuse(operator, INVALID_PARAMETER, "a seed or an offset without the dropout_mask made from them")
    seed = int(torch.randint(1, 2**31, ()))
    return Mask(_generated(numels, keep_prob, seed, 0, device), seed, 0, numels)


def again(geometry: Geometry, keep_prob: float, arguments: dict[str, Any], device: torch.device) -> Mask:
    """Backward's mask, from the seed and the offset that forward has returned."""
    if keep_prob == 1:
        return Mask(None)
    seed, offset = (int(arguments[name]) if arguments.get(name) is not None else 0 for name in ("seed", "offset"))
    numels = numels_of(geometry)
    return Mask(_generated(numels, keep_prob, seed, offset, device), seed, offset, numels)


def _generated(numels: int, keep_prob: float, seed: int, offset: int, device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(seed + 7919 * offset)
    return (torch.rand(numels, generator=generator) < keep_prob).to(device)


def _bits(operator: str, mask: Tensor, numels: int) -> Tensor:
    """Bits of bytes, the lowest first; their memory is a multiple of 128 bits long."""
    if mask.dtype != torch.uint8 or mask.numel() < -(-numels // 128) * 16:
        refuse(operator, INVALID_PARAMETER, f"dropout_mask is {mask.dtype} of {mask.numel()} bytes for {numels} bits")
    bits = mask.view(-1)[:, None] >> torch.arange(8, device=mask.device, dtype=torch.uint8)[None, :]
    return (bits & 1).bool().view(-1)[:numels]
