"""A CPU in the place of the CUDA device that flash-attn's tests ask for."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

CAPABILITY = (8, 0)  # an A100's: version 2 tests everything there, version 3 leaves out fp8, which has no kernel here
TOTAL_MEMORY = 16 * 2**30  # the suite leaves out its largest references on a device of this size


def is_cuda(device: Any) -> bool:
    """Whether ``device``, given as to torch, is a CUDA device."""
    if isinstance(device, torch.device):
        return device.type == "cuda"
    return isinstance(device, str) and device.partition(":")[0] == "cuda"


class CudaIsCpu(TorchFunctionMode):
    """While it is entered, torch functions that are given a CUDA device use the CPU."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is Tensor.cuda:
            return args[0]
        if is_cuda(kwargs.get("device")):
            kwargs["device"] = "cpu"
        if func is Tensor.to:
            args = tuple("cpu" if is_cuda(value) else value for value in args)
        return func(*args, **kwargs)


def pretend(patch: pytest.MonkeyPatch) -> None:
    """Answer what the tests ask torch.cuda, for a device of ``CAPABILITY`` and ``TOTAL_MEMORY``."""
    properties = SimpleNamespace(
        total_memory=TOTAL_MEMORY, major=CAPABILITY[0], minor=CAPABILITY[1], multi_processor_count=108
    )
    patch.setattr(torch.cuda, "get_device_capability", lambda device=None: CAPABILITY)
    patch.setattr(torch.cuda, "get_device_properties", lambda device=None: properties)
    patch.setattr(torch.cuda, "synchronize", lambda device=None: None)
    patch.setattr(torch.cuda, "empty_cache", lambda: None)
