"""RotaryEmbedding: the tables of cos and sin, and the rotation of queries and keys by them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from faops import validate
from faops.errors import ArgumentError
from faops.nn.frequencies import frequencies
from faops.rotary import rotate

FIRST_TABLE = 256  # positions of a first table; tables double from there


class RotaryEmbedding(nn.Module):
    """Rotary position embedding (Su et al. 2021, arXiv 2104.09864) of the first ``dim`` dims of each head.

    Args:
        dim: dims of a head that rotate, even; the others pass through.
        base: the slowest pair turns by about 1 / base radians a position.
        interleaved: pairs are neighbours (GPT-J); False: dim i and dim i + dim / 2 (GPT-NeoX, Llama).
        scaling: of the frequencies, for long contexts; a dict as in a Hugging Face config, see
            :mod:`faops.nn.frequencies`.

    The module has no parameters and no buffers: its tables are float32 whatever a model is cast to, made when they are
    first needed and made anew, twice as long, when they are too short. One module can serve all layers of a model.
    """

    def __init__(
        self,
        dim: int,
        base: float = 10000.0,
        *,
        interleaved: bool = False,
        scaling: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if isinstance(dim, bool) or not isinstance(dim, int) or dim < 2 or dim % 2:
            raise ArgumentError("dim", repr(dim), "an even number of at least 2")
        if not base > 0:
            raise ArgumentError("base", repr(base), "a number above 0")
        self.dim = dim
        self.base = float(base)
        self.interleaved = interleaved
        self.scaling = None if scaling is None else dict(scaling)
        frequencies(dim, self.base, self.scaling)  # refuse a bad scaling now
        self._turns: dict[torch.device, tuple[Tensor, float]] = {}
        self._tables: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def tables(
        self, length: int, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> tuple[Tensor, Tensor]:
        """cos and sin of positions 0 to length - 1, (length, dim / 2), as ``attention_with_kvcache`` takes them."""
        cos, sin = self._grown(length, torch.device(device))
        return cos[:length].to(dtype), sin[:length].to(dtype)

    def forward(self, x: Tensor, positions: Tensor | None = None, *, length: int | None = None) -> Tensor:
        """``x`` rotated; a new tensor of the same shape and dtype, with a gradient.

        Args:
            x: (B, S, H, D), or packed (total, H, D), D >= dim.
            positions: integers, (S,) or (B, S), packed (total,); None counts from 0 along axis S (or total).
            length: a number above every position, if known: the angles are then read from the tables. Without it they
                are computed from ``positions``, which never have to be read on the host.
        """
        packed = x.dim() == 3
        if packed:
            x = x[None]
        validate.check_tensor("x", x, 4, "(batch, seq, heads, head_dim) or (total, heads, head_dim)")
        if x.shape[-1] < self.dim:
            raise ArgumentError("x", validate.describe(x), f"a head_dim of at least {self.dim}, the dims that rotate")
        if positions is not None and (
            positions.shape not in (x.shape[:2], x.shape[1:2]) or positions.is_floating_point()
        ):
            expected = f"integers of shape {tuple(x.shape[:2])} or {tuple(x.shape[1:2])}"
            raise ArgumentError("positions", validate.describe(positions), expected)
        rotated = rotate(x, *self._angles(x, positions, length), self.interleaved)
        return rotated[0] if packed else rotated

    def _angles(self, x: Tensor, positions: Tensor | None, length: int | None) -> tuple[Tensor, Tensor]:
        """cos and sin of the tokens of x (B, S, H, D): (B, S, 1, dim / 2), or (1, S, 1, dim / 2) for a whole batch."""
        if positions is None:
            cos, sin = (table[: x.shape[1]] for table in self._grown(x.shape[1], x.device))
        elif length is None:
            cos, sin = self._computed(positions.flatten())
        else:
            cos, sin = (table.index_select(0, positions.flatten()) for table in self._grown(length, x.device))
        dtype = torch.promote_types(x.dtype, torch.float32)
        shape = (-1, x.shape[1], 1, self.dim // 2)
        return cos.view(shape).to(dtype), sin.view(shape).to(dtype)

    def _grown(self, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Tables of at least ``length`` positions, kept for the next call."""
        if torch.compiler.is_compiling():
            return self._computed(torch.arange(length, device=device))
        kept = self._tables.get(device)
        if kept is None or kept[0].shape[0] < length:
            size = max(FIRST_TABLE, 1 << (length - 1).bit_length())
            with torch.inference_mode(False), torch.no_grad():  # for use in training too, whoever asks first
                kept = self._tables[device] = self._computed(torch.arange(size, device=device))
        return kept

    def _computed(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin, each (positions, dim / 2), in float32 as models are trained with."""
        turns, factor = self._frequencies(positions.device)
        angles = positions.float()[:, None] * turns
        return angles.cos() * factor, angles.sin() * factor

    def _frequencies(self, device: torch.device) -> tuple[Tensor, float]:
        """Those of :func:`faops.nn.frequencies.frequencies` on a device, which are sent there once."""
        kept = None if torch.compiler.is_compiling() else self._turns.get(device)
        if kept is None:
            turns, factor = frequencies(self.dim, self.base, self.scaling)
            kept = turns.to(device), factor
            if not torch.compiler.is_compiling():
                self._turns[device] = kept
        return kept

    def extra_repr(self) -> str:
        style = "interleaved" if self.interleaved else "half"
        scaling = "" if self.scaling is None else f", scaling={self.scaling}"
        return f"{self.dim}, base={self.base:g}, {style}{scaling}"
