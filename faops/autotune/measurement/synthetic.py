"""Random tensors for a problem, so that it can be measured without the program that will ask it.

Data is standard normal, never zeros: zeros draw less power and let a device clock higher than real data does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from faops import dispatch
from faops.device import detect
from faops.errors import ArgumentError, TuningError
from faops.hollow import Inputs, hollow_inputs, packed_lengths
from faops.inputs import AttentionInputs, BackwardInputs, DecodeInputs
from faops.problem import AttentionProblem

Forward = TypeVar("Forward", bound=AttentionInputs | DecodeInputs)
Make = Callable[[Tensor], Tensor]  # from one without storage

SEED = 20  # any fixed number: a problem gets the same data in every process
VISIBLE = 0.9  # share of pairs that a random mask leaves visible


def inputs_for(problem: AttentionProblem, device: torch.device | str) -> Inputs:
    """Inputs whose ``problem()`` is ``problem``, with random data on ``device``: what :func:`hollow_inputs` describes.

    Varlen lengths spread evenly from half the maximum up to it; a decode cache is full. Out and lse of a backward
    problem come from a real forward. Raises TuningError for a problem that no inputs can express.
    """
    if problem.fp8_descale:
        raise TuningError(f"{problem}: problems with fp8 descales cannot be tuned yet")
    source = _Source(problem, torch.device(device))
    try:
        hollow = hollow_inputs(problem)
    except ArgumentError as error:
        raise TuningError(str(error)) from None
    return _backward(hollow, source) if isinstance(hollow, BackwardInputs) else source.filled(hollow)


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
    """Seeded random tensors for a problem on one device, in place of the tensors without storage."""

    def __init__(self, problem: AttentionProblem, device: torch.device) -> None:
        self.problem = problem
        self.device = device
        self.generator = torch.Generator(device="cpu").manual_seed(SEED)

    def filled(self, hollow: Forward) -> Forward:
        """``hollow`` with data in its tensors: normal numbers, but where there is more to a tensor than that."""
        special = self._of_decode(hollow) if isinstance(hollow, DecodeInputs) else self._of_forward()
        tensors = {item.name: getattr(hollow, item.name) for item in fields(hollow)}
        made: dict[str, Any] = {
            name: special.get(name, self.normal)(t) for name, t in tensors.items() if isinstance(t, Tensor)
        }
        return replace(hollow, **made)

    def normal(self, hollow: Tensor) -> Tensor:
        return torch.randn(hollow.shape, generator=self.generator).to(self.device, hollow.dtype)

    def _of_forward(self) -> dict[str, Make]:
        return {
            "alibi_slopes": self._slopes,
            "mask": self._mask,
            "cu_seqlens_q": lambda _: self._ends(self.problem.seqlen_q),
            "cu_seqlens_k": lambda _: self._ends(self.problem.seqlen_k),
            "rng": lambda _: torch.tensor([SEED, 0], device=self.device),
        }

    def _of_decode(self, hollow: DecodeInputs) -> dict[str, Make]:
        """Pages and rows of the cache in random order; ``cos`` and ``sin`` of the same angles."""
        batch, capacity = self.problem.batch, self.problem.seqlen_k
        new = self.problem.seqlen_q if self.problem.append else 0
        table, cos = hollow.block_table, hollow.rotary_cos
        pages = torch.randperm(0 if table is None else table.numel(), generator=self.generator)
        angles = torch.randn(0 if cos is None else cos.shape, generator=self.generator)
        rows = torch.randperm(batch, generator=self.generator)
        return {
            "alibi_slopes": self._slopes,
            "mask": self._mask,
            "cache_seqlens": lambda _: self._ints(torch.full((batch,), max(0, capacity - new))),
            "cache_batch_idx": lambda _: self._ints(rows),
            "cache_leftpad": lambda _: self._ints(torch.arange(batch) % max(1, capacity // 4)),
            "block_table": lambda like: self._ints(pages.view(like.shape)),
            "rotary_cos": lambda like: angles.to(self.device).cos().to(like.dtype),
            "rotary_sin": lambda like: angles.to(self.device).sin().to(like.dtype),
        }

    def _mask(self, hollow: Tensor) -> Tensor:
        return (torch.rand(hollow.shape, generator=self.generator) < VISIBLE).to(self.device)

    def _slopes(self, hollow: Tensor) -> Tensor:
        """The geometric slopes of the ALiBi paper: 2^(-8 (h + 1) / H)."""
        heads = hollow.shape[0]
        return torch.exp2(-8.0 * torch.arange(1, heads + 1, dtype=torch.float32) / heads).to(self.device)

    def _ends(self, longest: int) -> Tensor:
        """Where the sequences of a packed batch end, a 0 before."""
        lengths = packed_lengths(longest, self.problem.batch)
        return self._ints(torch.nn.functional.pad(lengths.cumsum(0), (1, 0)))

    def _ints(self, values: Tensor) -> Tensor:
        return values.to(self.device, torch.int32)


def _backward(hollow: BackwardInputs, source: _Source) -> BackwardInputs:
    # The forward that comes before this backward.
    asked = replace(source.problem, op="forward", need_lse=True, lse_grad=False, bias_grad=False, deterministic=False)
    inputs = source.filled(hollow.forward)
    plan = dispatch.plan(asked, detect(source.device))
    out, lse = plan.kernel.launch(inputs, plan.config)
    return replace(
        hollow,
        dout=source.normal(hollow.dout),
        dlse=None if hollow.dlse is None else source.normal(lse),
        forward=inputs,
        out=out,
        lse=lse,
    )
