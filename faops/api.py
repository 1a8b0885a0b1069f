"""The public calls: validate, describe, dispatch.

What every option means stands in docs/semantics.md. Notation: B batch, M and N query and key length, H and Hk query and
key/value heads, D and Dv head dims.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from faops import dispatch, ops, repeat, validate
from faops.device import DeviceProfile, detect, known
from faops.dispatch import Explanation
from faops.errors import ArgumentError
from faops.inputs import AttentionInputs
from faops.problem import AttentionProblem

Window = tuple[int | None, int | None]


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = False,
    window: Window = (-1, -1),
    scale: float | None = None,
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    sinks: Tensor | None = None,
    dropout_p: float = 0.0,
    generator: torch.Generator | None = None,
    deterministic: bool = False,
    q_descale: Tensor | None = None,
    k_descale: Tensor | None = None,
    v_descale: Tensor | None = None,
    layout: str = "bshd",
    return_lse: bool = False,
    backend: str | None = None,
) -> Any:
    """Fused attention: softmax(scale · q kᵀ, masked) v, by the best kernel for these tensors and this device.

    Args:
        q: (B, M, H, D); float16, bfloat16, float32 or float64. The last axis is contiguous, others have any stride.
        k: (B, N, Hk, D), Hk divides H: query head h reads key/value head h // (H // Hk).
        v: (B, N, Hk, Dv).
        causal: keep keys j <= i + N - M (aligned bottom-right).
        window: (left, right), inclusive; -1 or None is unlimited. Causal forces right to 0.
        scale: factor of the scores; D ** -0.5 if None.
        softcap: c > 0 turns scores into c · tanh(score / c), before bias and mask.
        alibi_slopes: float32 (H,) or (B, H); adds -slope · abs(i + N - M - j).
        bias: floating, broadcastable to (B, H, M, N), added to the scores. Has a gradient.
        mask: bool, broadcastable to (B, H, M, N); True is visible.
        sinks: (H,), one logit a head that joins the softmax denominator. Has a gradient.
        dropout_p: probability of dropping a probability; the kept ones are scaled by 1 / (1 - p).
        generator: source of the dropout seed; torch's default one if None.
        deterministic: ask for a bitwise repeatable backward.
        q_descale, k_descale, v_descale: float32 (B, Hk), with float8_e4m3fn inputs only.
        layout: "bshd" as above, or "bhsd" for (B, H, M, D) tensors.
        return_lse: also return the log-sum-exp, natural log, float32 (float64 for float64), (B, H, M).
        backend: a backend or kernel to force (`faops kernels`), or None to choose.

    Returns:
        out of shape (B, M, H, Dv) in q's dtype and layout, or (out, lse). A row without a key gives out 0, lse -inf.

    Raises:
        ArgumentError: an argument is wrong; also a ValueError.
        NoKernelError: nothing can run this; lists every kernel's reasons.
    """
    options = None
    if (
        alibi_slopes is None
        and bias is None
        and mask is None
        and sinks is None
        and dropout_p == 0.0
        and q_descale is None
        and k_descale is None
        and v_descale is None
        and not torch.compiler.is_compiling()
    ):
        options = (causal, window, scale, softcap, deterministic, layout, return_lse, backend)
        run = repeat.find(q, k, v, options)
        if run is not None:
            return run(q, k, v)
    arguments = _dense_arguments(
        q, k, v, causal, window, scale, softcap, alibi_slopes, bias, mask, sinks, dropout_p, generator,
        deterministic, q_descale, k_descale, v_descale, layout, return_lse, backend,
    )  # fmt: skip
    out, lse = ops.attention(*arguments)
    if options is not None:
        repeat.remember(q, k, v, options, arguments)
    if layout == "bhsd":
        out = out.transpose(1, 2)
    return (out, lse) if return_lse else out


def _dense_arguments(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    causal: bool = False,
    window: Window = (-1, -1),
    scale: float | None = None,
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    sinks: Tensor | None = None,
    dropout_p: float = 0.0,
    generator: torch.Generator | None = None,
    deterministic: bool = False,
    q_descale: Tensor | None = None,
    k_descale: Tensor | None = None,
    v_descale: Tensor | None = None,
    layout: str = "bshd",
    return_lse: bool = False,
    backend: str | None = None,
) -> tuple[Any, ...]:
    """The validated arguments of :class:`faops.inputs.AttentionInputs` for a call of :func:`attention`."""
    validate.check_layout(layout)
    q, k, v = _autocast(q, k, v)
    if layout == "bhsd":
        for name, tensor in (("q", q), ("k", k), ("v", v)):
            validate.check_tensor(name, tensor, 4, "(batch, heads, seqlen, head_dim)")
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    validate.check_dense(q, k, v)
    seqlen_q, seqlen_k = q.shape[1], k.shape[1]
    left, right = validate.band_sides(causal, window)
    scale = validate.check_numbers(scale, softcap, dropout_p, q.shape[-1])
    if not (alibi_slopes is None and bias is None and mask is None and sinks is None):
        sizes = (q.shape[0], q.shape[2], seqlen_q, seqlen_k)
        bias, mask = validate.check_score_features(q, sizes, alibi_slopes, bias, mask, sinks)
    _check_descales(q, k, q.shape[0], q_descale, k_descale, v_descale)
    rng = _draw_rng(generator, q.device) if dropout_p > 0 else None
    need_lse = return_lse or _needs_gradient(q, k, v, bias, sinks)
    return (
        q, k, v, alibi_slopes, bias, mask, sinks, None, None, rng, seqlen_q, seqlen_k, left, right, scale,
        float(softcap), float(dropout_p), deterministic, need_lse, backend or "", q_descale, k_descale, v_descale,
    )  # fmt: skip


def attention_varlen(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    *,
    causal: bool = False,
    window: Window = (-1, -1),
    scale: float | None = None,
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    sinks: Tensor | None = None,
    dropout_p: float = 0.0,
    generator: torch.Generator | None = None,
    deterministic: bool = False,
    q_descale: Tensor | None = None,
    k_descale: Tensor | None = None,
    v_descale: Tensor | None = None,
    layout: str = "bshd",
    return_lse: bool = False,
    backend: str | None = None,
) -> Any:
    """Attention over sequences packed one behind the other, each attending to itself alone.

    Sequence b has rows cu_seqlens_q[b] to cu_seqlens_q[b + 1] and likewise for keys; lengths may differ and be 0.

    Args:
        q: (total_q, H, D), or (H, total_q, D) with layout "bhsd"; k (total_k, Hk, D), v (total_k, Hk, Dv) likewise.
        cu_seqlens_q: int32 (B + 1,), offsets that start at 0 and do not decrease.
        cu_seqlens_k: the same for keys. Both may be on the CPU when q is on an NPU, whose operators want them there.
        max_seqlen_q: at least the longest query sequence; max_seqlen_k: at least the longest key sequence.
        bias, mask: broadcastable to (B, H, max_seqlen_q, max_seqlen_k), indexed by position in the sequence.

    All other arguments, and what is raised, as in :func:`attention`. Rows behind the last sequence come back as 0.

    Returns:
        out (total_q, H, Dv), or (out, lse) with lse (H, total_q).
    """
    validate.check_layout(layout)
    q, k, v = _autocast(q, k, v)
    if layout == "bhsd":
        for name, tensor in (("q", q), ("k", k), ("v", v)):
            validate.check_tensor(name, tensor, 3, "(heads, total, head_dim)")
        q, k, v = q.transpose(0, 1), k.transpose(0, 1), v.transpose(0, 1)
    validate.check_varlen(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
    left, right = validate.band_sides(causal, window)
    scale = validate.check_numbers(scale, softcap, dropout_p, q.shape[-1])
    batch = cu_seqlens_q.shape[0] - 1
    sizes = (batch, q.shape[1], max_seqlen_q, max_seqlen_k)
    bias, mask = validate.check_score_features(q, sizes, alibi_slopes, bias, mask, sinks)
    _check_descales(q, k, batch, q_descale, k_descale, v_descale)
    rng = _draw_rng(generator, q.device) if dropout_p > 0 else None
    need_lse = return_lse or _needs_gradient(q, k, v, bias, sinks)
    out, lse = ops.attention(
        q, k, v, alibi_slopes, bias, mask, sinks, cu_seqlens_q, cu_seqlens_k, rng, max_seqlen_q, max_seqlen_k,
        left, right, scale, float(softcap), float(dropout_p), deterministic, need_lse, backend or "",
        q_descale, k_descale, v_descale,
    )  # fmt: skip
    if layout == "bhsd":
        out = out.transpose(0, 1)
    return (out, lse) if return_lse else out


def _needs_gradient(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


def _check_descales(q: Tensor, k: Tensor, batch: int, *descales: Tensor | None) -> None:
    if any(descale is not None for descale in descales):
        validate.check_descales(q, k.shape[-2], batch, dict(zip(("q_descale", "k_descale", "v_descale"), descales)))


def _autocast(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Under autocast, q, k and v in its dtype, as torch does for its own attention; float64 stays."""
    # Autocast has no opinion on meta tensors, and asking it raises.
    if not isinstance(q, Tensor) or q.is_meta or not torch.is_autocast_enabled(q.device.type):
        return q, k, v
    dtype = torch.get_autocast_dtype(q.device.type)

    def cast(tensor: Tensor) -> Tensor:
        return tensor.to(dtype) if tensor.is_floating_point() and tensor.dtype != torch.float64 else tensor

    return cast(q), cast(k), cast(v)


def _draw_rng(generator: torch.Generator | None, device: torch.device) -> Tensor:
    """Seed and offset of one call's dropout mask, int64 (2,) on the device, without a synchronisation."""
    if generator is not None and generator.device.type != device.type:
        raise ArgumentError("generator", f"a generator on {generator.device}", f"one on q's device, {device}")
    return torch.randint(-(2**63), 2**63 - 1, (2,), generator=generator, device=device, dtype=torch.int64)


def explain(
    problem: AttentionProblem | Tensor,
    k: Tensor | None = None,
    v: Tensor | None = None,
    *,
    device: DeviceProfile | torch.device | str | None = None,
    backend: str | None = None,
    **options: Any,
) -> Explanation:
    """Which kernel and config a call gets and why, and what every other kernel says.

    Args:
        problem: an AttentionProblem, or q, followed by k, v and the options of :func:`attention`.
        device: where to plan for: a torch device, a profile, or a known device's name such as "t4" or "h200"; by
            default the tensors' own device, or the CPU.
        backend: as in :func:`attention`.
    """
    if isinstance(problem, Tensor):
        if k is None or v is None:
            raise ArgumentError("k, v", "None", "the key and value tensors that go with q")
        where = problem.device if device is None else device
        described = AttentionInputs(*_dense_arguments(problem, k, v, **options)).problem()
    else:
        if options or k is not None:
            raise ArgumentError("options", ", ".join(options) or "k", "nothing beside an AttentionProblem")
        where = "cpu" if device is None else device
        described = problem
    return dispatch.explain(described, _profile(where), backend or "")


def _profile(device: DeviceProfile | torch.device | str) -> DeviceProfile:
    if isinstance(device, DeviceProfile):
        return device
    try:
        return detect(torch.device(device))
    except RuntimeError:
        return known(str(device))
