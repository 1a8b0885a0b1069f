"""What the kernels of the family share: their problems, their configs, and the arguments of a call."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from faops.backends.npu.fusion import space, support
from faops.backends.npu.fusion.arrangement import Arrangement
from faops.backends.npu.sources import hash_of_package
from faops.device import DeviceProfile, detect
from faops.inputs import AttentionInputs
from faops.problem import AttentionProblem
from faops.registry import Config, Decision, Kernel, decide


class Fusion(Kernel):
    """A kernel on an operator of the family."""

    backend = "npu"
    priority = 28

    def check(self, problem: AttentionProblem, device: DeviceProfile) -> Decision:
        return decide(support.reasons(problem, device))

    def configs(self, problem: AttentionProblem, device: DeviceProfile) -> list[Config]:
        return space.configs(problem, device)

    def default_config(self, problem: AttentionProblem, device: DeviceProfile) -> Config:
        return space.default(problem, device)

    def source_hash(self) -> str:
        return hash_of_package(__file__)


def keywords(inputs: AttentionInputs, call: Arrangement, config: Config) -> dict[str, Any]:
    """The arguments that forward and backward have in common."""
    return {
        "head_num": inputs.q.shape[-2],
        "input_layout": call.layout,
        "scale": inputs.scale,
        "inner_precise": config.integer("inner_precise"),
        **call.keywords(str(config["mask"])),
    }


def capturable(config: Config, inputs: AttentionInputs) -> Config:
    """``config``, or while a graph is captured one with the operator and the layout that a graph can hold."""
    if not capturing(inputs.q) or inputs.cu_seqlens_q is not None:
        return config
    if "v3" not in support.versions(inputs.problem(), detect(inputs.q.device)):
        return config
    return Config({**config, "operator": "v3", "layout": "BNSD"})


def capturing(q: Tensor) -> bool:
    """Whether a graph of q's NPU is being captured."""
    if q.device.type != "npu":
        return False
    ask = getattr(getattr(torch, "npu", None), "is_current_stream_capturing", None)
    return ask is not None and bool(ask())
