"""Tensors whose device is npu:0, without such a device: their values lie on the CPU, where everything is computed.

For a process of its own, for importing it gives PyTorch's one place for further backends (PrivateUse1) the name npu.
Like a device it refuses tensors of the CPU beside its own, and it counts how often the host reads values from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

from faops import device, ops, repeat, repeat_kvcache

NPU = torch.device("cpu")  # until install() has given the name to PyTorch
COPIES = ("aten._to_copy.default", "aten.copy_.default")  # what may meet tensors of two devices
reads = 0  # how often the host had to wait for values


class NpuTensor(Tensor):
    """A tensor on npu:0. ``inner`` is the tensor on the CPU that it stands for, view for view."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> NpuTensor:
        made: NpuTensor = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
            device=NPU,
        )  # fmt: skip
        made.inner = inner
        return made

    def __repr__(self) -> str:  # type: ignore[override]
        return f"NpuTensor({self.inner})"

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.inner.untyped_storage()

    def data_ptr(self) -> int:
        return self.inner.data_ptr()

    def tolist(self) -> Any:  # PyTorch has none for subclasses
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(cls, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(op, args, kwargs or {})


def _run(op: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """An operator on what its arguments stand for."""
    global reads
    tensors = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    own = {id(tensor.inner): tensor for tensor in tensors if isinstance(tensor, NpuTensor)}
    if own and str(op) not in COPIES and any(not isinstance(tensor, NpuTensor) and tensor.dim() for tensor in tensors):
        raise RuntimeError(f"{op}: expected all tensors to be on the same device")
    wanted = kwargs.get("device")
    to_host = wanted is not None and torch.device(wanted).type == "cpu"
    if own and (to_host or str(op) == "aten._local_scalar_dense.default"):
        reads += 1
    result = op(*pytree.tree_map(_on_cpu, args), **pytree.tree_map(_on_cpu, kwargs))
    if to_host or not (own or wanted is not None):
        return result

    def wrapped(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return own[id(value)] if id(value) in own else NpuTensor(value)

    return pytree.tree_map(wrapped, result)


def _on_cpu(value: Any) -> Any:
    if isinstance(value, torch.device):
        return torch.device("cpu")
    return value.inner if isinstance(value, NpuTensor) else value


def _made_on_npu(op: Any) -> Any:
    return lambda *args, **kwargs: _run(op, args, {**kwargs, "device": NPU})


class _Module(_DummyBackendModule):
    """torch.npu, as far as faops asks it."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.float16, torch.bfloat16]


_kept: list[Any] = []  # registrations last as long as these


def install() -> None:
    """Make the device npu:0, an Ascend 910B for faops, whose kernels see its tensors as plain ones."""
    global NPU
    _setup_privateuseone_for_python_backend("npu", _Module())
    NPU = torch.device("npu", 0)
    library = torch.library.Library("aten", "IMPL")
    for op in (torch.ops.aten.empty.memory_format, torch.ops.aten.empty_strided.default):
        library.impl(op.name(), _made_on_npu(op), "PrivateUse1")
    everything = torch.library.Library("_", "IMPL")
    everything.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    _kept.extend((library, everything))
    ops.PLAIN_TYPES = repeat.PLAIN_TYPES = repeat_kvcache.PLAIN_TYPES = (*ops.PLAIN_TYPES, NpuTensor)
    device._detect_npu = lambda where: device.known("910b")
