"""Windows, bottom-right causal and ALiBi through SDPA's CPU kernel, with a mask of O(M + N) numbers.

Such a bias depends on the distance x = i + N − M − j alone. With the rows of q reversed, r = M − 1 − i, it depends on
r + j = N − 1 − x: all its rows are windows of one vector, each shifted by one, so the whole mask is a strided *view*
of that vector with stride 1 in both directions, and the kernel takes any strides. Rows go in blocks, each with the
keys that its band shows, so hidden tiles cost nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from faops.backends.torch import footprint
from faops.backends.torch.sdpa import Sdpa, shared_reasons
from faops.backends.torch.sdpa_cpu import cpu_backward, cpu_forward, cpu_reasons
from faops.backends.torch.space import BANDED_BLOCKS_Q
from faops.backends.torch.threads import cpu_threads, thread_choices
from faops.backends.torch.tiles import alibi_of, compute_dtype
from faops.device import DeviceProfile
from faops.footprint import Footprint
from faops.inputs import AttentionInputs, BackwardInputs
from faops.layout import empty_lse, empty_out
from faops.problem import AttentionProblem, Band
from faops.registry import Config, Decision, decide


def _reasons(problem: AttentionProblem, device: DeviceProfile) -> Iterator[str]:
    yield from shared_reasons(replace(problem, band=Band(), alibi=False), device)
    yield from cpu_reasons(device)
    if problem.band.full and not problem.alibi:
        yield "every key is visible and there is no ALiBi: plain SDPA does that"
    if problem.mask:
        yield "SDPA takes one mask, and the band is it"
    if problem.lse_grad:
        yield "SDPA has no gradient through lse"


class SdpaBanded(Sdpa):
    """What forward and backward share. ``block_q`` rows share a range of keys."""

    priority = 15

    def configs(self, problem: AttentionProblem, device: DeviceProfile) -> list[Config]:
        default = self.default_config(problem, device)
        sizes = [size for size in BANDED_BLOCKS_Q if size < 2 * problem.seqlen_q]
        choices = (
            Config(block_q=size, threads=threads) for threads in thread_choices(device.threads) for size in sizes
        )
        return [default, *(config for config in choices if config != default)]

    def default_config(self, problem: AttentionProblem, device: DeviceProfile) -> Config:
        # A narrow window wants narrow blocks, which see few keys beyond it; otherwise fewer, larger calls are better.
        return Config(block_q=256 if problem.band.left >= 0 else 1024, threads=0)

    def footprint(self, problem: AttentionProblem, device: DeviceProfile, config: Config) -> Footprint:
        return footprint.banded(problem, device, config)


class SdpaBandedForward(SdpaBanded):
    """Bands and ALiBi forward."""

    name = "sdpa_banded_forward"
    op = "forward"

    def check(self, problem: AttentionProblem, device: DeviceProfile) -> Decision:
        return decide(_reasons(problem, device))

    def launch(self, inputs: AttentionInputs, config: Config) -> tuple[Tensor, Tensor | None]:
        dtype = compute_dtype(inputs.q.dtype)
        q = inputs.q.to(dtype).flip(1)
        k, v = inputs.k.to(dtype), inputs.v.to(dtype)
        out, lse = empty_out(inputs.q, v.shape[-1]), empty_lse(inputs.q)
        bands = _Bands(inputs)
        out[:, : bands.dead] = 0
        lse[:, :, : bands.dead] = -math.inf
        with cpu_threads(config.integer("threads")):
            for rows, flipped, keys, mask in bands.blocks(config.integer("block_q")):
                block = cpu_forward(q[:, flipped], k[:, keys], v[:, keys], False, inputs.scale, mask)
                out[:, rows] = block[0].flip(1)
                lse[:, :, rows] = block[1].flip(2)
        return out, lse if inputs.need_lse else None


class SdpaBandedBackward(SdpaBanded):
    """Bands backward. dK and dV of the blocks are summed in order, so the result is repeatable."""

    name = "sdpa_banded_backward"
    op = "backward"

    def check(self, problem: AttentionProblem, device: DeviceProfile) -> Decision:
        return decide(self._reasons(problem, device))

    def _reasons(self, problem: AttentionProblem, device: DeviceProfile) -> Iterator[str]:
        yield from _reasons(problem, device)
        if problem.alibi:
            yield "ALiBi makes subnormal probabilities, on which SDPA's backward is slower than the blockwise kernel"

    def launch(self, inputs: BackwardInputs, config: Config) -> tuple[Tensor, Tensor, Tensor, None, None]:
        forward = inputs.forward
        dtype = compute_dtype(forward.q.dtype)
        dout, q, out = (tensor.to(dtype).flip(1) for tensor in (inputs.dout, forward.q, inputs.out))
        lse = inputs.lse.flip(2)
        k, v = forward.k.to(dtype), forward.v.to(dtype)
        dq = empty_out(forward.q, q.shape[-1])
        dk, dv = torch.zeros_like(k), torch.zeros_like(v)
        bands = _Bands(forward)
        dq[:, : bands.dead] = 0
        with cpu_threads(config.integer("threads")):
            for rows, flipped, keys, mask in bands.blocks(config.integer("block_q")):
                block = cpu_backward(
                    dout[:, flipped], q[:, flipped], k[:, keys], v[:, keys], out[:, flipped], lse[:, :, flipped],
                    False, forward.scale, mask,
                )  # fmt: skip
                dq[:, rows] = block[0].flip(1)
                dk[:, keys] += block[1]
                dv[:, keys] += block[2]
        return dq, dk.to(forward.k.dtype), dv.to(forward.v.dtype), None, None


class _Bands:
    """The blocks of rows of a call and their masks. ``dead`` is the number of leading rows that see no key."""

    def __init__(self, inputs: AttentionInputs) -> None:
        self.seqlen_q, self.seqlen_k = inputs.max_seqlen_q, inputs.max_seqlen_k
        self.band = inputs.band
        self.dead = 0
        if self.band.right >= 0:
            self.dead = min(self.seqlen_q, max(0, self.seqlen_q - self.seqlen_k - self.band.right))
        dtype = compute_dtype(inputs.q.dtype)
        distance = torch.arange(self.seqlen_k - 1, -self.seqlen_q, -1, dtype=dtype, device=inputs.q.device)
        slopes = alibi_of(inputs.alibi_slopes, inputs.batch, inputs.q.dtype)
        self.has_alibi = slopes is not None
        if slopes is None:
            self.vectors = torch.zeros_like(distance).expand(1, 1, -1).contiguous()
        else:
            self.vectors = -slopes[:, :, None] * distance.abs()
        if self.band.left >= 0:
            self.vectors.masked_fill_(distance > self.band.left, -math.inf)
        if self.band.right >= 0:
            self.vectors.masked_fill_(distance < -self.band.right, -math.inf)

    def blocks(self, size: int) -> Iterator[tuple[slice, slice, slice, Tensor | None]]:
        """Rows, the same rows in the reversed q, their keys, and their additive mask (B | 1, H | 1, rows, keys)."""
        for first in range(self.dead, self.seqlen_q, size):
            last = min(first + size, self.seqlen_q)
            low, high = self.band.keys_of_rows(first, last, self.seqlen_q, self.seqlen_k)
            flipped = slice(self.seqlen_q - last, self.seqlen_q - first)
            hides = self.band.hides_within(first, last, low, high, self.seqlen_q, self.seqlen_k)
            mask = self._mask(flipped, low, high) if hides or self.has_alibi else None
            yield slice(first, last), flipped, slice(low, high), mask

    def _mask(self, flipped: slice, low: int, high: int) -> Tensor:
        """Row r and key j read element r + j of their head's vector."""
        batch, heads, _ = self.vectors.shape
        shape = (batch, heads, flipped.stop - flipped.start, high - low)
        strides = (*self.vectors.stride()[:2], 1, 1)
        return self.vectors.as_strided(shape, strides, self.vectors.storage_offset() + flipped.start + low)
