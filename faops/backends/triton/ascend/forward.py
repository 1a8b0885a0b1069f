"""The Ascend forward kernel as the registry sees it."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from faops.backends.triton import specialize
from faops.backends.triton.ascend import launch, space, versions
from faops.backends.triton.base import TritonKernel
from faops.backends.triton.launch import Launch, Tensors
from faops.device import DeviceProfile
from faops.inputs import AttentionInputs
from faops.layout import empty_lse, empty_out
from faops.operands import Operands, call_key, numbers
from faops.problem import AttentionProblem
from faops.registry import Config, hash_of

# The constants of the kernel among those that every kernel of this backend has.
SHARED_CONSTANTS = (
    "HEAD_DIM", "HEAD_DIM_V", "WIDTH", "WIDTH_V", "VARLEN", "WINDOW_LEFT", "WINDOW_RIGHT", "SOFTCAP", "WIDE",
)  # fmt: skip


class AscendForward(TritonKernel):
    """Online-softmax forward through triton-ascend, dense and varlen: kernels/ascend_forward.py."""

    name = "ascend_forward"
    op = "forward"
    # Below CANN's fused operators, which its makers tuned; above the unfused kernels, where those operators refuse.
    priority = 14

    def _reasons(self, problem: AttentionProblem, device: DeviceProfile) -> Iterator[str]:
        yield from super()._reasons(problem, device)
        if problem.dropout:
            yield "it has no dropout"

    def missing(self, device: DeviceProfile) -> Iterator[str]:
        return versions.missing(device)

    def space(self, problem: AttentionProblem, device: DeviceProfile) -> list[Config]:
        return space.forward_space(problem, device)

    def default_config(self, problem: AttentionProblem, device: DeviceProfile) -> Config:
        return space.forward_default(problem, device)

    def run(self, inputs: AttentionInputs, config: Config) -> tuple[Tensor, Tensor | None]:
        out = empty_out(inputs.q, inputs.v.shape[-1])
        lse = empty_lse(inputs.q) if inputs.need_lse else None
        if out.numel() > 0 or (lse is not None and lse.numel() > 0):
            operands = suited(Operands.of(inputs, out, lse))
            key = ("ascend_forward", config, *call_key(inputs, operands))
            launch.launch(key, operands, lambda: describe(inputs, operands, config))
        return out, lse

    def source_hash(self) -> str:
        return _source_hash()


@functools.cache
def _source_hash() -> str:
    """Of everything that shapes the kernel."""
    backend = Path(__file__).parents[1]
    shared = [backend / name for name in ("launch.py", "specialize.py")]
    return hash_of((*Path(__file__).parent.glob("*.py"), *shared, *(backend / "kernels").glob("*.py")))


def suited(operands: Operands) -> Operands:
    """The operands as the NPU reads them: all on it, no unsigned bytes, a bias's or mask's keys side by side."""
    mask, device = operands.mask, operands.q.device
    return operands._replace(
        bias=_side_by_side(operands.bias),
        mask=_side_by_side(None if mask is None else mask.view(torch.int8)),
        cu_seqlens_q=_on(device, operands.cu_seqlens_q),
        cu_seqlens_k=_on(device, operands.cu_seqlens_k),
    )


def _on(device: torch.device, lengths: Tensor | None) -> Tensor | None:
    """Lengths may be on the host, where CANN's operators want them."""
    return None if lengths is None else lengths.to(device)


def _side_by_side(matrix: Tensor | None) -> Tensor | None:
    if matrix is None or matrix.shape[3] == 1 or matrix.stride(3) in (0, 1):
        return matrix
    return matrix.contiguous()


def describe(inputs: AttentionInputs, operands: Operands, config: Config) -> Launch:
    """The launch of a forward call."""
    block_m = config.integer("block_m")
    row_tiles = max(1, -(-inputs.max_seqlen_q // block_m))
    heads = operands.q.shape[-2]
    tiles = row_tiles * heads * inputs.batch
    varlen = operands.cu_seqlens_q is not None
    values = numbers(inputs, operands)
    constants = specialize.constants(inputs, operands)
    return Launch(
        kernel="ascend_forward.attention_forward",
        # A packed batch without sequences still has rows to clear.
        grid=(min(config.integer("programs"), max(tiles, heads if varlen else 1)), 1, 1),
        numbers={**values, "row_tiles": row_tiles},
        constants={
            **{name: constants[name] for name in SHARED_CONSTANTS},
            "BLOCK_M": block_m,
            "BLOCK_N": config.integer("block_n"),
            # A matrix that is the same for all rows or all keys has a stride of 0 there, which no copy engine takes.
            **{
                f"{name.upper()}_{axis.upper()}S": values[f"{name}_{axis}"] != 0
                for name in ("bias", "mask")
                for axis in ("row", "key")
            },
        },
        options={"multibuffer": bool(config["multibuffer"])},
    )


def launches(inputs: AttentionInputs, config: Config) -> list[tuple[Launch, Tensors]]:
    """Every launch of a call with its tensors; nothing runs."""
    out, lse = empty_out(inputs.q, inputs.v.shape[-1]), empty_lse(inputs.q) if inputs.need_lse else None
    operands = suited(Operands.of(inputs, out, lse))
    return [(describe(inputs, operands, config), operands)]
