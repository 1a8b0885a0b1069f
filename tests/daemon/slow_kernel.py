"""A backend of a third party whose default rests before it computes, and whose other config does not.

Tests install a copy of this file, so that programs, the daemon and its children all find it by its entry point.
"""

from __future__ import annotations

import time
from typing import Any

import torch

from faops import registry
from faops.device import DeviceProfile
from faops.inputs import AttentionInputs
from faops.problem import AttentionProblem
from faops.registry import Config, Decision, Kernel, decide

HEAD_DIM = 24  # of all that it accepts: nothing else is slowed
REST_SECONDS = 0.02


class SlowKernel(Kernel):
    """PyTorch's attention, with a rest before it."""

    backend = "slow"
    name = "forward"
    op = "forward"
    priority = 10_000

    def check(self, problem: AttentionProblem, device: DeviceProfile) -> Decision:
        return decide(() if problem.head_dim == HEAD_DIM and not problem.need_lse else ("it wants head_dim 24",))

    def configs(self, problem: AttentionProblem, device: DeviceProfile) -> list[Config]:
        return [Config(rest=True), Config(rest=False)]

    def default_config(self, problem: AttentionProblem, device: DeviceProfile) -> Config:
        return Config(rest=True)

    def launch(self, inputs: AttentionInputs, config: Config) -> Any:
        if config["rest"]:
            time.sleep(REST_SECONDS)
        q, k, v = (tensor.transpose(1, 2) for tensor in (inputs.q, inputs.k, inputs.v))
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=inputs.scale)
        return out.transpose(1, 2), None


def register() -> None:
    """What the entry point names."""
    registry.register(SlowKernel())
