"""The npu kernels with tensors whose device is npu:0, in a process of its own: see test_on_device.py."""

from __future__ import annotations

import torch
from torch import Tensor

import faops
from tests.npu import double
from tests.npu.double_calls import random_qkv
from tests.semantics import simulated_npu
from tests.support import cumulative


def main() -> None:
    simulated_npu.install()
    tensors = random_qkv(rows=9, keys=9, dim=64, dim_v=64, dtype=torch.float16)
    with double.install() as handle:
        wanted = results(tensors, None)  # on the CPU, where they are right
        found = results(tuple(tensor.to("npu") for tensor in tensors), "npu")
        assert handle.calls
    compare(found, wanted)
    print("ok")


def results(tensors: tuple[Tensor, ...], backend: str | None) -> list[Tensor]:
    """A dense call with its gradients, a packed one and one out of a cache."""
    ends, filled = cumulative([4, 14]), torch.tensor([5, 9], dtype=torch.int32)
    leaves = [tensor.clone().requires_grad_() for tensor in tensors]
    out = faops.attention(*leaves, causal=True, backend=backend)
    gradients = torch.autograd.grad(out.sum(), leaves)
    q, k, v = (leaf.detach() for leaf in leaves)
    packed = (tensor.flatten(0, 1) for tensor in (q, k, v))
    return [
        out,
        *gradients,
        faops.attention_varlen(*packed, ends, ends, 14, 14, window=(3, 0), backend=backend),
        faops.attention_with_kvcache(q[:, :1], k, v, cache_seqlens=filled, backend=backend),
    ]


def compare(found: list[Tensor], wanted: list[Tensor]) -> None:
    for one, other in zip(found, wanted):
        assert one.device.type == "npu", one.device
        assert torch.allclose(one.detach().cpu(), other.detach(), rtol=4e-3, atol=4e-3)


if __name__ == "__main__":
    main()
