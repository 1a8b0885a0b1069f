"""Checks of what a caller passes. Every failure names the argument, what it was and what it must be."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from faops import settings
from faops.errors import ArgumentError
from faops.problem import DTYPE_NAMES, UNLIMITED, require_dtype

if TYPE_CHECKING:
    from faops.inputs import AttentionInputs

LAYOUTS = ("bshd", "bhsd")
MAX_LENGTH = 2**31 - 1  # lengths travel as int32 in cu_seqlens and cache_seqlens
CPU = torch.device("cpu")
HOST_LENGTHS = ("npu",)  # device types whose operators take lengths as host numbers: they may as well come from there


def describe(tensor: object) -> str:
    """A tensor as error messages show it: dtype, shape and device; anything else by its repr."""
    if isinstance(tensor, Tensor):
        return f"{str(tensor.dtype).removeprefix('torch.')} tensor of shape {tuple(tensor.shape)} on {tensor.device}"
    return repr(tensor)


def check_tensor(name: str, tensor: object, rank: int, meaning: str) -> None:
    """A tensor of ``rank`` axes with a contiguous last one, of a supported dtype."""
    if not isinstance(tensor, Tensor):
        raise ArgumentError(name, repr(tensor), f"a tensor of shape {meaning}")
    if tensor.dim() != rank:
        raise ArgumentError(name, describe(tensor), f"{rank} axes, {meaning}")
    require_dtype(name, tensor.dtype)
    if tensor.stride(-1) != 1 and tensor.shape[-1] > 1:
        raise ArgumentError(
            name, f"stride {tuple(tensor.stride())}", "a contiguous last axis (stride 1); call .contiguous()"
        )


def check_same(name: str, tensor: Tensor, like: Tensor, like_name: str = "q") -> None:
    """The dtype and device of ``like``."""
    if tensor.dtype != like.dtype:
        raise ArgumentError(name, f"dtype {tensor.dtype}", f"the dtype of {like_name}, {like.dtype}")
    check_device(name, tensor, like, like_name)


def check_device(name: str, tensor: Tensor, like: Tensor, like_name: str = "q") -> None:
    if tensor.device != like.device:
        raise ArgumentError(name, f"a tensor on {tensor.device}", f"the device of {like_name}, {like.device}")


def check_heads(q: Tensor, k: Tensor, v: Tensor, names: tuple[str, str] = ("k", "v")) -> None:
    """Head counts and head dims of (..., heads, dim) tensors."""
    heads_q, heads_kv = q.shape[-2], k.shape[-2]
    if heads_q < 1:
        raise ArgumentError("q", describe(q), "at least one head")
    if heads_kv < 1 or heads_q % heads_kv:
        expected = f"a number of heads that divides q's {heads_q}"
        raise ArgumentError(names[0], f"{heads_kv} heads, shape {tuple(k.shape)}", expected)
    if q.shape[-1] < 1:
        raise ArgumentError("q", describe(q), "a head_dim of at least 1")
    if k.shape[-1] != q.shape[-1]:
        raise ArgumentError(names[0], f"head_dim {k.shape[-1]}", f"the head_dim of q, {q.shape[-1]}")
    if v.shape[-2] != heads_kv:
        raise ArgumentError(
            names[1], f"{v.shape[-2]} heads, shape {tuple(v.shape)}", f"the heads of {names[0]}, {heads_kv}"
        )
    if v.shape[-1] < 1:
        raise ArgumentError(names[1], describe(v), "a head_dim of at least 1")


def check_dense(q: Tensor, k: Tensor, v: Tensor) -> None:
    """q (B, M, H, D), k (B, N, Hk, D), v (B, N, Hk, Dv)."""
    if _dense_fits(q, k, v):
        return
    check_tensor("q", q, 4, "(batch, seqlen_q, heads, head_dim)")
    check_tensor("k", k, 4, "(batch, seqlen_k, heads_kv, head_dim)")
    check_tensor("v", v, 4, "(batch, seqlen_k, heads_kv, head_dim_v)")
    check_same("k", k, q)
    check_same("v", v, q)
    check_heads(q, k, v)
    if k.shape[0] != q.shape[0]:
        raise ArgumentError("k", f"batch {k.shape[0]}", f"the batch of q, {q.shape[0]}")
    if v.shape[:2] != k.shape[:2]:
        raise ArgumentError("v", f"(batch, seqlen_k) {tuple(v.shape[:2])}", f"those of k, {tuple(k.shape[:2])}")


def _dense_fits(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether the three fit together. It is on every call's path, so finding out what is wrong is left to others."""
    if not (isinstance(q, Tensor) and isinstance(k, Tensor) and isinstance(v, Tensor)):
        return False
    shape_q, shape_k, shape_v = q.shape, k.shape, v.shape
    return (
        len(shape_q) == len(shape_k) == len(shape_v) == 4
        and shape_q[0] == shape_k[0]
        and shape_k[:3] == shape_v[:3]
        and shape_k[2] > 0
        and shape_q[2] > 0
        and shape_q[2] % shape_k[2] == 0
        and shape_q[3] == shape_k[3]
        and shape_q[3] > 1
        and shape_v[3] > 1
        and q.stride(3) == k.stride(3) == v.stride(3) == 1
        and q.dtype == k.dtype == v.dtype
        and q.dtype in DTYPE_NAMES
        and q.device == k.device == v.device
    )


def check_varlen(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, max_seqlen_q: int, max_seqlen_k: int
) -> None:
    """q (total_q, H, D), k (total_k, Hk, D), v (total_k, Hk, Dv) and their offsets; not yet the offsets' values."""
    check_tensor("q", q, 3, "(total_q, heads, head_dim)")
    check_tensor("k", k, 3, "(total_k, heads_kv, head_dim)")
    check_tensor("v", v, 3, "(total_k, heads_kv, head_dim_v)")
    check_same("k", k, q)
    check_same("v", v, q)
    check_heads(q, k, v)
    if v.shape[0] != k.shape[0]:
        raise ArgumentError("v", f"{v.shape[0]} tokens", f"the tokens of k, {k.shape[0]}")
    for name, offsets in (("cu_seqlens_q", cu_seqlens_q), ("cu_seqlens_k", cu_seqlens_k)):
        check_index(name, offsets, q, (None,), "(batch + 1,)")
        if offsets.shape[0] < 1:
            raise ArgumentError(name, describe(offsets), "at least one offset, the leading 0")
    if cu_seqlens_k.shape != cu_seqlens_q.shape:
        expected = f"as many offsets as cu_seqlens_q, {cu_seqlens_q.shape[0]}"
        raise ArgumentError("cu_seqlens_k", f"{cu_seqlens_k.shape[0]} offsets", expected)
    for name, length in (("max_seqlen_q", max_seqlen_q), ("max_seqlen_k", max_seqlen_k)):
        check_length(name, length)


def check_length(name: str, length: object) -> None:
    if isinstance(length, bool) or not isinstance(length, int | torch.SymInt) or length < 0 or length > MAX_LENGTH:
        raise ArgumentError(name, repr(length), f"an int between 0 and {MAX_LENGTH}")


def check_index(name: str, tensor: object, like: Tensor, shape: tuple[int | None, ...], meaning: str) -> None:
    """An int32 tensor of the given shape (None is any size) on the device of ``like``, or where lengths are wanted."""
    if not isinstance(tensor, Tensor) or tensor.dtype != torch.int32:
        raise ArgumentError(name, describe(tensor), f"an int32 tensor of shape {meaning}")
    if tensor.dim() != len(shape) or any(want is not None and want != have for want, have in zip(shape, tensor.shape)):
        raise ArgumentError(name, describe(tensor), f"shape {meaning}")
    if like.device.type not in HOST_LENGTHS:
        check_device(name, tensor, like)
    elif tensor.device not in (like.device, CPU):
        raise ArgumentError(name, f"a tensor on {tensor.device}", f"the device of q, {like.device}, or the CPU")


def band_sides(causal: object, window: object) -> tuple[int, int]:
    """(left, right) of causal and window, -1 where unlimited."""
    if not isinstance(causal, bool):
        raise ArgumentError("causal", repr(causal), "True or False")
    if not isinstance(window, tuple | list) or len(window) != 2:
        raise ArgumentError("window", repr(window), "a pair (left, right)")
    left, right = (UNLIMITED if side is None else side for side in window)
    for side in (left, right):
        if isinstance(side, bool) or not isinstance(side, int | torch.SymInt) or side < UNLIMITED:
            raise ArgumentError("window", repr(window), "two ints of 0 or more, or -1 or None for unlimited")
    return left, 0 if causal else right


def check_numbers(scale: float | None, softcap: float, dropout_p: float, head_dim: int) -> float:
    """The scale that applies: the one given, or head_dim ** -0.5."""
    # Comparisons and not isfinite(), which torch.compile cannot trace for a number that changes between calls.
    if not _is_number(softcap) or not 0.0 <= softcap < math.inf:
        raise ArgumentError("softcap", repr(softcap), "a finite number of 0 (off) or more")
    if not _is_number(dropout_p) or not 0.0 <= dropout_p < 1.0:
        raise ArgumentError("dropout_p", repr(dropout_p), "a probability in [0, 1)")
    if scale is None:
        default: float = float(head_dim) ** -0.5
        return default
    if not _is_number(scale) or not -math.inf < scale < math.inf:
        raise ArgumentError("scale", repr(scale), "a finite number or None")
    return float(scale)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float | torch.SymFloat | torch.SymInt) and not isinstance(value, bool)


def check_score_features(
    q: Tensor,
    sizes: tuple[int, int, int, int],
    alibi_slopes: Tensor | None,
    bias: Tensor | None,
    mask: Tensor | None,
    sinks: Tensor | None,
) -> tuple[Tensor | None, Tensor | None]:
    """bias and mask as 4-D tensors; ``sizes`` is (B, H, M, N)."""
    batch, heads = sizes[0], sizes[1]
    if alibi_slopes is not None:
        if not isinstance(alibi_slopes, Tensor) or alibi_slopes.dtype != torch.float32:
            raise ArgumentError(
                "alibi_slopes", describe(alibi_slopes), "a float32 tensor of shape (heads,) or (batch, heads)"
            )
        if tuple(alibi_slopes.shape) not in ((heads,), (batch, heads)):
            raise ArgumentError("alibi_slopes", describe(alibi_slopes), f"shape ({heads},) or ({batch}, {heads})")
        check_device("alibi_slopes", alibi_slopes, q)
        if alibi_slopes.requires_grad and torch.is_grad_enabled():
            raise ArgumentError(
                "alibi_slopes", "a tensor that requires grad", "fixed slopes; they get no gradient (detach them)"
            )
    if sinks is not None:
        if not isinstance(sinks, Tensor) or tuple(sinks.shape) != (heads,) or not sinks.is_floating_point():
            raise ArgumentError("sinks", describe(sinks), f"a floating-point tensor of shape ({heads},)")
        check_device("sinks", sinks, q)
    if bias is not None:
        if not isinstance(bias, Tensor) or not bias.is_floating_point():
            raise ArgumentError("bias", describe(bias), "a floating-point tensor; pass a boolean one as mask=")
        bias = _as_pairs("bias", bias, sizes, q)
    if mask is not None:
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            raise ArgumentError(
                "mask", describe(mask), "a bool tensor (True is visible); pass an additive one as bias="
            )
        mask = _as_pairs("mask", mask, sizes, q)
    return bias, mask


def _as_pairs(name: str, tensor: Tensor, sizes: tuple[int, int, int, int], q: Tensor) -> Tensor:
    """A 4-D view of a tensor that broadcasts to (B, H, M, N)."""
    check_device(name, tensor, q)
    fits = tensor.dim() <= 4 and all(
        have == 1 or have == want for have, want in zip(reversed(tensor.shape), reversed(sizes))
    )
    if not fits:
        raise ArgumentError(name, describe(tensor), f"a shape that broadcasts to (batch, heads, M, N) = {tuple(sizes)}")
    return tensor[(None,) * (4 - tensor.dim())] if tensor.dim() < 4 else tensor


def check_layout(layout: object) -> None:
    if layout not in LAYOUTS:
        raise ArgumentError("layout", repr(layout), f"one of {', '.join(LAYOUTS)}")


def check_descales(q: Tensor, heads_kv: int, batch: int, descales: dict[str, Tensor | None]) -> None:
    """fp8 descales: float32 (B, Hk), and only with fp8 inputs."""
    for name, descale in descales.items():
        if descale is None:
            continue
        if q.dtype != torch.float8_e4m3fn:
            raise ArgumentError(name, describe(descale), f"None, because q is {q.dtype} and not torch.float8_e4m3fn")
        if descale.dtype != torch.float32 or tuple(descale.shape) != (batch, heads_kv):
            raise ArgumentError(name, describe(descale), f"a float32 tensor of shape ({batch}, {heads_kv})")
        check_device(name, descale, q)


def may_read(tensor: Tensor) -> bool:
    """Whether to look at a tensor's values: free on the CPU, a synchronisation elsewhere and so only on request."""
    return tensor.device.type == "cpu" or bool(settings.get("check_values"))


def check_sequence_values(inputs: AttentionInputs) -> None:
    """cu_seqlens start at 0, do not decrease, stay inside the tensors and fit the stated maxima."""
    assert inputs.cu_seqlens_q is not None and inputs.cu_seqlens_k is not None
    for side, offsets, tensor, longest in (
        ("q", inputs.cu_seqlens_q, inputs.q, inputs.max_seqlen_q),
        ("k", inputs.cu_seqlens_k, inputs.k, inputs.max_seqlen_k),
    ):
        if not may_read(offsets):
            continue
        name, values = f"cu_seqlens_{side}", offsets.tolist()
        if values[0] != 0:
            raise ArgumentError(name, f"a first offset of {values[0]}", "offsets that start at 0")
        for before, after in itertools.pairwise(values):
            if after < before:
                raise ArgumentError(name, f"{after} after {before}", "offsets that do not decrease")
            if after - before > longest:
                raise ArgumentError(
                    f"max_seqlen_{side}", longest, f"at least {after - before}, the longest sequence in {name}"
                )
        if values[-1] > tensor.shape[0]:
            raise ArgumentError(
                name, f"a last offset of {values[-1]}", f"at most {tensor.shape[0]}, the tokens of {side}"
            )


def check_range(name: str, values: list[int], last: int, meaning: str) -> None:
    """Every value lies in [0, last]."""
    for value in values:
        if not 0 <= value <= last:
            raise ArgumentError(name, value, f"between 0 and {last} ({meaning})")
