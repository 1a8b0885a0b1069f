"""The short path of a repeated call.

A call of faops.attention() with the same shapes, strides, dtypes, devices and options as an earlier one needs no
validation and no planning: one dict look-up finds what to launch. It serves plain eager calls, with and without
gradients, that have no further tensors; everything else takes the long path, which costs the host some 15 µs more.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor

from faops import dispatch
from faops.autotune.cache import misses
from faops.device import detect
from faops.inputs import AttentionInputs
from faops.ops import PLAIN_TYPES, dispatch_modes, is_plain, with_gradient

Run = Callable[[Tensor, Tensor, Tensor], Any]

autocasts = getattr(torch._C, "_is_any_autocast_enabled", lambda: True)
transforms = torch._C._are_functorch_transforms_active


def find(q: Tensor, k: Tensor, v: Tensor, options: tuple[Any, ...]) -> Run | None:
    """What runs the call, if an equal one was made before. Written flat, for it is what every call waits for."""
    if (
        type(q) not in PLAIN_TYPES
        or type(k) not in PLAIN_TYPES
        or type(v) not in PLAIN_TYPES
        or dispatch_modes()
        or transforms()
        or autocasts()
    ):
        return None
    try:
        found: Run | None = dispatch.memo().get(_key(q, k, v, options))
    except TypeError:  # an unhashable option, such as a list as window, or something that validation will name
        return None
    return found


def _key(q: Tensor, k: Tensor, v: Tensor, options: tuple[Any, ...]) -> Hashable:
    return (
        options, q.shape, k.shape, v.shape, q.stride(), k.stride(), v.stride(), q.dtype, k.dtype, v.dtype,
        q.device, k.device, v.device, torch.get_num_threads(), _needs_gradient(q, k, v),
    )  # fmt: skip


def _needs_gradient(q: Tensor, k: Tensor, v: Tensor) -> bool:
    return torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)


def remember(q: Tensor, k: Tensor, v: Tensor, options: tuple[Any, ...], arguments: tuple[Any, ...]) -> None:
    """Keep the plan of a call that has just succeeded, with its validated arguments of AttentionInputs."""
    inputs = AttentionInputs(*arguments)
    heads_first, return_lse = options[5] == "bhsd", options[6]
    if not is_plain(q, k, v) or autocasts():
        return
    try:
        key = _key(q, k, v, options)
        hash(key)
    except TypeError:
        return
    problem, device = inputs.problem(), detect(inputs.q.device)
    plan = dispatch.plan(problem, device, inputs.backend)
    numbers = arguments[3:]
    launch, config = plan.kernel.launch, plan.config
    recorded = _needs_gradient(q, k, v)
    tally = misses.tally(problem, device, plan)

    def run(q: Tensor, k: Tensor, v: Tensor) -> Any:
        if heads_first:
            q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        if recorded:
            out, lse = with_gradient(q, k, v, *numbers)  # which counts the call itself
        else:
            out, lse = launch(AttentionInputs(q, k, v, *numbers), config)
            if tally is not None and next(tally.ticks, True):
                tally.write()
        if heads_first:
            out = out.transpose(1, 2)
        return (out, lse) if return_lse else out

    dispatch.memo()[key] = run
