"""The gradients that torch_npu registers: those of output 0 alone.

A gradient that arrives at the softmax statistics is dropped without a word, as the real derivative formulas do, which
use nothing but the gradient of the first output.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

DIFFERENTIABLE = ("npu_fusion_attention", "npu_fusion_attention_v2", "npu_fusion_attention_v3")


def recorder(operator: str, schema: Any) -> Callable[..., Any]:
    """The operator's autograd kernel: computes below autograd, and keeps what backward needs."""
    names = [argument.name for argument in schema.arguments]

    def run(*args: Any, **keywords: Any) -> Any:
        defaults = {argument.name: argument.default_value for argument in schema.arguments}
        values = {**defaults, **dict(zip(names, args)), **keywords}
        return _Attention.apply(operator, names, *(values[name] for name in names))

    return run


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, operator: str, names: list[str], *values: Any) -> Any:
        arguments = dict(zip(names, values))
        with torch._C._AutoDispatchBelowAutograd():
            results = getattr(torch.ops.npu, operator)(**arguments)
        ctx.operator, ctx.names = operator, names
        ctx.numbers = {name: value for name, value in arguments.items() if not isinstance(value, Tensor)}
        ctx.tensors = [name for name, value in arguments.items() if isinstance(value, Tensor)]
        ctx.save_for_backward(*(arguments[name] for name in ctx.tensors), *results[:4])
        ctx.drawn = results[4:]
        ctx.set_materialize_grads(False)
        return results

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        empty = (None, None, *(None for _ in ctx.names))
        if gradients[0] is None:
            return empty
        *inputs, out, largest, total, unused = ctx.saved_tensors
        arguments = {**ctx.numbers, **dict(zip(ctx.tensors, inputs))}
        arguments["scale_value"] = arguments.pop("scale")
        arguments.pop("dropout_mask", None)  # backward draws the mask again from seed and offset
        suffix = ctx.operator.removeprefix("npu_fusion_attention")
        gradient = getattr(torch.ops.npu, f"npu_fusion_attention_grad{suffix}")
        drawn = dict(zip(("seed", "offset", "numels"), ctx.drawn))
        statistics = {"softmax_max": largest, "softmax_sum": total, "softmax_in": unused, "attention_in": out}
        found = gradient(**{**arguments, **drawn, **statistics, "dy": gradients[0]})
        order = ["query", "key", "value", "pse"] + (["query_rope", "key_rope"] if suffix == "_v2" else []) + ["sink"]
        by_name = dict(zip(order, found))
        return (None, None, *(by_name.get(name) if name in ctx.tensors else None for name in ctx.names))
