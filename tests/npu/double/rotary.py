"""Rotary embedding: npu_rotary_mul and npu_apply_rotary_pos_emb."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.npu.double.errors import INVALID_PARAMETER, TILING, refuse, refuse_on_host
from tests.npu.double.machine import Machine

Arguments = dict[str, Any]
FLOATS = (torch.float16, torch.bfloat16, torch.float32)


def multiply(machine: Machine, operator: str, arguments: Arguments) -> Tensor:
    """input · r1 + rotated input · r2, differentiable. Cosines of another dtype are rounded to the input's first."""
    x, cos, sin, mode = (arguments[name] for name in ("input", "r1", "r2", "rotary_mode"))
    if mode not in ("half", "interleave"):
        refuse_on_host(operator, f"The rotary_mode of npu_rotary_mul should be half or interleave, but got {mode}")
    if arguments.get("rotate") is not None:
        refuse(operator, INVALID_PARAMETER, "rotate: not in this double")
    if any(tensor.dtype not in FLOATS for tensor in (x, cos, sin)):
        refuse(operator, INVALID_PARAMETER, f"dtypes {x.dtype}, {cos.dtype}, {sin.dtype}")
    _check_shapes(operator, x, cos, sin, mode)
    if machine.soc == "310P" and (mode != "half" or x.dim() != 4 or x.shape[-1] != 128):
        refuse(operator, TILING, "this product takes half, four dimensions and a head dim of 128 only")
    if max(float(tensor.detach().abs().max()) for tensor in (cos, sin)) > 1:
        refuse(operator, INVALID_PARAMETER, "r1 and r2 are numbers from -1 to 1")
    return _rotated(x, cos.to(x.dtype), sin.to(x.dtype), mode)


def _rotated(x: Tensor, cos: Tensor, sin: Tensor, mode: str) -> Tensor:
    wide = x.float()
    if mode == "half":
        first, second = wide.chunk(2, dim=-1)
        turned = torch.cat((-second, first), dim=-1)
    else:
        turned = torch.stack((-wide[..., 1::2], wide[..., ::2]), dim=-1).flatten(-2)
    return (wide * cos.float() + turned * sin.float()).to(x.dtype)


def _check_shapes(operator: str, x: Tensor, cos: Tensor, sin: Tensor, mode: str) -> None:
    dim = x.shape[-1]
    if x.dim() not in (3, 4) or x.numel() == 0 or dim % 2 or dim >= 896:
        refuse(operator, TILING, f"input has the shape {tuple(x.shape)}: 3 or 4 dimensions, an even head dim below 896")
    if cos.shape != sin.shape or cos.dim() != x.dim() or cos.shape[-1] != dim:
        refuse(operator, TILING, f"r1 {tuple(cos.shape)} and r2 {tuple(sin.shape)} for input {tuple(x.shape)}")
    if not any(_suits(tuple(x.shape[:-1]), tuple(cos.shape[:-1]), layout, mode) for layout in _LAYOUTS[x.dim()]):
        refuse(operator, TILING, f"r1 {tuple(cos.shape)} does not broadcast to input {tuple(x.shape)} in mode {mode}")


_LAYOUTS = {3: ("TN",), 4: ("BNS", "BSN", "SBN")}


def _suits(x: tuple[int, ...], cos: tuple[int, ...], layout: str, mode: str) -> bool:
    """Whether the leading sizes are those of this layout, with the broadcasts and limits that the mode allows."""
    sizes = dict(zip(layout, x))
    kept = ("ST", "BST", "BSTN") if mode == "half" else ("ST",)
    if cos not in [tuple(size if axis in names else 1 for axis, size in sizes.items()) for names in kept]:
        return False
    batch, heads = sizes.get("B", 1), sizes["N"]
    return batch < 1000 and heads < 1000 if mode == "half" else batch * heads < 1000


def apply_in_place(machine: Machine, operator: str, arguments: Arguments) -> tuple[Tensor, Tensor]:
    """Rotates query and key where they lie, and returns them."""
    names = ("query", "key", "cos", "sin")
    query, key, cos, sin = tensors = tuple(arguments[name] for name in names)
    layout, mode = arguments["layout"], arguments.get("rotary_mode", "half")
    if layout not in ("BSH", "BSND", "TND") or mode != "half":
        refuse(operator, INVALID_PARAMETER, f"layout {layout} and rotary_mode {mode}: BSND or TND, and half")
    if any(tensor.dtype != query.dtype or tensor.dtype not in FLOATS for tensor in tensors):
        refuse(operator, INVALID_PARAMETER, f"dtypes {[tensor.dtype for tensor in tensors]}")
    if machine.soc == "310P" and query.dtype == torch.bfloat16:
        refuse(operator, INVALID_PARAMETER, "bfloat16 is not supported on this product")
    dimensions = 3 if layout == "TND" else 4
    if any(tensor.dim() != dimensions or tensor.numel() == 0 for tensor in tensors):
        refuse(operator, TILING, f"{layout} needs {dimensions} dimensions, none of them empty")
    leading = query.shape[:-2]
    if any(tensor.shape[:-2] != leading or tensor.shape[-1] != query.shape[-1] for tensor in tensors):
        refuse(operator, TILING, f"shapes {[tuple(tensor.shape) for tensor in tensors]} differ in more than the heads")
    if query.shape[-1] not in (64, 128) or cos.shape[-2] != 1 or sin.shape[-2] != 1:
        refuse(operator, TILING, f"head dim {query.shape[-1]}, {cos.shape[-2]} heads of cos: 64 or 128, and 1")
    for tensor in (query, key):
        tensor.copy_(_rotated(tensor.clone(), cos, sin, "half"))
    return query, key
