"""Random tensors for a problem, so that it can be measured without the program that will ask it.

Data is standard normal, never zeros: zeros draw less power and let a device clock higher than real data does.
"""

from __future__ import annotations

from dataclasses import fields, replace

import torch
from torch import Tensor

from faops import dispatch
from faops.device import detect
from faops.errors import TuningError
from faops.inputs import AttentionInputs, BackwardInputs, DecodeInputs
from faops.problem import AttentionProblem

Inputs = AttentionInputs | BackwardInputs | DecodeInputs

SEED = 20  # any fixed number: a problem gets the same data in every process
SOFTCAP = 30.0
DROPOUT = 0.1
VISIBLE = 0.9  # share of pairs that a random mask leaves visible


def inputs_for(problem: AttentionProblem, device: torch.device | str) -> Inputs:
    """Inputs whose ``problem()`` is ``problem``, with random data on ``device``.

    Varlen lengths spread evenly from half the maximum up to it; a decode cache is full. Out and lse of a backward
    problem come from a real forward. Raises TuningError for a problem that no inputs can express.
    """
    if problem.fp8_descale:
        raise TuningError(f"{problem}: problems with fp8 descales cannot be tuned yet")
    source = _Source(problem, torch.device(device))
    if problem.op == "decode":
        return _decode(problem, source)
    if problem.op == "backward":
        return _backward(problem, source)
    return _forward(problem, source)


def canonical(problem: AttentionProblem) -> AttentionProblem:
    """The form in which a call would ask ``problem``: without band sides that hide nothing."""
    return replace(problem, band=problem.band.simplify(problem.seqlen_q, problem.seqlen_k))


def converted(inputs: Inputs, dtype: torch.dtype) -> Inputs:
    """A copy of ``inputs`` with every tensor of floating point in ``dtype``; other tensors are copied as they are."""
    values = {item.name: getattr(inputs, item.name) for item in fields(inputs)}
    for name, value in values.items():
        if isinstance(value, Tensor):
            values[name] = value.to(dtype, copy=True) if value.is_floating_point() else value.clone()
        elif isinstance(value, AttentionInputs):  # the forward inside a backward
            values[name] = converted(value, dtype)
    return type(inputs)(**values)


class _Source:
    """Seeded random tensors of a problem's dtype on one device."""

    def __init__(self, problem: AttentionProblem, device: torch.device) -> None:
        self.problem = problem
        self.device = device
        self.generator = torch.Generator(device="cpu").manual_seed(SEED)

    def normal(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        values = torch.randn(shape, generator=self.generator)
        return values.to(self.device, dtype or self.problem.torch_dtype)

    def pattern_shape(self, pattern: str) -> tuple[int, ...]:
        """Shape of a bias or mask with that broadcast pattern."""
        p = self.problem
        sizes = (p.batch, p.heads_q, p.seqlen_q, p.seqlen_k)
        return tuple(size if letter != "." else 1 for letter, size in zip(pattern, sizes))

    def bias(self) -> Tensor | None:
        return self.normal(*self.pattern_shape(self.problem.bias)) if self.problem.bias else None

    def mask(self) -> Tensor | None:
        if not self.problem.mask:
            return None
        values = torch.rand(self.pattern_shape(self.problem.mask), generator=self.generator)
        return (values < VISIBLE).to(self.device)

    def sinks(self) -> Tensor | None:
        return self.normal(self.problem.heads_q) if self.problem.sinks else None

    def alibi_slopes(self) -> Tensor | None:
        """The geometric slopes of the ALiBi paper: 2^(-8 (h + 1) / H)."""
        if not self.problem.alibi:
            return None
        heads = self.problem.heads_q
        return torch.exp2(-8.0 * torch.arange(1, heads + 1, dtype=torch.float32) / heads).to(self.device)

    def lengths(self, longest: int) -> Tensor:
        """Lengths of the sequences of a varlen batch: int64 (B,), from ``longest`` down to half of it."""
        return torch.linspace(longest, longest / 2, self.problem.batch).round().long()

    def ints(self, values: Tensor) -> Tensor:
        return values.to(self.device, torch.int32)


def _forward(problem: AttentionProblem, source: _Source) -> AttentionInputs:
    cu_seqlens_q = cu_seqlens_k = None
    shape_q: tuple[int, ...] = (problem.batch, problem.seqlen_q)
    shape_k: tuple[int, ...] = (problem.batch, problem.seqlen_k)
    if problem.layout == "varlen":
        lengths_q, lengths_k = source.lengths(problem.seqlen_q), source.lengths(problem.seqlen_k)
        cu_seqlens_q = source.ints(torch.nn.functional.pad(lengths_q.cumsum(0), (1, 0)))
        cu_seqlens_k = source.ints(torch.nn.functional.pad(lengths_k.cumsum(0), (1, 0)))
        shape_q, shape_k = (int(lengths_q.sum()),), (int(lengths_k.sum()),)
    elif problem.layout != "dense":
        raise TuningError(f"{problem}: layout {problem.layout} exists for decode only")
    return AttentionInputs(
        q=source.normal(*shape_q, problem.heads_q, problem.head_dim),
        k=source.normal(*shape_k, problem.heads_kv, problem.head_dim),
        v=source.normal(*shape_k, problem.heads_kv, problem.head_dim_v),
        alibi_slopes=source.alibi_slopes(),
        bias=source.bias(),
        mask=source.mask(),
        sinks=source.sinks(),
        cu_seqlens_q=cu_seqlens_q,
        cu_seqlens_k=cu_seqlens_k,
        rng=torch.tensor([SEED, 0], device=source.device) if problem.dropout else None,
        max_seqlen_q=problem.seqlen_q,
        max_seqlen_k=problem.seqlen_k,
        window_left=problem.band.left,
        window_right=problem.band.right,
        scale=problem.head_dim**-0.5,
        softcap=SOFTCAP if problem.softcap else 0.0,
        dropout_p=DROPOUT if problem.dropout else 0.0,
        deterministic=problem.deterministic,
        need_lse=problem.need_lse,
        backend="",
    )


def _backward(problem: AttentionProblem, source: _Source) -> BackwardInputs:
    asked = replace(
        problem, op="forward", need_lse=True, lse_grad=False, bias_grad=False, deterministic=False
    )  # the forward that comes before this backward
    inputs = replace(_forward(asked, source), deterministic=problem.deterministic)
    plan = dispatch.plan(asked, detect(source.device))
    out, lse = plan.kernel.launch(inputs, plan.config)
    return BackwardInputs(
        dout=source.normal(*out.shape),
        dlse=source.normal(*lse.shape, dtype=lse.dtype) if problem.lse_grad else None,
        forward=inputs,
        out=out,
        lse=lse,
        bias_grad=problem.bias_grad,
        sinks_grad=problem.sinks,
    )


def _decode(problem: AttentionProblem, source: _Source) -> DecodeInputs:
    batch, capacity = problem.batch, problem.seqlen_k
    new = problem.seqlen_q if problem.append else 0
    leading: tuple[int, ...] = (batch, capacity)
    block_table = None
    if problem.layout == "paged":
        pages = capacity // problem.page_size
        if pages * problem.page_size != capacity:
            raise TuningError(f"{problem}: the key length is not a multiple of the page size")
        order = torch.randperm(batch * pages, generator=source.generator)
        block_table = source.ints(order.view(batch, pages))
        leading = (batch * pages, problem.page_size)
    cos = sin = None
    if problem.rotary:
        angles = source.normal(capacity, problem.head_dim // 2, dtype=torch.float32)
        cos, sin = angles.cos().to(problem.torch_dtype), angles.sin().to(problem.torch_dtype)
    order = torch.randperm(batch, generator=source.generator)
    return DecodeInputs(
        q=source.normal(batch, problem.seqlen_q, problem.heads_q, problem.head_dim),
        k_cache=source.normal(*leading, problem.heads_kv, problem.head_dim),
        v_cache=source.normal(*leading, problem.heads_kv, problem.head_dim_v),
        k=source.normal(batch, new, problem.heads_kv, problem.head_dim) if problem.append else None,
        v=source.normal(batch, new, problem.heads_kv, problem.head_dim_v) if problem.append else None,
        cache_seqlens=source.ints(torch.full((batch,), max(0, capacity - new))),
        cache_batch_idx=source.ints(order) if problem.batch_index else None,
        cache_leftpad=source.ints(torch.arange(batch) % max(1, capacity // 4)) if problem.leftpad else None,
        block_table=block_table,
        rotary_cos=cos,
        rotary_sin=sin,
        alibi_slopes=source.alibi_slopes(),
        bias=source.bias(),
        mask=source.mask(),
        sinks=source.sinks(),
        window_left=problem.band.left,
        window_right=problem.band.right,
        scale=problem.head_dim**-0.5,
        softcap=SOFTCAP if problem.softcap else 0.0,
        rotary_interleaved=problem.rotary == "interleaved",
        num_splits=0,
        need_lse=problem.need_lse,
        backend="",
    )
