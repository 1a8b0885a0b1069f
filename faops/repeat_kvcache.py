"""The short path of a repeated KV-cache call, as faops/repeat.py is for faops.attention().

A model makes the same call in every layer for every token: alike in shapes, strides, dtypes, devices and options, with
other values. What depends on these alone, validation and the plan, is kept under one key. What depends on values and on
memory is checked in every call.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from faops import dispatch, execute
from faops.autotune.cache import misses
from faops.device import detect
from faops.errors import UnavailableError
from faops.inputs import DecodeInputs
from faops.ops import PLAIN_TYPES, dispatch_modes, is_plain
from faops.repeat import autocasts, transforms
from faops.validate_cache import check_cache_inputs

Key = tuple[object, ...]
Run = Callable[..., Any]


def key_of(tensors: tuple[Any, ...], options: tuple[Any, ...]) -> Key | None:
    """All of a call but the values in its tensors; None for a call that is to go the long way.

    ``tensors`` are q, k_cache, v_cache and then those that may be None or, as cache_seqlens, a number.
    """
    if (
        torch.compiler.is_compiling()  # first: the rest cannot be traced
        or type(tensors[0]) not in PLAIN_TYPES
        or type(tensors[1]) not in PLAIN_TYPES
        or type(tensors[2]) not in PLAIN_TYPES
        or dispatch_modes()
        or transforms()
        or autocasts()
    ):
        return None
    try:
        described = [
            None if tensor is None
            else (*tensor.shape, tensor.stride(), tensor.dtype, tensor.device, tensor.requires_grad)
            if isinstance(tensor, Tensor)
            else type(tensor)
            for tensor in tensors
        ]  # fmt: skip
    except RuntimeError:  # sparse and nested tensors have no strides
        return None
    return (*described, options, *map(type, options), torch.is_grad_enabled(), torch.get_num_threads())


def find(key: Key | None) -> Run | None:
    """What runs the call, if one like it was made before."""
    try:
        return None if key is None else dispatch.memo().get(key)
    except TypeError:  # an unhashable option, such as a list as window, or something that validation will name
        return None


def remember(key: Key | None, arguments: tuple[Any, ...], heads_first: bool) -> None:
    """Keep the plan of a call that has just succeeded, with its validated arguments of DecodeInputs.

    What :func:`find` gives then takes the tensors as the caller has them, in the order of DecodeInputs without bias and
    mask, and returns (out, lse).
    """
    if key is None or not _hashable(key) or _wants_gradient(arguments):
        return
    inputs = DecodeInputs(*arguments)
    if not is_plain(inputs.q, inputs.k_cache, inputs.v_cache):
        return
    problem, device = inputs.problem(), detect(inputs.q.device)
    plan = dispatch.plan(problem, device, inputs.backend)
    numbers = arguments[_NUMBERS:]
    launch, config = plan.kernel.launch, plan.config
    tally = misses.tally(problem, device, plan)

    def run(q: Tensor, k_cache: Tensor, v_cache: Tensor, k: Tensor | None, v: Tensor | None, *others: Any) -> Any:
        if heads_first:
            q, k_cache, v_cache = q.transpose(1, 2), k_cache.transpose(1, 2), v_cache.transpose(1, 2)
            if k is not None and v is not None:
                k, v = k.transpose(1, 2), v.transpose(1, 2)
        inputs = DecodeInputs(*(q, k_cache, v_cache, k, v, *others[:-1], None, None, others[-1], *numbers))
        check_cache_inputs(inputs)
        try:
            result = launch(inputs, config)
        except UnavailableError:
            return execute.decode(inputs)  # which finds another kernel, or says the same
        if tally is not None and next(tally.ticks, True):
            tally.write()
        return result

    dispatch.memo()[key] = run


def _wants_gradient(arguments: tuple[Any, ...]) -> bool:
    """Whether one might be recorded: the long way keeps it from being, and refuses it."""
    return torch.is_grad_enabled() and any(isinstance(one, Tensor) and one.requires_grad for one in arguments)


def _hashable(key: Key) -> bool:
    try:
        hash(key)
    except TypeError:
        return False
    return True


_NUMBERS = [*DecodeInputs.__dataclass_fields__].index("window_left")
