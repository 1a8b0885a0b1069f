"""What the flash-attn 3 calls share: checking their arguments and putting them as faops does."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from faops.adapters.flash_attn.conventions import FlashAttnArgumentError
from faops.validate import check_tensor, describe

FP8 = torch.float8_e4m3fn


def check_hints(num_splits: Any = 0, pack_gqa: Any = None, sm_margin: Any = 0) -> None:
    """Arguments that say how upstream's kernel runs and change no result: their type is checked, nothing more."""
    for name, value in (("num_splits", num_splits), ("sm_margin", sm_margin)):
        _check_count(name, value, "an int of 0 or more")
    if not (pack_gqa is None or isinstance(pack_gqa, bool)):
        raise FlashAttnArgumentError("pack_gqa", repr(pack_gqa), "True, False or None")


def check_chunk(attention_chunk: Any) -> None:
    _check_count("attention_chunk", attention_chunk, "an int of 0 (off) or more")


def _check_count(name: str, value: Any, expected: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int | torch.SymInt) or value < 0:
        raise FlashAttnArgumentError(name, repr(value), expected)


def descales(q: Tensor, q_descale: Any, k_descale: Any, v_descale: Any) -> dict[str, Any]:
    """The descales as options of a faops call. They belong to fp8 tensors; with others upstream ignores them."""
    given = {"q_descale": q_descale, "k_descale": k_descale, "v_descale": v_descale}
    for name, value in given.items():
        if value is not None and not (isinstance(value, Tensor) and value.dtype == torch.float32):
            raise FlashAttnArgumentError(name, describe(value), "a float32 tensor of shape (batch, heads_kv), or None")
    return given if q.dtype == FP8 else {}


def scale_of(q: Tensor, qv: Tensor | None, softmax_scale: float | None) -> float:
    """The scale that applies: the one given, or (head dim of q and of qv together) ** -0.5."""
    if softmax_scale is not None:
        return softmax_scale
    dims: int = q.shape[-1] + (0 if qv is None else qv.shape[-1])
    return float(dims**-0.5)


def with_qv(q: Tensor, k: Tensor, v: Tensor, qv: Tensor | None) -> tuple[Tensor, Tensor]:
    """(q, k) whose products are q · k + qv · v: one product over the head dims of both."""
    if qv is None:
        return q, k
    check_qv(q, v, qv)
    return torch.cat([q, qv], dim=-1), torch.cat([k, v], dim=-1)


def check_qv(q: Tensor, v: Tensor, qv: Tensor) -> None:
    """qv is like q, with the head dim of v."""
    check_tensor("qv", qv, q.dim(), "like that of q, with the head dim of v")
    if qv.shape != (*q.shape[:-1], v.shape[-1]) or qv.dtype != q.dtype or qv.device != q.device:
        expected = f"a {str(q.dtype).removeprefix('torch.')} tensor of shape {(*q.shape[:-1], v.shape[-1])}, beside q"
        raise FlashAttnArgumentError("qv", describe(qv), expected)
