"""Runs the kernels around and of the KV cache in the emulator: whole calls, or append and combine by themselves."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from faops.inputs import DecodeInputs
from faops.registry import Config
from tests import kvcache
from tests.cuda_raw.support import BACKEND, Launch, emulated
from tests.kvcache import Call

KERNELS = {"t4": "cuda_raw.sm75_decode", "a100": "cuda_raw.sm80_decode"}


def inputs_of(call: Call) -> DecodeInputs:
    """The call as a kernel's ``launch`` gets it, with nothing validated."""
    tensors, options = call.tensors, dict(call.options)
    if options.pop("layout", "bshd") == "bhsd":
        tensors = [None if tensor is None else tensor.transpose(1, 2) for tensor in tensors]
    q, k_cache, v_cache, k, v = tensors
    assert q is not None and k_cache is not None and v_cache is not None
    left, right = options.pop("window", (-1, -1))
    if options.pop("causal", False):
        right = 0
    names = ("cache_seqlens", "cache_batch_idx", "cache_leftpad", "block_table", "rotary_cos", "rotary_sin",
             "alibi_slopes", "bias", "mask", "sinks")  # fmt: skip
    found: dict[str, Any] = {name: options.pop(name, None) for name in names}
    inputs = DecodeInputs(
        q=q, k_cache=k_cache, v_cache=v_cache, k=k, v=v, **found, window_left=left, window_right=right,
        scale=options.pop("scale", q.shape[-1] ** -0.5), softcap=options.pop("softcap", 0.0),
        rotary_interleaved=options.pop("rotary_interleaved", True), num_splits=options.pop("num_splits", 0),
        need_lse=True, backend="",
    )  # fmt: skip
    assert not options, f"not understood: {options}"
    return inputs


def poisoned_like(tensor: Tensor) -> Tensor:
    """A tensor of that shape full of a NaN that no computation gives."""
    words = {2: torch.int16, 4: torch.int32}[tensor.element_size()]
    value = {2: 0x7DAD, 4: 0x7FADDEAD}[tensor.element_size()]
    return torch.full(tensor.shape, value, dtype=words).view(tensor.dtype)


def check_on(card: str, call: Call, config: Config | None = None, mode: str = "run") -> list[Launch]:
    """Hold ``call`` to the accuracy rule on an emulated card; what was launched, the card's own kernel among it."""
    with emulated(card, config, mode, kernels=KERNELS) as launches:
        kvcache.check(call, BACKEND, f"{card} {config}")
    assert KERNELS[card].removeprefix("cuda_raw.") in [launch.kernel.source.name for launch in launches]
    return launches
