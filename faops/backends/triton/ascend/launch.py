"""Launching a kernel on an NPU the way triton-ascend does it, or in Triton's interpreter where tensors are on a CPU.

``kernel[grid](...)`` finds out the types of some sixty arguments anew at every call. A way round it, as for NVIDIA
GPUs, would have to know the inside of a driver that could not be tried.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable
from typing import Any

import torch

from faops.backends.triton import launch as shared
from faops.backends.triton import versions
from faops.backends.triton.launch import MEMO_LIMIT, Launch, Tensors
from faops.errors import LaunchError, UnavailableError

_known: dict[Hashable, Callable[[Tensors], None]] = {}


def launch(key: Hashable, tensors: Tensors, build: Callable[[], Launch]) -> None:
    """Enqueue a kernel on the current stream of the tensors' NPU, or interpret it where they are on the CPU.

    ``key`` stands for all that ``build`` returns, and for each tensor's dtype and alignment; ``build`` is only called
    for a new key. Raises UnavailableError where the kernel does not compile or load, and LaunchError where it did and
    is refused later.
    """
    assert tensors[0] is not None
    device = tensors[0].device
    if device.type == "cpu":
        if not versions.interpreted():
            raise UnavailableError("it runs on Ascend NPUs; TRITON_INTERPRET=1 runs it on a CPU, slowly")
        shared.launch(key, tensors, build)
        return
    run = _known.get((device, key))
    with _current(device):
        if run is None:
            _first(device, key, tensors, build())
        else:
            _again(run, tensors)


def _first(device: torch.device, key: Hashable, tensors: Tensors, made: Launch) -> None:
    """Compile and launch, and remember how."""
    run = _bound(made, len(tensors))
    try:
        run(tensors)
    except Exception as error:  # the compiler raises errors of many classes, and so do the tools that it runs
        raise UnavailableError(f"{made.kernel} does not compile or load: {type(error).__name__}: {error}") from error
    if len(_known) >= MEMO_LIMIT:
        _known.clear()
    _known[device, key] = run


def _again(run: Callable[[Tensors], None], tensors: Tensors) -> None:
    try:
        run(tensors)
    except RuntimeError as error:
        raise LaunchError(f"the driver refused to launch the Ascend kernel: {error}") from error


def _bound(made: Launch, count: int) -> Callable[[Tensors], None]:
    """Launches with other tensors in the place of the first ``count`` arguments."""
    kernel, rest = made.function()[made.grid], made.arguments((None,) * count)[count:]
    # No num_warps and no num_stages: triton-ascend has neither and warns of them.
    return lambda tensors: kernel(*tensors, *rest, **made.options)


def _current(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Makes ``device`` the one that triton-ascend launches on."""
    npu: Any = getattr(torch, "npu")  # noqa: B009 (set by torch_npu, unknown to type checkers)
    if npu.current_device() == device.index:
        return contextlib.nullcontext()
    return npu.device(device.index)  # type: ignore[no-any-return]
