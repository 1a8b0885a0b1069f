"""The backward kernels as the registry sees them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from faops.backends.triton import launch, space, specialize, versions
from faops.backends.triton.base import TritonKernel
from faops.backends.triton.launch import Launch, Tensors
from faops.defaults import ShippedDefault
from faops.device import DeviceProfile
from faops.inputs import BackwardInputs
from faops.layout import empty_out
from faops.operands import Operands, call_key, contiguous, matrix_strides, numbers, row_strides
from faops.problem import AttentionProblem
from faops.registry import Config

PREPARE_ROWS, PREPARE_WARPS = 64, 4
Gradients = tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]


class TritonBackward(TritonKernel):
    """Backward from (dout, out, lse), dense and varlen: kernels/backward.py and kernels/bias_gradient.py.

    Deterministic unless its config says ``atomic_dq``.
    """

    name = "backward"
    op = "backward"

    def _reasons(self, problem: AttentionProblem, device: DeviceProfile) -> Iterator[str]:
        yield from super()._reasons(problem, device)
        if problem.dropout and device.vendor == "nvidia" and not versions.compiles_dropout_backward():
            yield "this Triton fails to compile the backward of dropout; 3.4 and newer do"

    def space(self, problem: AttentionProblem, device: DeviceProfile) -> list[Config]:
        return space.backward_space(problem, device)

    def default_config(self, problem: AttentionProblem, device: DeviceProfile) -> Config:
        return space.backward_default(problem, device)

    def shipped(self, problem: AttentionProblem, device: DeviceProfile) -> ShippedDefault:
        return space.backward_shipped(problem, device)

    def run(self, inputs: BackwardInputs, config: Config) -> Gradients:
        call = BackwardCall.of(inputs, config)
        if call.operands.q.numel() == 0 or call.operands.k.numel() == 0 or call.dout.numel() == 0:
            return call.nothing()
        # Of the buffers only that they are there matters: fresh memory is aligned.
        buffers = (call.dq_sum is None, call.dbias is None, call.dsinks is None)
        tensors = (*call.operands, call.dout, call.dlse)
        key = ("backward", config, specialize.precision(call.dout.dtype), buffers, *call_key(inputs.forward, tensors))
        number = launch.number(key)
        for name, operands, describe in call.steps():
            launch.launch((name, number), operands, describe)
        return call.results()


class BackwardCall(NamedTuple):
    """The tensors of one call, its results and the buffers between its kernels among them."""

    inputs: BackwardInputs
    config: Config
    operands: Operands  # of the forward
    dout: Tensor
    dlse: Tensor | None
    lse: Tensor
    delta: Tensor  # float32, like lse
    dq: Tensor
    dk: Tensor
    dv: Tensor
    dq_sum: Tensor | None  # float32, like dq, of zeros: what is added to atomically
    dbias: Tensor | None  # float32 (parts, *bias.shape)
    dsinks: Tensor | None  # float32 (tiles of rows of all sequences, H)

    @staticmethod
    def of(inputs: BackwardInputs, config: Config) -> BackwardCall:
        forward = inputs.forward
        lse = inputs.lse.contiguous()
        operands = specialize.as_bytes(Operands.of(forward, inputs.out, lse))
        q, k, v, bias = operands.q, operands.k, operands.v, operands.bias
        dbias = dsinks = dq_sum = None
        if inputs.bias_grad and bias is not None:
            parts = _tiles(forward.max_seqlen_q, _blocks(config)[0]) if _is_constant(bias) else 1
            dbias = torch.zeros(parts, *bias.shape, dtype=torch.float32, device=q.device)
        if inputs.sinks_grad and operands.sinks is not None:
            tiles = _tiles(forward.max_seqlen_q, PREPARE_ROWS) * forward.batch
            dsinks = q.new_empty(tiles, q.shape[-2], dtype=torch.float32)
        if config.get("atomic_dq", False):
            dq_sum = torch.zeros(q.shape, dtype=torch.float32, device=q.device)
        dq, dk, dv = (empty_out(tensor, tensor.shape[-1]) for tensor in (q, k, v))
        return BackwardCall(
            inputs, config, operands, inputs.dout, contiguous(inputs.dlse), lse, torch.empty_like(lse), dq, dk, dv,
            dq_sum, dbias, dsinks,
        )  # fmt: skip

    def nothing(self) -> Gradients:
        """The gradients of a call without a row, a key or an element."""
        for gradient in (self.dq, self.dk, self.dv):
            gradient.zero_()
        if self.dsinks is not None:
            self.dsinks.zero_()
        return self._gradients()

    def results(self) -> Gradients:
        if self.dq_sum is not None:
            self.dq.copy_(self.dq_sum)
        return self._gradients()

    def _gradients(self) -> Gradients:
        forward = self.inputs.forward
        dbias = dsinks = None
        if self.dbias is not None and forward.bias is not None:
            dbias = self.dbias.sum(0).to(forward.bias.dtype)
        if self.dsinks is not None and forward.sinks is not None:
            dsinks = self.dsinks.sum(0).to(forward.sinks.dtype)
        return self.dq, self.dk, self.dv, dbias, dsinks

    def steps(self) -> list[tuple[str, Tensors, Callable[[], Launch]]]:
        """The kernels in their order: a name, its tensors and what makes its launch."""
        found: list[tuple[str, Tensors, Callable[[], Launch]]] = []
        o = self.operands
        shared = (o.q, o.k, o.v, self.dout, self.lse, self.delta)
        rest = (o.alibi_slopes, o.bias, o.mask, o.cu_seqlens_q, o.cu_seqlens_k, o.rng)
        tensors: Tensors = (self.dout, o.out, self.lse, self.dlse, self.delta, o.sinks, self.dsinks, o.cu_seqlens_q)
        found.append(("prepare", tensors, self._prepare))
        found.append(("dkv", (*shared, self.dk, self.dv, self.dq_sum, *rest), self._dkv))
        if self.dq_sum is None:
            found.append(("dq", (*shared, self.dq, *rest), self._dq))
        if self.dbias is not None:
            found.append(("dbias", (*shared, self.dbias, *rest), self._dbias))
        return found

    def _numbers(self) -> dict[str, int | float]:
        """Those that all kernels draw from."""
        o, varlen = self.operands, self.operands.cu_seqlens_q is not None
        found = numbers(self.inputs.forward, o)
        dq = self.dq if self.dq_sum is None else self.dq_sum
        for name, tensor in (("dout", self.dout), ("dq", dq), ("dk", self.dk), ("dv", self.dv)):
            found |= row_strides(name, tensor, varlen)
        return found | {"heads_kv": o.k.shape[-2], "total_k": o.k.shape[0] if varlen else 0}

    def _launch(
        self, kernel: str, programs: int, sizes: dict[str, int | float], constants: dict[str, specialize.Constant],
        left_out: tuple[str, ...] = (),
    ) -> Launch:  # fmt: skip
        """A launch with the shared numbers but those ``left_out``."""
        shared = {name: value for name, value in self._numbers().items() if not name.startswith(left_out)}
        wide = specialize.is_wide((self.dout, self.dq, self.dk, self.dv))
        common = specialize.constants(self.inputs.forward, self.operands)
        return Launch(
            kernel=kernel,
            grid=(programs, 1, 1),
            numbers={**shared, **sizes},
            constants={**common, **constants, "WIDE": bool(common["WIDE"]) or wide},
            options=specialize.options(self.config),
        )

    def _prepare(self) -> Launch:
        found = self._numbers()
        o, rows = self.operands, _tiles(self.inputs.forward.max_seqlen_q, PREPARE_ROWS)
        names = ["heads", "seqlen_q", "lse_batch", "lse_head"]
        names += [f"{tensor}_{axis}" for tensor in ("dout", "out") for axis in ("batch", "row", "head")]
        common = specialize.constants(self.inputs.forward, o)
        constants = {name: common[name] for name in ("HEAD_DIM_V", "WIDTH_V", "VARLEN")}
        return Launch(
            kernel="backward.prepare",
            grid=(rows * o.q.shape[-2] * self.inputs.forward.batch, 1, 1),
            numbers={**{name: found[name] for name in names}, "row_tiles": rows},
            constants={**constants, "BLOCK_M": PREPARE_ROWS, "WIDE": specialize.is_wide((self.dout, o.out))},
            options={"num_warps": PREPARE_WARPS, "num_stages": 1},
        )

    def _dkv(self) -> Launch:
        outer, inner = _blocks(self.config)
        tiles, heads_kv = _tiles(self.inputs.forward.max_seqlen_k, outer), self.operands.k.shape[-2]
        return self._launch(
            "backward.attention_dkv", self._programs(tiles, heads_kv), {"key_tiles": tiles},
            {"BLOCK_M": inner, "BLOCK_N": outer}, ("out_", "total_q"),
        )  # fmt: skip

    def _dq(self) -> Launch:
        outer, inner = _blocks(self.config)
        tiles, heads = _tiles(self.inputs.forward.max_seqlen_q, outer), self.operands.q.shape[-2]
        return self._launch(
            "backward.attention_dq", self._programs(tiles, heads), {"row_tiles": tiles},
            {"BLOCK_M": outer, "BLOCK_N": inner}, ("out_", "dk_", "dv_", "total_k", "heads_kv"),
        )  # fmt: skip

    def _programs(self, tiles: int, heads: int) -> int:
        """A program a tile, and for a packed batch one a head for what lies behind the last sequence."""
        return heads * (tiles * self.inputs.forward.batch + (self.operands.cu_seqlens_q is not None))

    def _dbias(self) -> Launch:
        o, dbias = self.operands, self.dbias
        assert o.bias is not None and dbias is not None
        forward = self.inputs.forward
        block_m, block_n = _blocks(self.config)
        rows, keys = _tiles(forward.max_seqlen_q, block_m), _tiles(forward.max_seqlen_k, block_n)
        of_batch, of_head, of_row, of_key = (size > 1 for size in o.bias.shape)
        programs = (rows if of_row or not of_key else 1) * (keys if of_key else 1)
        programs *= (forward.batch if of_batch else 1) * (o.q.shape[-2] if of_head else 1)
        return self._launch(
            "bias_gradient.attention_dbias", programs,
            {"row_tiles": rows, "key_tiles": keys, "dbias_part": dbias.stride(0), **matrix_strides("dbias", dbias[0])},
            {"BLOCK_M": block_m, "BLOCK_N": block_n, "VARIES_BATCH": of_batch, "VARIES_HEAD": of_head,
             "VARIES_ROW": of_row, "VARIES_KEY": of_key},
            ("out_", "dq_", "dk_", "dv_", "total_", "heads_kv"),
        )  # fmt: skip


def _tiles(length: int, block: int) -> int:
    return max(1, -(-length // block))


def _blocks(config: Config) -> tuple[int, int]:
    """(owned, stepped over); of the bias's gradient, the rows and keys of a tile."""
    return config.integer("block_outer"), config.integer("block_inner")


def _is_constant(bias: Tensor) -> bool:
    """Whether a bias varies over neither rows nor keys."""
    return bias.shape[2] == 1 and bias.shape[3] == 1


def launches(inputs: BackwardInputs, config: Config) -> list[tuple[Launch, Tensors]]:
    """Every launch of a call with its tensors; nothing runs."""
    return [(describe(), tensors) for _, tensors, describe in BackwardCall.of(inputs, config).steps()]
