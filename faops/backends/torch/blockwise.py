"""The blockwise kernels as the registry sees them: forward and backward, dense and varlen, on any torch device."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from faops.backends.torch import footprint
from faops.backends.torch.blockwise_backward import Gradients, attend_backward
from faops.backends.torch.blockwise_forward import attend
from faops.backends.torch.space import BLOCKS_K, BLOCKS_Q
from faops.backends.torch.threads import cpu_threads, thread_choices
from faops.backends.torch.tiles import Features, alibi_of, compute_dtype
from faops.device import DeviceProfile
from faops.footprint import Footprint
from faops.inputs import AttentionInputs, BackwardInputs
from faops.layout import empty_lse, empty_out
from faops.problem import AttentionProblem
from faops.registry import Config, Decision, Kernel, decide

# Scores a tile may hold. On a CPU 2^20 float32 scores (4 MiB) stay near the caches while each operation still does
# enough work to hide what launching it costs; a GPU wants far more in flight.
TILE_SCORES_CPU = 1 << 20
TILE_SCORES_DEVICE = 1 << 25


def common_reasons(problem: AttentionProblem, device: DeviceProfile) -> Iterator[str]:
    """Why torch operations cannot compute a problem."""
    if problem.dtype == "float8_e4m3fn" or problem.fp8_descale:
        yield "fp8 needs a Hopper kernel; torch operations do not compute attention in fp8"
    if problem.dtype == "float64" and device.torch_type == "mps":
        yield "float64 is not available on mps"


class Blockwise(Kernel):
    """What the blockwise kernels share: they run everything, with block sizes as their config."""

    backend = "torch"
    priority = 10

    def check(self, problem: AttentionProblem, device: DeviceProfile) -> Decision:
        return decide(common_reasons(problem, device))

    def configs(self, problem: AttentionProblem, device: DeviceProfile) -> list[Config]:
        blocks_q = _worthwhile(BLOCKS_Q, problem.seqlen_q)
        blocks_k = _worthwhile(BLOCKS_K, problem.seqlen_k)
        default = self.default_config(problem, device)
        found = [default]
        for threads in thread_choices(device.threads):
            for block_q in blocks_q:
                for block_k in blocks_k:
                    for scores in (1, 4):
                        block_h = _heads_per_tile(problem, block_q, block_k, _tile_scores(device) // scores)
                        config = Config(block_q=block_q, block_k=block_k, block_h=block_h, threads=threads)
                        if config not in found:
                            found.append(config)
        return found

    def default_config(self, problem: AttentionProblem, device: DeviceProfile) -> Config:
        block_q = min(256, _round_up(problem.seqlen_q))
        block_k = min(512, _round_up(problem.seqlen_k))
        block_h = _heads_per_tile(problem, block_q, block_k, _tile_scores(device))
        return Config(block_q=block_q, block_k=block_k, block_h=block_h, threads=0)

    def footprint(self, problem: AttentionProblem, device: DeviceProfile, config: Config) -> Footprint:
        return footprint.blockwise(problem, device, config)


class BlockwiseForward(Blockwise):
    """Online-softmax forward: :mod:`faops.backends.torch.blockwise_forward`."""

    name = "blockwise_forward"
    op = "forward"

    def launch(self, inputs: AttentionInputs, config: Config) -> tuple[Tensor, Tensor | None]:
        q, k, v = inputs.q, inputs.k, inputs.v
        features = features_of(inputs)
        out = empty_out(q, v.shape[-1])
        lse = empty_lse(q) if inputs.need_lse else None
        with cpu_threads(config.integer("threads")):
            if inputs.cu_seqlens_q is None or inputs.cu_seqlens_k is None:
                attend(q, k, v, features, config, out, lse)
                return out, lse
            if q.shape[0] > 0:
                clear_padding(inputs.cu_seqlens_q, out, lse)
            for index, rows, keys in sequences(inputs.cu_seqlens_q, inputs.cu_seqlens_k):
                part = features.segment(index, rows.stop - rows.start, keys.stop - keys.start)
                row_lse = None if lse is None else lse[None, :, rows]
                attend(q[None, rows], k[None, keys], v[None, keys], part, config, out[None, rows], row_lse)
        return out, lse


class BlockwiseBackward(Blockwise):
    """Recomputing backward: :mod:`faops.backends.torch.blockwise_backward`. Always deterministic."""

    name = "blockwise_backward"
    op = "backward"

    def launch(
        self, inputs: BackwardInputs, config: Config
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
        forward = inputs.forward
        q, k, v = forward.q, forward.k, forward.v
        features = features_of(forward)
        dtype = compute_dtype(q.dtype)
        dbias = dsinks = None
        if inputs.bias_grad and forward.bias is not None:
            dbias = torch.zeros_like(forward.bias, dtype=dtype, memory_format=torch.contiguous_format)
        if inputs.sinks_grad and forward.sinks is not None:
            dsinks = torch.zeros_like(forward.sinks, dtype=dtype)
        dq, dk, dv = (empty_out(tensor, tensor.shape[-1]) for tensor in (q, k, v))
        with cpu_threads(config.integer("threads")):
            if forward.cu_seqlens_q is None or forward.cu_seqlens_k is None:
                gradients = Gradients(dq, dk, dv, dbias, dsinks)
                attend_backward(inputs.dout, inputs.dlse, q, k, v, inputs.out, inputs.lse, features, config, gradients)
            else:
                clear_padding(forward.cu_seqlens_q, dq, None)
                for gradient in (dk, dv):
                    clear_padding(forward.cu_seqlens_k, gradient, None)
                for index, rows, keys in sequences(forward.cu_seqlens_q, forward.cu_seqlens_k):
                    part = features.segment(index, rows.stop - rows.start, keys.stop - keys.start)
                    own_dbias = None if dbias is None else features_slice(dbias, index, part.bias)
                    gradients = Gradients(dq[None, rows], dk[None, keys], dv[None, keys], own_dbias, dsinks)
                    dlse = None if inputs.dlse is None else inputs.dlse[None, :, rows]
                    attend_backward(
                        inputs.dout[None, rows], dlse, q[None, rows], k[None, keys], v[None, keys],
                        inputs.out[None, rows], inputs.lse[None, :, rows], part, config, gradients,
                    )  # fmt: skip
        if dbias is not None and forward.bias is not None:
            dbias = dbias.to(forward.bias.dtype)
        if dsinks is not None and forward.sinks is not None:
            dsinks = dsinks.to(forward.sinks.dtype)
        return dq, dk, dv, dbias, dsinks


def features_of(inputs: AttentionInputs) -> Features:
    """The score features of a forward call."""
    return Features(
        band=inputs.band,
        scale=inputs.scale,
        softcap=inputs.softcap,
        alibi=alibi_of(inputs.alibi_slopes, inputs.batch, inputs.q.dtype),
        bias=inputs.bias,
        mask=inputs.mask,
        sinks=inputs.sinks,
        dropout_p=inputs.dropout_p,
        rng=inputs.rng,
    )


def features_slice(gradient: Tensor, index: int, like: Tensor | None) -> Tensor:
    """The part of a varlen call's dbias that belongs to sequence ``index``: a view shaped like its bias."""
    assert like is not None
    batch = gradient if gradient.shape[0] == 1 else gradient[index : index + 1]
    return batch[:, :, : like.shape[2], : like.shape[3]]


def sequences(cu_seqlens_q: Tensor, cu_seqlens_k: Tensor) -> Iterator[tuple[int, slice, slice]]:
    """Index, rows and keys of each sequence that has a row or a key. Reads the offsets on the host."""
    starts_q, starts_k = cu_seqlens_q.tolist(), cu_seqlens_k.tolist()
    for index in range(len(starts_q) - 1):
        yield index, slice(starts_q[index], starts_q[index + 1]), slice(starts_k[index], starts_k[index + 1])


def clear_padding(cu_seqlens: Tensor, values: Tensor, lse: Tensor | None) -> None:
    """Define what lies behind the last sequence: zero, and -inf for lse."""
    end = int(cu_seqlens[-1])
    values[end:].zero_()
    if lse is not None:
        lse[:, end:] = float("-inf")


def _tile_scores(device: DeviceProfile) -> int:
    return TILE_SCORES_CPU if device.torch_type == "cpu" else TILE_SCORES_DEVICE


def _heads_per_tile(problem: AttentionProblem, block_q: int, block_k: int, scores: int) -> int:
    """How many (batch row, kv head) pairs fit a tile of about ``scores`` scores."""
    height = problem.group * min(block_q, problem.seqlen_q) if problem.heads_kv else 1
    width = min(block_k, problem.seqlen_k)
    return max(1, min(scores // max(1, height * width), problem.batch * problem.heads_kv))


def _worthwhile(blocks: tuple[int, ...], length: int) -> list[int]:
    """Blocks up to the first that holds the whole length."""
    found = []
    for block in blocks:
        found.append(block)
        if block >= length:
            break
    return found


def _round_up(length: int) -> int:
    """The next multiple of 16, so that neighbouring lengths share a config."""
    return max(16, -(-length // 16) * 16)
