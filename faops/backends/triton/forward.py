"""The forward kernel as the registry sees it."""

from __future__ import annotations

from torch import Tensor

from faops.backends.triton import launch, space, specialize
from faops.backends.triton.base import TritonKernel
from faops.backends.triton.launch import Launch, Tensors
from faops.defaults import ShippedDefault
from faops.device import DeviceProfile
from faops.inputs import AttentionInputs
from faops.layout import empty_lse, empty_out
from faops.operands import Operands, call_key, numbers
from faops.problem import AttentionProblem
from faops.registry import Config


class TritonForward(TritonKernel):
    """Online-softmax forward, dense and varlen: kernels/forward.py."""

    name = "forward"
    op = "forward"

    def space(self, problem: AttentionProblem, device: DeviceProfile) -> list[Config]:
        return space.forward_space(problem, device)

    def default_config(self, problem: AttentionProblem, device: DeviceProfile) -> Config:
        return space.forward_default(problem, device)

    def shipped(self, problem: AttentionProblem, device: DeviceProfile) -> ShippedDefault:
        return space.forward_shipped(problem, device)

    def run(self, inputs: AttentionInputs, config: Config) -> tuple[Tensor, Tensor | None]:
        out = empty_out(inputs.q, inputs.v.shape[-1])
        lse = empty_lse(inputs.q) if inputs.need_lse else None
        if out.numel() > 0 or (lse is not None and lse.numel() > 0):
            operands = specialize.as_bytes(Operands.of(inputs, out, lse))
            key = ("forward", config, specialize.precision(inputs.q.dtype), *call_key(inputs, operands))
            launch.launch(key, operands, lambda: describe(inputs, operands, config))
        return out, lse


def describe(inputs: AttentionInputs, operands: Operands, config: Config) -> Launch:
    """The launch of a forward call."""
    q = operands.q
    row_tiles = max(1, -(-inputs.max_seqlen_q // config.integer("block_m")))
    varlen = operands.cu_seqlens_q is not None
    programs = row_tiles * q.shape[-2] * inputs.batch + (q.shape[-2] if varlen else 0)
    return Launch(
        kernel="forward.attention_forward",
        grid=(programs, 1, 1),
        numbers={**numbers(inputs, operands), "row_tiles": row_tiles},
        constants={
            **specialize.constants(inputs, operands),
            "BLOCK_M": config.integer("block_m"),
            "BLOCK_N": config.integer("block_n"),
            "FOLD_SCALE": specialize.folds_scale(inputs.softcap, inputs.scale, operands.alibi_slopes, operands.bias),
            "WARP_SPECIALIZE": bool(config.get("warp_specialize", False)),
        },
        options=specialize.options(config),
    )


def launches(inputs: AttentionInputs, config: Config) -> list[tuple[Launch, Tensors]]:
    """Every launch of a call with its tensors; nothing runs."""
    out, lse = empty_out(inputs.q, inputs.v.shape[-1]), empty_lse(inputs.q) if inputs.need_lse else None
    operands = specialize.as_bytes(Operands.of(inputs, out, lse))
    return [(describe(inputs, operands, config), operands)]
