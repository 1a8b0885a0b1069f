"""The KV-cache call through PyTorch's own CPU kernel, sequence by sequence.

The query heads of a group become rows of their key and value head, which is so read once for all of them:

    rows (b, Hk, G·M, D)     G = H / Hk query heads a key and value head, M query rows each

A dense cache is read where it lies. Pages are copied side by side first, only as many at a time as stay in a core's
cache, and the results of the parts are merged by their lse (flash-decoding, Dao et al. 2023).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from faops.backends.torch import footprint
from faops.backends.torch.cached import Sequence, append, cached_lengths, is_dense_batch, sequences_of
from faops.backends.torch.sdpa import Sdpa, shared_reasons
from faops.backends.torch.sdpa_banded import SdpaBandedForward
from faops.backends.torch.sdpa_cpu import cpu_forward, cpu_forward_heads_first, cpu_reasons
from faops.backends.torch.space import GATHERED_KIB
from faops.backends.torch.threads import cpu_threads, thread_choices
from faops.backends.torch.tiles import compute_dtype
from faops.device import DeviceProfile
from faops.footprint import Footprint
from faops.inputs import AttentionInputs, DecodeInputs
from faops.problem import AttentionProblem, Band
from faops.registry import Config, Decision, decide

Part = tuple[Tensor, Tensor, int]  # keys and values (b, Hk, n, D), and the number of the first of them
Result = tuple[Tensor, Tensor]  # (b, Hk, G·M, D) in any dtype, and lse (b, Hk, G·M)

# Rows of a KV head up to which a mask of rows × keys is small beside the keys and values themselves.
FEW_ROWS = 64
BLOCK_ROWS = 256  # of a call for more rows
KIB = 1024


class SdpaDecode(Sdpa):
    """Decode and chunked prefill, dense or paged, any page size. ``gather`` KiB of keys are copied at a time."""

    name = "sdpa_decode"
    op = "decode"

    def check(self, problem: AttentionProblem, device: DeviceProfile) -> Decision:
        return decide(self._reasons(problem, device))

    def _reasons(self, problem: AttentionProblem, device: DeviceProfile) -> Iterator[str]:
        # The band and ALiBi are a range of keys or a small mask, and sinks join the result by its lse.
        yield from shared_reasons(replace(problem, layout="dense", band=Band(), alibi=False, sinks=False), device)
        yield from cpu_reasons(device)
        if problem.mask:
            yield "SDPA takes one mask, and the band may be it"

    def configs(self, problem: AttentionProblem, device: DeviceProfile) -> list[Config]:
        default = self.default_config(problem, device)
        sizes = GATHERED_KIB if problem.layout == "paged" else (default.integer("gather"),)
        choices = (Config(gather=size, threads=threads) for threads in thread_choices(device.threads) for size in sizes)
        return [default, *(config for config in choices if config != default)]

    def default_config(self, problem: AttentionProblem, device: DeviceProfile) -> Config:
        return Config(gather=1024, threads=0)

    def footprint(self, problem: AttentionProblem, device: DeviceProfile, config: Config) -> Footprint:
        return footprint.cached(problem, device, config)

    def launch(self, inputs: DecodeInputs, config: Config) -> tuple[Tensor, Tensor | None]:
        lengths = cached_lengths(inputs)
        sequences = sequences_of(inputs, lengths)
        with cpu_threads(config.integer("threads")):
            call = _Call(inputs, append(inputs, lengths), KIB * config.integer("gather"))
            if is_dense_batch(inputs, sequences):
                results = [call.attend(0, len(sequences), sequences[0])]
            else:
                results = [call.attend(index, 1, keys) for index, keys in enumerate(sequences)]
            outs, logs = zip(*results)
            out = outs[0] if len(outs) == 1 else torch.cat(outs)
            if not inputs.need_lse and inputs.sinks is None:
                return _from_rows(out, inputs.q).to(inputs.q.dtype), None
            lse = logs[0] if len(logs) == 1 else torch.cat(logs)
            if inputs.sinks is not None:
                out, lse = _join_sinks(out, lse, inputs.sinks)
        return _from_rows(out, inputs.q).to(inputs.q.dtype), _from_rows(lse, inputs.q) if inputs.need_lse else None


class _Call:
    """What the sequences of a call share. ``q`` (B, M, H, D) is rotated; ``gathered`` bytes of keys make a part."""

    def __init__(self, inputs: DecodeInputs, q: Tensor, gathered: int) -> None:
        self.inputs = inputs
        self.q = q
        self.heads_kv, self.page_size = inputs.k_cache.shape[2], inputs.k_cache.shape[1]
        self.packed = _to_rows(q, self.heads_kv)
        # One row sees a range of keys, whatever the band: no mask is needed.
        self.is_plain = q.shape[1] == 1 and inputs.alibi_slopes is None
        self.table = inputs.block_table
        # Heads first, as the kernel wants them.
        self.caches = (inputs.k_cache.transpose(1, 2), inputs.v_cache.transpose(1, 2))
        of_page = self.page_size * self.heads_kv * q.shape[3] * q.element_size()
        self.pages = max(1, gathered // of_page)
        self.buffers: list[Tensor] = []

    def attend(self, first: int, count: int, keys: Sequence) -> Result:
        """Attention of ``count`` sequences from ``first`` on, whose keys have the same places."""
        seqlen_k = keys.last - keys.first
        packed = self.packed.narrow(0, first, count)
        if not self.is_plain or seqlen_k == 0:
            return self._attend_under_mask(first, count, packed, keys)
        scale = self.inputs.scale
        results = [cpu_forward_heads_first(packed, k, v, False, scale) for k, v, _ in self._parts(first, count, keys)]
        return results[0] if len(results) == 1 else _merged(results)

    def _attend_under_mask(self, first: int, count: int, packed: Tensor, keys: Sequence) -> Result:
        """The same where rows see different keys, where keys are biased, and where there are none."""
        inputs, q, seqlen_k = self.inputs, self.q.narrow(0, first, count), keys.last - keys.first
        seqlen_q = q.shape[1]
        band = Band() if seqlen_q == 1 else inputs.band.simplify(seqlen_q, seqlen_k)
        dead = min(seqlen_q, max(0, seqlen_q - seqlen_k - band.right)) if band.right >= 0 else 0
        if seqlen_k == 0 or dead == seqlen_q:
            out = packed.new_zeros(packed.shape)
            return out, out.new_full(out.shape[:3], -math.inf, dtype=compute_dtype(q.dtype))
        if dead > 0 or (not band.full and packed.shape[2] > FEW_ROWS):
            return self._attend_many(first, count, q, keys)
        mask = _mask(inputs, band, q, slice(first, first + count), seqlen_k)
        results = []
        # A part might hide all its keys from a row, which the kernel cannot tell from a row with keys.
        for k, v, start in self._parts(first, count, keys, whole=not band.full):
            own = None if mask is None else mask.narrow(3, start, k.shape[2])
            results.append(cpu_forward_heads_first(packed, k, v, False, inputs.scale, own))
        return results[0] if len(results) == 1 else _merged(results)

    def _attend_many(self, first: int, count: int, q: Tensor, keys: Sequence) -> Result:
        """The same for many rows, as a forward call."""
        inputs, slopes = self.inputs, self.inputs.alibi_slopes
        k, v = next((k.transpose(1, 2), v.transpose(1, 2)) for k, v, _ in self._parts(first, count, keys, whole=True))
        if slopes is None and inputs.band.causal and q.shape[1] == k.shape[1]:
            out, lse = cpu_forward(q, k, v, True, inputs.scale)
        else:
            call = AttentionInputs(
                q=q, k=k, v=v, alibi_slopes=None if slopes is None else _slopes_of(slopes, slice(first, first + count)),
                bias=None, mask=None, sinks=None, cu_seqlens_q=None, cu_seqlens_k=None, rng=None,
                max_seqlen_q=q.shape[1], max_seqlen_k=k.shape[1], window_left=inputs.window_left,
                window_right=inputs.window_right, scale=inputs.scale, softcap=0.0, dropout_p=0.0, deterministic=False,
                need_lse=True, backend="",
            )  # fmt: skip
            out, found = SdpaBandedForward().launch(call, Config(block_q=BLOCK_ROWS))
            assert found is not None
            lse = found
        return _to_rows(out, self.heads_kv), _to_rows(lse.mT[..., None], self.heads_kv)[..., 0]

    def _parts(
        self, first: int, count: int, keys: Sequence, whole: bool = False
    ) -> Iterator[tuple[Tensor, Tensor, int]]:
        """The sequences' keys. A part is overwritten by the next one; ``whole`` asks for all keys at once."""
        if self.table is None:
            k, v = self.caches
            start, length = keys.first, keys.last - keys.first
            yield (
                k.narrow(0, keys.row, count).narrow(2, start, length),
                v.narrow(0, keys.row, count).narrow(2, start, length),
                0,
            )
            return
        size = self.page_size
        low, high = keys.first // size, -(-keys.last // size)
        most = high - low if whole else min(self.pages, high - low)
        table = self.table[first]
        for page in range(low, high, most):
            stop = min(page + most, high)
            k, v = self._gathered(table[page:stop], most)
            start = page * size
            before, last = max(keys.first - start, 0), min(keys.last, stop * size) - start
            if last - before < k.shape[2]:
                k, v = k.narrow(2, before, last - before), v.narrow(2, before, last - before)
            yield k, v, max(start - keys.first, 0)

    def _gathered(self, pages: Tensor, most: int) -> tuple[Tensor, Tensor]:
        """The keys and values of pages side by side, (1, Hk, positions, D); there are ``most`` pages in a part."""
        inputs, count = self.inputs, pages.shape[0]
        if not self.buffers or self.buffers[0].shape[0] < most:
            caches = (inputs.k_cache, inputs.v_cache)
            self.buffers = [cache.new_empty(most, *cache.shape[1:]) for cache in caches]
        k, v = self.buffers
        if count < k.shape[0]:
            k, v = k.narrow(0, 0, count), v.narrow(0, 0, count)
        # index_select copies pages as wholes, in less than half the time that cache[pages] takes.
        torch.index_select(inputs.k_cache, 0, pages, out=k)
        torch.index_select(inputs.v_cache, 0, pages, out=v)
        return k.flatten(0, 1).transpose(0, 1)[None], v.flatten(0, 1).transpose(0, 1)[None]


def _mask(inputs: DecodeInputs, band: Band, q: Tensor, rows: slice, seqlen_k: int) -> Tensor | None:
    """What the band and ALiBi add to the scores, (b | 1, Hk | 1, G·M, n); None where it is nothing."""
    if band.full and inputs.alibi_slopes is None:
        return None
    batch, seqlen_q, heads, _ = q.shape
    heads_kv, dtype = inputs.k_cache.shape[2], compute_dtype(q.dtype)
    own = torch.arange(seqlen_k - seqlen_q, seqlen_k, dtype=dtype)
    distance = own[:, None] - torch.arange(seqlen_k, dtype=dtype)
    mask = torch.zeros_like(distance)
    if inputs.alibi_slopes is not None:
        slopes = _slopes_of(inputs.alibi_slopes, rows).to(dtype).expand(batch, heads)
        mask = -slopes[:, :, None, None] * distance.abs()
    if band.left >= 0:
        mask = mask.masked_fill(distance > band.left, -math.inf)
    if band.right >= 0:
        mask = mask.masked_fill(distance < -band.right, -math.inf)
    if mask.dim() == 2:
        return mask.expand(1, 1, heads // heads_kv, -1, -1).flatten(2, 3)
    return mask.view(batch, heads_kv, -1, seqlen_k)


def _slopes_of(slopes: Tensor, rows: slice) -> Tensor:
    """The ALiBi slopes of some rows of the batch, (b, H) or (H)."""
    return slopes if slopes.dim() == 1 else slopes[rows]


def _merged(results: list[Result]) -> Result:
    """The attention to the keys of all parts."""
    outs, logs = (torch.stack(parts) for parts in zip(*results))
    weights = torch.softmax(logs, 0)
    return (outs * weights[..., None]).sum(0), torch.logsumexp(logs, 0)


def _join_sinks(out: Tensor, lse: Tensor, sinks: Tensor) -> Result:
    """Each head's sink joins the softmax denominator; rows without a key stay dead."""
    heads_kv, rows = lse.shape[1:]
    sink = sinks.to(lse.dtype).view(1, heads_kv, -1, 1).expand(-1, -1, -1, rows * heads_kv // sinks.shape[0])
    joined = torch.logaddexp(lse, sink.reshape(1, heads_kv, rows))
    return out * (lse - joined).exp_()[..., None], torch.where(lse == -math.inf, lse, joined)


def _to_rows(values: Tensor, heads_kv: int) -> Tensor:
    """(b, M, H, D) → (b, Hk, G·M, D); a view where M is 1."""
    batch, seqlen_q, _, dim = values.shape
    if seqlen_q == 1:
        return values.squeeze(1).view(batch, heads_kv, -1, dim)
    return values.view(batch, seqlen_q, heads_kv, -1, dim).permute(0, 2, 3, 1, 4).reshape(batch, heads_kv, -1, dim)


def _from_rows(values: Tensor, q: Tensor) -> Tensor:
    """(B, Hk, G·M, D) → (B, M, H, D), and (B, Hk, G·M) → (B, H, M); dense, in the order of q's axes."""
    batch, seqlen_q, heads, dim = q.shape
    if values.dim() == 3:
        return values.reshape(batch, heads, seqlen_q)
    if seqlen_q == 1:
        return values.reshape(batch, 1, heads, dim)
    heads_first = values.reshape(batch, heads, seqlen_q, dim)
    if q.stride(1) < q.stride(2):
        return heads_first.contiguous().transpose(1, 2)
    return heads_first.transpose(1, 2).contiguous()
