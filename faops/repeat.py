"""The short path of a repeated call.

A call of faops.attention() with the same shapes, strides, dtypes, devices and options as an earlier one needs no
validation and no planning: one dict look-up finds what to launch. It serves plain eager calls without gradients and
without further tensors; everything else takes the long path, which costs the host some 15 µs more.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor

from faops import dispatch
from faops.device import detect
from faops.inputs import AttentionInputs
from faops.ops import is_plain

Key = tuple[Hashable, ...]


def key_of(q: Tensor, k: Tensor, v: Tensor, options: tuple[Any, ...]) -> Key | None:
    """What identifies a call, or None where the short path must not be taken."""
    if not is_plain(q, k, v):
        return None
    if torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad):
        return None
    device = q.device
    if torch.is_autocast_enabled(device.type):
        return None
    key = (
        options, q.shape, k.shape, v.shape, q.stride(), k.stride(), v.stride(), q.dtype, k.dtype, v.dtype,
        device, k.device, v.device, torch.get_num_threads(),
    )  # fmt: skip
    try:
        hash(options)
    except TypeError:  # a list as window, or something that validation will name
        return None
    return key


def find(key: Key) -> Callable[[Tensor, Tensor, Tensor], Any] | None:
    """What runs the call, if an equal one was made before."""
    return dispatch.memo().get(key)


def remember(key: Key, arguments: tuple[Any, ...]) -> None:
    """Keep the plan of a call that has just succeeded, with its validated arguments of AttentionInputs."""
    inputs = AttentionInputs(*arguments)
    plan = dispatch.plan(inputs.problem(), detect(inputs.q.device), inputs.backend)
    options: Any = key[0]
    heads_first, return_lse = options[5] == "bhsd", options[6]
    numbers = arguments[3:]
    launch, config = plan.kernel.launch, plan.config

    def run(q: Tensor, k: Tensor, v: Tensor) -> Any:
        if heads_first:
            q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        out, lse = launch(AttentionInputs(q, k, v, *numbers), config)
        if heads_first:
            out = out.transpose(1, 2)
        return (out, lse) if return_lse else out

    dispatch.memo()[key] = run
