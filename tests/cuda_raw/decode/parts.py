"""Append and combine by themselves in the emulator, held to the oracle."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from faops import reference
from faops.backends.cuda_raw import emulator
from faops.backends.cuda_raw.decode_parts import append, combine
from faops.backends.cuda_raw.emulator import Report
from faops.backends.cuda_raw.source import Source
from faops.backends.cuda_raw.specialize import Specialised
from faops.inputs import DecodeInputs
from faops.layout import empty_lse, empty_out
from faops.operands import DecodeOperands
from tests.cuda_raw.decode.support import inputs_of, poisoned_like
from tests.cuda_raw.support import HALF
from tests.kvcache import Call, bits, make_call

ARCHS = {"t4": "sm_75", "a100": "sm_80"}
Change = Callable[[Source], Source]


def changed(kernel: Specialised, change: Change | None) -> Specialised:
    return kernel if change is None else replace(kernel, source=change(kernel.source))


def launch_append(inputs: DecodeInputs, card: str = "a100", mode: str = "run", change: Change | None = None) -> Report:
    """Append the call's new keys and values with a kernel whose source ``change`` has altered."""
    operands = DecodeOperands.of(inputs)
    tensors = [
        operands.k, operands.v, operands.k_cache, operands.v_cache, operands.cache_seqlens, operands.cache_batch_idx,
        operands.block_table, operands.rotary_cos, operands.rotary_sin,
    ]  # fmt: skip
    return emulator.launch(changed(append(inputs, operands), change), tensors, ARCHS[card], mode)


def check_append(call: Call, card: str = "a100", mode: str = "run", change: Change | None = None) -> Report:
    """The caches are the oracle's afterwards, and what lies between the rows of a strided one is as it was."""
    inputs = inputs_of(call)
    options = {name: value for name, value in call.options.items() if name != "num_splits"}
    _, _, *after = reference.attention_with_kvcache(*call.tensors, **options)  # type: ignore[arg-type]
    wholes = {id(whole_of(cache)): whole_of(cache) for cache in caches_of(call)}
    expected = {name: bits(whole).clone() for name, whole in wholes.items()}
    for cache, wanted in zip(caches_of(call), after):
        inner = expected[id(whole_of(cache))].as_strided(cache.shape, cache.stride(), cache.storage_offset())
        inner.copy_(bits(wanted))
    report = launch_append(inputs, card, mode, change)
    for name, whole in wholes.items():
        assert torch.equal(bits(whole), expected[name]), call.text
    return report


def whole_of(cache: Tensor) -> Tensor:
    """The tensor that ``cache`` is a part of."""
    return cache if cache._base is None else cache._base


def caches_of(call: Call) -> list[Tensor]:
    return [cache for cache in call.tensors[1:3] if cache is not None]


def rotating(call: Call, pairs: int, dtype: torch.dtype, interleaved: bool, positions: int = 100) -> Call:
    """The call with tables of ``pairs`` random angles for so many positions."""
    angles = torch.randn(positions, pairs) * 5
    tables: dict[str, Any] = {"rotary_cos": angles.cos().to(dtype), "rotary_sin": angles.sin().to(dtype)}
    return replace(call, options={**call.options, **tables, "rotary_interleaved": interleaved})


def cancelling() -> Call:
    """Both products of each rotated pair are the same: their difference is 0 where each was rounded by itself, and the
    rounding error of one where they were fused.
    """
    call = rotating(make_call("append", dtype=HALF, M=5, dim=32, dim_v=8, keys=30), 16, torch.float32, False)
    call.options["rotary_sin"] = call.options["rotary_cos"]
    k = call.tensors[3]
    assert k is not None
    k.copy_(torch.cat([k[..., :16] * 1000, k[..., :16] * 1000], -1))
    return call


def misbehaving(**options: Any) -> tuple[Call, DecodeInputs]:
    """A call of three sequences for a test to spoil: paged, or with ``cache_batch_idx`` dense."""
    call = make_call("append", dtype=HALF, M=4, page=0 if "cache_batch_idx" in options else 4, keys=17, batch=3)
    call.options.update(options)
    return call, inputs_of(call)


class Splits:
    """Random results of splits and their logarithms, for a call of that shape; NaN where a split saw no key."""

    def __init__(
        self, splits: int, dim_v: int = 32, M: int = 2, group: int = 3, dtype: torch.dtype = HALF, sinks: bool = False
    ) -> None:
        call = make_call(*["sinks"] * sinks, dtype=dtype, M=M, group=group, dim=8, dim_v=dim_v, keys=20)
        self.operands = DecodeOperands.of(inputs_of(call))
        if self.operands.sinks is not None:
            self.operands = self.operands._replace(sinks=self.operands.sinks.float())
        self.shape = (2, 2, M, group)  # sequence, KV head, position, head of the group
        self.splits, self.dim_v = splits, dim_v
        self.results = torch.randn(*self.shape, splits, dim_v)
        self.logs = torch.randn(*self.shape, splits) * 5

    def hide(self, mask: Tensor) -> None:
        self.logs[mask] = -math.inf
        self.results[mask] = math.nan

    def run(
        self, mode: str = "run", need_lse: bool = True, out: Tensor | None = None, change: Change | None = None
    ) -> tuple[Tensor, Tensor | None]:
        self.out = poisoned_like(empty_out(self.operands.q, self.dim_v)) if out is None else out
        self.lse = poisoned_like(empty_lse(self.operands.q)) if need_lse else None
        partial = torch.cat([self.results.flatten(), self.logs.flatten()])
        kernel = changed(combine(self.operands, self.out, self.lse, self.splits), change)
        tensors = [partial, self.out, self.lse, self.operands.sinks]
        self.report: Report = emulator.launch(kernel, tensors, ARCHS["a100"], mode)
        return self.out, self.lse

    def expected(self) -> tuple[Tensor, Tensor]:
        """out (sequence, position, head, element) and lse (sequence, head, position) in float64."""
        logs, results = self.logs.double() * math.log(2), self.results.double().nan_to_num(0)
        weights = logs.exp()
        total, sinks = weights.sum(-1), self.operands.sinks
        dead = total == 0
        if sinks is not None:
            total = total + sinks.double().exp().view(1, self.shape[1], 1, self.shape[3])
        out = (weights[..., None] * results).sum(-2) / total[..., None]
        lse = total.log()
        out[dead], lse[dead] = 0, -math.inf
        batch, heads_kv, M, group = self.shape
        out = out.permute(0, 2, 1, 3, 4).reshape(batch, M, heads_kv * group, self.dim_v)
        return out, lse.permute(0, 1, 3, 2).reshape(batch, heads_kv * group, M)

    def check(
        self, mode: str = "run", need_lse: bool = True, out: Tensor | None = None, change: Change | None = None
    ) -> None:
        found, lse = self.run(mode, need_lse, out, change)
        exact, exact_lse = self.expected()
        eps = torch.finfo(found.dtype).eps
        torch.testing.assert_close(found.double(), exact, atol=eps / 16, rtol=eps)
        if lse is not None:
            torch.testing.assert_close(lse.double(), exact_lse, atol=1e-6, rtol=1e-6)
