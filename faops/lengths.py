"""Small integer tensors as numbers on the host, at one synchronisation each however many calls ask.

Some operators want lengths as host numbers (all of Ascend's do). Reading them off the device waits for everything
queued there, and every layer of a model asks for the same ones, so what was read is kept for as long as the tensor
lives unchanged.
"""

from __future__ import annotations

import functools
import weakref
from typing import NamedTuple

from torch import Tensor


class _Read(NamedTuple):
    tensor: weakref.ref[Tensor]
    state: tuple[object, ...]
    values: tuple[int, ...]


# By id(tensor): tensors compare by element, so they are no keys themselves. An entry goes when its tensor does.
_reads: dict[int, _Read] = {}


def host(tensor: Tensor) -> list[int]:
    """The values of an integer tensor of any shape, flattened.

    A tensor on the CPU is read at once. One on a device is read once, which waits for the device, and again after a
    change in place that PyTorch counts (``tensor._version``); writes past it, by a replayed graph or a kernel that
    takes a bare pointer, are not seen. Inference tensors have no such count and are read every time.
    """
    if tensor.device.type == "cpu" or tensor.is_inference():
        return _values(tensor)
    key, state = id(tensor), state_of(tensor)
    known = _reads.get(key)
    if known is not None and known.tensor() is tensor and known.state == state:
        return list(known.values)
    values = _values(tensor)
    _reads[key] = _Read(weakref.ref(tensor, functools.partial(_forget, key)), state, tuple(values))
    return values


def _forget(key: int, gone: weakref.ref[Tensor]) -> None:
    """The tensor is gone; another one may have its id by now and an entry of its own."""
    known = _reads.get(key)
    if known is not None and known.tensor is gone:
        del _reads[key]


def _values(tensor: Tensor) -> list[int]:
    values: list[int] = tensor.flatten().tolist()
    return values


def state_of(tensor: Tensor) -> tuple[object, ...]:
    """What changes with the values: the count of changes, and the memory, which ``.data = `` swaps without counting."""
    return tensor._version, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype
