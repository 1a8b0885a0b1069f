"""What the double stands for: a device with a version of CANN, and the calls that were made to it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass
class Machine:
    """``soc`` is one of 310P, 910B, 910C and 950. ``cann`` decides about arguments that only newer versions know."""

    soc: str = "910B"
    cann: str = "9.1.0"
    calls: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    def has_cann(self, at_least: str) -> bool:
        """Whether this CANN is that version or newer; release candidates count as the release."""
        return _numbers(self.cann) >= _numbers(at_least)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version)[:2])


def fresh(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """New memory for a result, full of NaN: what an operator does not write shows."""
    return torch.full(shape, float("nan"), dtype=dtype, device=device)


def absent(like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """An output that the operator does not fill: an empty tensor of shape (0,)."""
    return torch.empty(0, dtype=dtype or like.dtype, device=like.device)
