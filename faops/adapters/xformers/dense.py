"""Biases of dense tensors: causal, causal with a window, a window to both sides, and causal with a tensor added.

The names, arguments and meanings are those of ``xformers.ops.fmha.attn_bias``. ``materialize`` is for tests and
debugging: attention reads the :class:`Pattern`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, is_dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from faops.adapters.xformers.seqlens import moved
from faops.errors import ArgumentError
from faops.problem import UNLIMITED


class Pattern(NamedTuple):
    """Which keys a row sees: from ``left`` before its own place to ``right`` behind it, inclusive; -1 is unlimited.

    Row i of M stands at key i if ``top_left``, else at key i + N - M, so that the last row stands at the last key.
    """

    left: int = UNLIMITED
    right: int = UNLIMITED
    top_left: bool = False

    def visible(self, rows: int, keys: int, device: torch.device | str = "cpu") -> Tensor:
        """bool (rows, keys)."""
        place = torch.arange(rows, device=device)[:, None] + (0 if self.top_left else keys - rows)
        ahead = torch.arange(keys, device=device)[None, :] - place
        found = torch.ones(rows, keys, dtype=torch.bool, device=device)
        if self.left >= 0:
            found &= ahead >= -self.left
        if self.right >= 0:
            found &= ahead <= self.right
        return found


EVERYTHING = Pattern()
CAUSAL = Pattern(right=0)


def additive(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where visible, -inf elsewhere."""
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill_(~visible, -math.inf)


def check_window(name: str, value: int, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ArgumentError(name, repr(value), f"an int of at least {least}")


class AttentionBias:
    """What is added to the scores, said without a tensor."""

    HOLDS_DENSE_TENSOR: ClassVar[bool] = False

    def to(self, device: torch.device | str) -> Any:
        """The same bias with its tensors on a device."""
        return moved(self, device) if is_dataclass(self) else self

    def materialize(
        self, shape: tuple[int, ...], dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> Tensor:
        """The bias as a tensor of ``shape``, (..., rows, keys)."""
        raise NotImplementedError


class PatternBias(AttentionBias):
    """A bias that is wholly a :class:`Pattern`."""

    @property
    def pattern(self) -> Pattern:
        raise NotImplementedError

    def materialize(
        self, shape: tuple[int, ...], dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> Tensor:
        return additive(self.pattern.visible(shape[-2], shape[-1], device), dtype).expand(shape)


class LowerTriangularMask(PatternBias):
    """Causal from the top left: row i sees keys up to i, however many keys there are."""

    def __init__(self, device: torch.device | str | None = None) -> None:
        """``device`` means nothing; older code passes it."""

    @property
    def pattern(self) -> Pattern:
        return Pattern(right=0, top_left=True)

    def add_bias(self, bias: Tensor) -> LowerTriangularMaskWithTensorBias:
        return LowerTriangularMaskWithTensorBias(bias)


class LowerTriangularMaskWithTensorBias(LowerTriangularMask):
    """Causal from the top left, with a tensor (batch, heads, rows, keys) added to the scores."""

    HOLDS_DENSE_TENSOR = True

    def __init__(self, bias: Tensor) -> None:
        self._bias = bias

    def to(self, device: torch.device | str) -> LowerTriangularMaskWithTensorBias:
        return type(self)(self._bias.to(device))

    def materialize(
        self, shape: tuple[int, ...], dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> Tensor:
        return super().materialize(shape, dtype, device) + self._bias


class LowerTriangularFromBottomRightMask(PatternBias):
    """Causal from the bottom right: the last row sees all keys."""

    @property
    def pattern(self) -> Pattern:
        return CAUSAL

    def make_local_attention(self, window_size: int) -> LowerTriangularFromBottomRightLocalAttentionMask:
        return LowerTriangularFromBottomRightLocalAttentionMask(window_size)


@dataclass
class LowerTriangularFromBottomRightLocalAttentionMask(LowerTriangularFromBottomRightMask):
    """Causal from the bottom right, the last ``_window_size`` keys only."""

    _window_size: int

    def __post_init__(self) -> None:
        check_window("window_size", self._window_size, 1)

    @property
    def pattern(self) -> Pattern:
        return Pattern(self._window_size - 1, 0)


@dataclass
class LocalAttentionFromBottomRightMask(PatternBias):
    """A window to both sides, from the bottom right."""

    window_left: int
    window_right: int

    def __post_init__(self) -> None:
        check_window("window_left", self.window_left, 0)
        check_window("window_right", self.window_right, 0)

    @property
    def pattern(self) -> Pattern:
        return Pattern(self.window_left, self.window_right)
