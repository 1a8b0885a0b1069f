"""One call of scaled_dot_product_attention, said in the words of :func:`faops.attention`.

PyTorch's function takes (..., H, M, D) tensors whose leading axes broadcast, aligns causal top-left, and adds a
floating mask to the scores. Everything here looks at shapes and options alone, so torch.compile can trace it.
"""

from __future__ import annotations

import sys
from typing import Any, NamedTuple

import torch
from torch import Tensor

import faops

PLAIN_TYPES = (Tensor, torch.nn.Parameter)
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
BIAS_MODULE = "torch.nn.attention.bias"  # slow to import, and imported by whoever made a CausalBias
_broadcast_shapes: Any = torch.broadcast_shapes  # has no types
_exporting = getattr(torch.compiler, "is_exporting", lambda: False)  # since torch 2.7
POSITIONAL = 6  # of the arguments; scale and enable_gqa are keywords only


class Call(NamedTuple):
    """The arguments of scaled_dot_product_attention, with its names and defaults."""

    query: Tensor
    key: Tensor
    value: Tensor
    attn_mask: Tensor | None = None
    dropout_p: float = 0.0
    is_causal: bool = False
    scale: float | None = None
    enable_gqa: bool = False


def obstacle(call: Call) -> str | None:
    """Why PyTorch must run the call itself: the meaning differs, or the error should be PyTorch's. None: faops can."""
    return _surroundings(call) or _tensors(call) or _options(call)


def _surroundings(call: Call) -> str | None:
    """What around the call asks for PyTorch's own function."""
    # torch.nn.attention.sdpa_kernel sets these. cuDNN is left out: switching it off alone is a way around a fault of a
    # driver, and no wish for a certain kernel.
    fused = torch._C._get_flash_sdp_enabled() and torch._C._get_mem_efficient_sdp_enabled()
    if not (fused and torch._C._get_math_sdp_enabled()):
        return "sdpa_kernel asks for certain kernels of PyTorch"
    if torch.compiler.is_compiling():
        return "torch.export keeps to operators of PyTorch" if _exporting() else None
    if torch._C._are_functorch_transforms_active():
        return "a transform of torch.func is active"
    if torch.autograd.forward_ad._current_level >= 0:
        return "forward-mode differentiation is active"
    if torch._C._get_tracing_state() is not None:
        return "torch.jit.trace keeps to operators of PyTorch"
    return None


def _tensors(call: Call) -> str | None:
    query, key, value = call.query, call.key, call.value
    for tensor in (query, key, value):
        if type(tensor) not in PLAIN_TYPES:
            return "a tensor subclass brings its own attention"
        if tensor.is_nested or tensor.layout != torch.strided or tensor.is_meta:
            return "a nested, sparse or meta tensor"
        if tensor.dtype not in DTYPES:
            return f"dtype {str(tensor.dtype).removeprefix('torch.')}"
    if not query.dim() == key.dim() == value.dim() >= 2:
        return "query, key and value have different numbers of axes, or one"
    if key.shape[-1] != query.shape[-1] or value.shape[-2] != key.shape[-2]:
        return "shapes of query, key and value that do not fit"
    if query.shape[:-2] == key.shape[:-2] == value.shape[:-2]:
        return None
    if not all(_broadcast(sizes) for sizes in zip(query.shape[:-3], key.shape[:-3], value.shape[:-3])):
        return "leading axes that do not broadcast"
    return _heads(call) if query.dim() >= 3 else None


def _heads(call: Call) -> str | None:
    heads, heads_k, heads_v = call.query.shape[-3], call.key.shape[-3], call.value.shape[-3]
    if call.enable_gqa:
        if heads_k != heads_v:
            return "key and value with different numbers of heads"
        return None if heads_k > 0 and heads % heads_k == 0 else "heads of key that do not divide those of query"
    return None if _broadcast((heads, heads_k, heads_v)) else "heads that do not broadcast"


def _options(call: Call) -> str | None:
    mask = call.attn_mask
    if type(call.is_causal) is not bool or type(call.enable_gqa) is not bool:
        return "is_causal or enable_gqa is no bool"
    if not isinstance(call.dropout_p, int | float) or not 0 <= call.dropout_p < 1:
        return "dropout_p outside [0, 1)"
    if mask is None:
        return None
    if call.is_causal:
        return "attn_mask beside is_causal"
    if causal_bias(mask):
        fits = (mask.seq_len_q, mask.seq_len_kv) == (call.query.shape[-2], call.key.shape[-2])  # type: ignore[attr-defined]
        return None if fits else "a causal bias made for other lengths"
    if type(mask) not in PLAIN_TYPES:
        return "attn_mask is a tensor subclass"
    if mask.dtype not in (torch.bool, torch.float32, call.query.dtype):
        return "attn_mask has another dtype than bool, float32 or the query's"
    if not 2 <= mask.dim() <= call.query.dim():
        return "attn_mask has one axis, or more than the query"
    return None


def _broadcast(sizes: tuple[int, ...]) -> bool:
    """Whether all sizes are equal, but for ones."""
    wide = [size for size in sizes if size != 1]
    return all(size == wide[0] for size in wide)


def causal_bias(mask: Any) -> bool:
    """Whether a mask is one of torch.nn.attention.bias, which has no values, only a meaning."""
    module = None if type(mask) in PLAIN_TYPES else sys.modules.get(BIAS_MODULE)
    return module is not None and isinstance(mask, module.CausalBias)


def attend(call: Call, backend: str | None) -> Tensor:
    """The call through faops; :func:`obstacle` found none. Raises ArgumentError or NoKernelError where there is one."""
    query, key, value = _same_leading(call)
    grouped, leading = call.enable_gqa, query.shape[:-3]
    seqlen_q, seqlen_k = query.shape[-2], key.shape[-2]
    options: dict[str, Any] = {}
    mask = call.attn_mask
    if call.is_causal or (mask is not None and causal_bias(mask) and _top_left(mask)):
        if seqlen_q < seqlen_k:  # no row sees a key from the M-th on, and the rest is square
            key, value = key[..., :seqlen_q, :], value[..., :seqlen_q, :]
        options["window"] = (-1, max(0, seqlen_q - seqlen_k))
    elif mask is not None and causal_bias(mask):
        options["causal"] = True
    elif mask is not None:
        options["mask" if mask.dtype == torch.bool else "bias"] = _four_axes_mask(mask, query, grouped)
    out: Tensor = faops.attention(
        _four_axes(query, grouped),
        _four_axes(key, grouped),
        _four_axes(value, grouped),
        scale=call.scale,
        dropout_p=float(call.dropout_p),
        deterministic=torch.are_deterministic_algorithms_enabled(),
        layout="bhsd",
        backend=backend,
        **options,
    )
    if query.dim() == 4:
        return out
    return out.reshape(*leading, *query.shape[-3:-1], value.shape[-1])


def _top_left(mask: Any) -> bool:
    return bool(mask.variant == sys.modules[BIAS_MODULE].CausalVariant.UPPER_LEFT)


def _same_leading(call: Call) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value with equal leading axes, and with heads that faops can pair; expanded, not copied."""
    query, key, value = call.query, call.key, call.value
    if query.shape[:-2] == key.shape[:-2] == value.shape[:-2] or query.dim() == 2:
        return query, key, value
    leading = _broadcast_shapes(query.shape[:-3], key.shape[:-3], value.shape[:-3])
    heads, heads_k = query.shape[-3], key.shape[-3]
    if not call.enable_gqa:
        (heads,) = _broadcast_shapes((heads,), (heads_k,), (value.shape[-3],))
        # Of three axes this is the batch; else one head of key and value serves all of the query.
        heads_k = 1 if heads_k == value.shape[-3] == 1 and query.dim() > 3 else heads
    return (
        query.expand(*leading, heads, -1, -1),
        key.expand(*leading, heads_k, -1, -1),
        value.expand(*leading, heads_k, -1, -1),
    )


def _four_axes(tensor: Tensor, grouped: bool) -> Tensor:
    """(B, H, M, D) with a contiguous last axis. Of three axes the first is the batch; the heads if they are grouped."""
    axes = tensor.dim()
    if axes == 3:
        tensor = tensor[None] if grouped else tensor[:, None]
    elif axes == 2:
        tensor = tensor[None, None]
    elif axes > 4:
        tensor = tensor.flatten(0, -4)
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _four_axes_mask(mask: Tensor, query: Tensor, grouped: bool) -> Tensor:
    """A mask for tensors that went through :func:`_four_axes`."""
    if mask.dim() == 3 == query.dim() and not grouped:
        return mask[:, None]
    if max(mask.dim(), query.dim()) <= 4 or mask.dim() < 4:
        return mask
    if all(size == 1 for size in mask.shape[:-3]):
        return mask.flatten(0, -4)
    return mask.expand(*query.shape[:-3], *mask.shape[-3:]).flatten(0, -4)
