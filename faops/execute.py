"""Running a validated call: find its plan with one dict look-up, then launch the kernel."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from faops import dispatch
from faops.autotune.cache import misses
from faops.device import detect
from faops.dispatch import Plan
from faops.errors import FaopsWarning, UnavailableError
from faops.hits import Tally
from faops.inputs import AttentionInputs, BackwardInputs, DecodeInputs
from faops.validate import check_sequence_values
from faops.validate_cache import check_cache_inputs


def forward(inputs: AttentionInputs) -> tuple[Tensor, Tensor | None]:
    """(out, lse) of a forward call; lse is None unless it needs one."""
    if inputs.cu_seqlens_q is not None:
        check_sequence_values(inputs)
    key = _forward_key("forward", inputs)
    return _launch(key, inputs, inputs.q, inputs.backend)  # type: ignore[no-any-return]


def backward(inputs: BackwardInputs) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    """(dq, dk, dv, dbias, dsinks) of a backward call; the last two are None unless asked for."""
    if inputs.dout.stride(-1) != 1:  # the gradient of sum() or expand() arrives with stride 0
        inputs.dout = inputs.dout.contiguous()
    key = (*_forward_key("backward", inputs.forward), inputs.dlse is None, inputs.bias_grad)
    return _launch(key, inputs, inputs.dout, inputs.forward.backend)  # type: ignore[no-any-return]


def decode(inputs: DecodeInputs) -> tuple[Tensor, Tensor | None]:
    """(out, lse) of a KV-cache call, after its new keys and values are in the cache."""
    check_cache_inputs(inputs)
    return _launch(_decode_key(inputs), inputs, inputs.q, inputs.backend)  # type: ignore[no-any-return]


def _launch(key: tuple[Any, ...], inputs: Any, like: Tensor, backend: str) -> Any:
    known: tuple[Plan, Tally | None] | None = dispatch.memo().get(key)
    if known is None:
        return _launch_first(key, inputs, like, backend)
    plan, tally = known
    try:
        result = run(plan, inputs, like)
    except UnavailableError as error:
        return _run_another(plan, error, inputs, like, backend)
    if tally is not None and next(tally.ticks, True):
        tally.write()
    return result


def _launch_first(key: tuple[Any, ...], inputs: Any, like: Tensor, backend: str) -> Any:
    """Plan and launch a call that has no plan yet, and write it down for tuning if it ran untuned."""
    problem, device = inputs.problem(), detect(like.device)
    plan = dispatch.plan(problem, device, backend)
    try:
        result = run(plan, inputs, like)
    except UnavailableError as error:
        return _run_another(plan, error, inputs, like, backend)
    tally = misses.record(problem, device, plan)
    dispatch.memo()[key] = plan, tally
    return result


def run(plan: Plan, inputs: Any, like: Tensor) -> Any:
    """Launch a plan's kernel on the device of ``like``."""
    if torch.is_autocast_enabled(like.device.type):
        # The inputs have their final dtype; torch operations inside a kernel must not be recast.
        with torch.autocast(like.device.type, enabled=False):
            return plan.kernel.launch(inputs, plan.config)
    return plan.kernel.launch(inputs, plan.config)


def _run_another(failed: Plan, error: UnavailableError, inputs: Any, like: Tensor, backend: str) -> Any:
    """Plan again, now that a kernel knows it cannot run here. Raises what it said if no other takes its place."""
    dispatch.forget()
    plan = dispatch.plan(inputs.problem(), detect(like.device), backend)
    if plan.kernel is failed.kernel:
        raise error
    warnings.warn(f"{failed.kernel.id} cannot run here, {plan.kernel.id} does: {error}", FaopsWarning, stacklevel=2)
    return run(plan, inputs, like)


def _forward_key(op: str, inputs: AttentionInputs) -> tuple[Any, ...]:
    """Everything that the problem and the device are made from, cheap to read and to hash."""
    q, cu_seqlens = inputs.q, inputs.cu_seqlens_q
    bias, mask = inputs.bias, inputs.mask
    return (
        op,
        q.shape,
        inputs.k.shape,
        inputs.v.shape,
        q.dtype,
        q.device,
        torch.get_num_threads(),
        None if cu_seqlens is None else (cu_seqlens.shape, inputs.max_seqlen_q, inputs.max_seqlen_k),
        inputs.window_left,
        inputs.window_right,
        inputs.softcap > 0,
        inputs.alibi_slopes is None,
        None if bias is None else bias.shape,
        None if mask is None else mask.shape,
        inputs.sinks is None,
        inputs.dropout_p > 0,
        inputs.need_lse,
        inputs.deterministic,
        inputs.backend,
    )


def _decode_key(inputs: DecodeInputs) -> tuple[Any, ...]:
    q, table = inputs.q, inputs.block_table
    bias, mask = inputs.bias, inputs.mask
    return (
        "decode",
        q.shape,
        inputs.k_cache.shape,
        inputs.v_cache.shape,
        None if table is None else table.shape,
        inputs.k is None,
        q.dtype,
        q.device,
        torch.get_num_threads(),
        inputs.window_left,
        inputs.window_right,
        inputs.softcap > 0,
        inputs.alibi_slopes is None,
        None if bias is None else bias.shape,
        None if mask is None else mask.shape,
        inputs.sinks is None,
        inputs.rotary_cos is None,
        inputs.rotary_interleaved,
        inputs.cache_leftpad is None,
        inputs.cache_batch_idx is None,
        inputs.need_lse,
        inputs.backend,
    )
