"""One small problem run on a kernel and compared with the float64 oracle.

The rule: the error may be a small multiple of the error that PyTorch's own unfused attention makes in the same dtype,
plus a few units in the last place, for where that error happens to be tiny.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from faops import reference
from faops.autotune.measurement.synthetic import inputs_for
from faops.device import DeviceProfile, detect
from faops.inputs import AttentionInputs, BackwardInputs, DecodeInputs
from faops.problem import AttentionProblem, Band, Layout, Op
from faops.registry import Config, Kernel

BATCH, HEADS_Q, HEADS_KV, HEAD_DIM = 2, 4, 2, 64
ERROR_FACTOR = {"forward": 2.0, "decode": 2.0, "backward": 3.0}
ULPS = 8  # of the largest value


@dataclass(frozen=True)
class Outcome:
    """Largest error, and the error allowed, of the result that comes nearest to its bound."""

    error: float
    allowed: float

    @property
    def passed(self) -> bool:
        return self.error <= self.allowed  # False for NaN


def problems(op: Op, device: DeviceProfile) -> list[AttentionProblem]:
    """Small problems of ``op``, the most telling first; the first that a kernel accepts is the one to run."""
    # float16 comes second on a CPU: it is for kernels of an accelerator that is emulated there.
    dtypes = ("float32", "float16") if device.family == "cpu" else ("float16", "float32")
    bands = (Band(), Band(right=0)) if op == "decode" else (Band(right=0), Band())
    lengths = ((1, 48),) if op == "decode" else ((24, 40), (32, 32))
    layouts: tuple[Layout, ...] = ("dense",) if op == "decode" else ("dense", "varlen")
    return [
        AttentionProblem(
            op=op,
            dtype=dtype,
            batch=BATCH,
            seqlen_q=rows,
            seqlen_k=keys,
            heads_q=HEADS_Q,
            heads_kv=HEADS_KV,
            head_dim=HEAD_DIM,
            head_dim_v=HEAD_DIM,
            layout=layout,
            band=band.simplify(rows, keys),
            need_lse=need_lse or op == "backward",
            append=op == "decode",
        )
        for dtype in dtypes
        for layout in layouts
        for band in bands
        for rows, keys in lengths
        for need_lse in (True, False)
    ]


def run(kernel: Kernel, problem: AttentionProblem, device: torch.device) -> Outcome:
    """Run ``kernel`` with its default config on random data for ``problem``, which it must accept.

    Raises whatever the kernel raises.
    """
    config = kernel.default_config(problem, detect(device))
    inputs = inputs_for(problem, device)
    if isinstance(inputs, DecodeInputs):
        got, exact, unfused = _decode(kernel, config, inputs)
    elif isinstance(inputs, BackwardInputs):
        got, exact, unfused = _backward(kernel, config, inputs)
    else:
        got, exact, unfused = _forward(kernel, config, inputs)
    factor = ERROR_FACTOR[problem.op]
    outcomes = [_compare(g, e, u, factor) for g, e, u in zip(got, exact, unfused) if g is not None]
    return max(outcomes, key=_closeness)


Results = tuple[list[Tensor | None], list[Tensor], list[Tensor]]  # from the kernel, the oracle, unfused attention


def _forward(kernel: Kernel, config: Config, inputs: AttentionInputs) -> Results:
    exact, unfused = (_attention(inputs, dtype) for dtype in (torch.float64, inputs.q.dtype))
    with torch.no_grad():
        out, lse = kernel.launch(inputs, config)
    return [out, lse], list(exact), list(unfused)


def _attention(inputs: AttentionInputs, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    options: dict[str, Any] = {
        "window": (inputs.window_left, inputs.window_right),
        "scale": inputs.scale,
        "dtype": dtype,
    }
    if inputs.cu_seqlens_q is None or inputs.cu_seqlens_k is None:
        return reference.attention(inputs.q, inputs.k, inputs.v, **options)
    return reference.attention_varlen(inputs.q, inputs.k, inputs.v, inputs.cu_seqlens_q, inputs.cu_seqlens_k, **options)


def _backward(kernel: Kernel, config: Config, inputs: BackwardInputs) -> Results:
    exact, unfused = (_gradients(inputs, dtype) for dtype in (torch.float64, inputs.dout.dtype))
    with torch.no_grad():
        gradients = kernel.launch(inputs, config)
    return list(gradients[:3]), exact, unfused


def _gradients(inputs: BackwardInputs, dtype: torch.dtype) -> list[Tensor]:
    """dq, dk, dv by autograd."""
    forward = inputs.forward
    leaves = [tensor.detach().to(dtype).requires_grad_() for tensor in (forward.q, forward.k, forward.v)]
    out, _ = _attention(replace(forward, q=leaves[0], k=leaves[1], v=leaves[2]), dtype)
    return list(torch.autograd.grad(out, leaves, inputs.dout.to(dtype)))


def _decode(kernel: Kernel, config: Config, inputs: DecodeInputs) -> Results:
    """Out and lse, and the caches after the new keys and values were written into them."""
    exact, unfused = (_decoded(inputs, dtype) for dtype in (torch.float64, inputs.q.dtype))
    with torch.no_grad():
        out, lse = kernel.launch(inputs, config)
    return [out, lse, inputs.k_cache, inputs.v_cache], exact, unfused


def _decoded(inputs: DecodeInputs, dtype: torch.dtype) -> list[Tensor]:
    return list(
        reference.attention_with_kvcache(
            inputs.q,
            inputs.k_cache,
            inputs.v_cache,
            inputs.k,
            inputs.v,
            cache_seqlens=inputs.cache_seqlens,
            window=(inputs.window_left, inputs.window_right),
            scale=inputs.scale,
            dtype=dtype,
        )
    )


def _compare(got: Tensor, exact: Tensor, unfused: Tensor, factor: float) -> Outcome:
    if got.shape != exact.shape:
        raise ValueError(f"a result has shape {tuple(got.shape)}, expected {tuple(exact.shape)}")
    exact = exact.double()
    largest = float(exact.abs().max())
    allowed = factor * _distance(unfused, exact) + ULPS * torch.finfo(got.dtype).eps * largest
    return Outcome(_distance(got, exact), allowed)


def _distance(values: Tensor, exact: Tensor) -> float:
    return float((values.double() - exact).abs().max())


def _closeness(outcome: Outcome) -> float:
    """How much of what is allowed the error takes; NaN, which no comparison would find, counts as infinite."""
    share = outcome.error / outcome.allowed if outcome.allowed else float(outcome.error > 0)
    return share if share == share else float("inf")
