"""Rotating queries and new keys, by npu_rotary_mul where it computes what faops means, else in torch operations.

The operator gets float32, so that the rotation is rounded once: given 16-bit tensors it rounds cos and sin too. Its
layout is TND with cos and sin of (T, 1, D), the only one that has angles of their own for every token in both modes.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from faops import lengths
from faops.backends.npu import operators
from faops.device import DeviceProfile
from faops.inputs import DecodeInputs
from faops.rotary import angles_at, rotate

OPERATOR = "npu_rotary_mul"
# torch_npu's documents: D < 896 and even, N < 1000. Below the 910B the operator is compiled for D = 128 alone and
# takes no angles of their own for each token.
HEAD_DIM_BELOW = 896
HEADS_BELOW = 1000
WITHOUT_OPERATOR = ("310P",)


def takes(inputs: DecodeInputs, device: DeviceProfile) -> bool:
    """Whether the operator rotates the queries and new keys of a call."""
    cos, sin = inputs.rotary_cos, inputs.rotary_sin
    if cos is None or sin is None or device.arch in WITHOUT_OPERATOR:
        return False
    heads, dim = inputs.q.shape[2:]
    known = operators.operators().takes(OPERATOR, "rotary_mode")
    return known and dim < HEAD_DIM_BELOW and heads < HEADS_BELOW and all(map(is_bounded, (cos, sin)))


def is_bounded(table: Tensor) -> bool:
    """Whether no value lies outside of [-1, 1], the range that the operator is documented for.

    Scaled tables (YaRN) may. Looking waits for the device, so it is done once for a table that lives on unchanged.
    """
    if table.is_inference():
        return False
    state = lengths.state_of(table)
    known = _bounded.get(table)  # type: ignore[no-untyped-call]
    if known is None or known[0] != state:
        known = _bounded[table] = (state, table.numel() == 0 or bool((table.abs() <= 1.0).all()))
    return bool(known[1])


_bounded: WeakTensorKeyDictionary = WeakTensorKeyDictionary()  # by table: its state when it was looked at, and whether


def rotated(inputs: DecodeInputs, past: list[int], with_operator: bool) -> tuple[Tensor, Tensor | None]:
    """q and the new keys, rotated at their cache positions where rotary is on; ``past`` are the keys cached before."""
    q, k, cos, sin = inputs.q, inputs.k, inputs.rotary_cos, inputs.rotary_sin
    if cos is None or sin is None or cos.shape[1] == 0 or not past:
        return q, k
    # Only rows that see keys by position advance; those of a full call all stand at the cache's end.
    turned_q = _turned(q, cos, sin, past, not inputs.band.full, inputs.rotary_interleaved, with_operator)
    if k is None:
        return turned_q, None
    return turned_q, _turned(k, cos, sin, past, True, inputs.rotary_interleaved, with_operator)


def _turned(
    x: Tensor, cos: Tensor, sin: Tensor, past: list[int], advancing: bool, interleaved: bool, with_operator: bool
) -> Tensor:
    """``x`` (B, S, H, D) rotated: token t of sequence b at position past[b] + t, or all at past[b]."""
    steps = range(x.shape[1])
    positions = torch.tensor([[start + step * advancing for step in steps] for start in past], dtype=torch.int64)
    angles = angles_at(cos, sin, positions.view(len(past), len(steps)).to(x.device), x.dtype)
    if not with_operator or x.numel() == 0:
        return rotate(x, *angles, interleaved)
    return multiply(x, *angles, interleaved)


def multiply(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """``x`` (B, S, H, D) with its first R dims turned by npu_rotary_mul; cos and sin are float32 (B, S, 1, R / 2)."""
    rotated = 2 * cos.shape[-1]
    tokens = x.shape[0] * x.shape[1]
    pairs = x[..., :rotated].reshape(tokens, x.shape[2], rotated).float()
    wide = (_widened(table, interleaved).view(tokens, 1, rotated) for table in (cos, sin))
    mode = "interleave" if interleaved else "half"
    turned = operators.call(OPERATOR, pairs, *wide, rotary_mode=mode).view(*x.shape[:-1], rotated).to(x.dtype)
    return turned if rotated == x.shape[-1] else torch.cat([turned, x[..., rotated:]], dim=-1)


def _widened(table: Tensor, interleaved: bool) -> Tensor:
    """(..., R / 2) → (..., R): the angle of each pair at both its dims."""
    return table.repeat_interleave(2, dim=-1) if interleaved else torch.cat([table, table], dim=-1)
