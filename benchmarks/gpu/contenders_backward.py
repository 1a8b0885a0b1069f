"""What is compared backward alone: contenders whose forward runs when they are made, before anything is timed."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

import faops
from benchmarks.gpu import contenders
from benchmarks.gpu.contenders import Call, Shape, has_triton, peers
from benchmarks.gpu.racing import Contender, Work
from benchmarks.gpu.triton_calls import BACKEND, kernel_of
from faops.device import DeviceProfile, detect
from faops.inputs import BackwardInputs
from faops.registry import Config

FLOPS = 2.5  # times those of the forward: five products for two
OURS = ("triton", "triton atomic", "faops", "faops triton")


def all_backward(shape: Shape) -> dict[str, Contender]:
    """All that could run ``shape`` backward; each is made from q, k, v and dout, and works out (dq, dk, dv)."""
    found: dict[str, Contender] = {}
    public = functools.partial(faops.attention, causal=shape.causal)
    if has_triton(shape):
        profile = detect(contenders.DEVICE)
        found["triton"] = triton_backward(shape, default_config(shape, profile))
        found["triton atomic"] = triton_backward(shape, default_config(shape, profile, atomic=True))
        found["faops triton"] = differentiated(functools.partial(public, backend=BACKEND))
    found["faops"] = differentiated(public)
    return {**found, **{name: differentiated(call) for name, call in peers(shape).items()}}


def default_config(shape: Shape, profile: DeviceProfile, atomic: bool = False) -> Config:
    default = kernel_of("backward").default_config(shape.problem("backward"), profile)
    return Config({**default, "atomic_dq": atomic})


def triton_backward(shape: Shape, config: Config) -> Contender:
    """The Triton kernels with ``config``, past the dispatcher."""
    kernel = kernel_of("backward")

    def make(q: Tensor, k: Tensor, v: Tensor, dout: Tensor) -> Work:
        inputs = backward_inputs(shape, q, k, v, dout)
        return lambda: kernel.launch(inputs, config)[:3]

    return make


def backward_inputs(shape: Shape, q: Tensor, k: Tensor, v: Tensor, dout: Tensor) -> BackwardInputs:
    """The call as the kernel's launch gets it, after a forward with the default config."""
    forward, kernel = shape.inputs(q, k, v, need_lse=True), kernel_of("forward")
    out, lse = kernel.launch(forward, kernel.default_config(forward.problem(), detect(contenders.DEVICE)))
    return BackwardInputs(dout, None, forward, out, lse, False, False)


def differentiated(call: Call) -> Contender:
    """Backward through autograd, from one graph that is kept."""

    def make(q: Tensor, k: Tensor, v: Tensor, dout: Tensor) -> Work:
        leaves = [tensor.detach().requires_grad_() for tensor in (q, k, v)]
        out = call(*leaves)
        return lambda: torch.autograd.grad(out, leaves, dout, retain_graph=True)

    return make
