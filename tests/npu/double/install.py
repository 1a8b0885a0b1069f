"""Defining the operators under torch.ops.npu, recording their calls, and taking them away again."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from tests.npu.double import autograd, cache, fusion, infer, merge, rotary
from tests.npu.double.machine import Machine
from tests.npu.double.schemas import recorded

Implementation = Callable[[Machine, str, dict[str, Any]], Any]

IMPLEMENTATIONS: dict[str, Implementation] = {
    "npu_fusion_attention": fusion.forward,
    "npu_fusion_attention_v2": fusion.forward,
    "npu_fusion_attention_v3": fusion.forward,
    "npu_fusion_attention_grad": fusion.backward,
    "npu_fusion_attention_grad_v2": fusion.backward,
    "npu_fusion_attention_grad_v3": fusion.backward,
    "npu_fused_infer_attention_score": infer.fused,
    "npu_fused_infer_attention_score_v2": infer.fused,
    "npu_prompt_flash_attention": infer.prompt,
    "npu_incre_flash_attention": infer.incremental,
    "npu_scatter_pa_kv_cache": cache.scatter_pages,
    "npu_gather_pa_kv_cache": cache.gather_pages,
    "npu_scatter_nd_update_": cache.scatter,
    "npu_rotary_mul": rotary.multiply,
    "npu_apply_rotary_pos_emb": rotary.apply_in_place,
    "npu_attention_update": merge.update,
    "npu_ring_attention_update": merge.ring_update,
}
# Made of differentiable operations, so PyTorch finds their gradients itself.
TRACED = ("npu_rotary_mul",)


class Handle:
    """An installed double. ``calls`` lists (operator, arguments with their defaults) of every call, oldest first."""

    def __init__(self, version: str, machine: Machine):
        self.version, self.machine = version, machine
        self._library: Any = torch.library.Library("npu", "FRAGMENT")
        for operator, schema in recorded(version).items():
            self._define(operator, schema)

    @property
    def calls(self) -> list[tuple[str, dict[str, Any]]]:
        return self.machine.calls

    def count(self, operator: str) -> int:
        return sum(name == operator for name, _ in self.calls)

    def remove(self) -> None:
        """Undefine the operators, so that another version can be installed."""
        self._library._destroy()
        for name in list(vars(torch.ops.npu)):
            if name.startswith("npu_"):
                delattr(torch.ops.npu, name)
        if hasattr(torch.ops.npu, "_dir"):
            torch.ops.npu._dir.clear()

    def __enter__(self) -> Handle:
        return self

    def __exit__(self, *exception: object) -> None:
        self.remove()

    def _define(self, operator: str, schema: str) -> None:
        self._library.define(schema)
        parsed = torch._C.parse_schema(f"npu::{schema}")
        kernel = partial(_run, self.machine, operator, parsed)
        key = "CompositeImplicitAutograd" if operator in TRACED else "CompositeExplicitAutograd"
        self._library.impl(operator, kernel, key)
        if operator in autograd.DIFFERENTIABLE:
            self._library.impl(operator, autograd.recorder(operator, parsed), "Autograd")


def install(version: str = "2.13.0", soc: str = "910B", cann: str = "9.1.0") -> Handle:
    """The operators of ``version`` of torch_npu on a chip and a version of CANN; ``remove`` takes them away."""
    return Handle(version, Machine(soc, cann))


def _run(machine: Machine, operator: str, schema: Any, *args: Any, **keywords: Any) -> Any:
    arguments = bind(schema, args, keywords)
    machine.calls.append((operator, arguments))
    results = IMPLEMENTATIONS[operator](machine, operator, arguments)
    if isinstance(results, tuple):
        return results[: len(schema.returns)] if len(schema.returns) != 1 else results[0]
    return results


def bind(schema: Any, args: tuple[Any, ...], keywords: dict[str, Any]) -> dict[str, Any]:
    """All arguments by name, with the schema's defaults for those not given."""
    names = [argument.name for argument in schema.arguments]
    given = {**dict(zip(names, args)), **keywords}
    return {argument.name: given.get(argument.name, argument.default_value) for argument in schema.arguments}
