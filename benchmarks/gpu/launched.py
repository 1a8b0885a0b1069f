"""A call of any of the kernels as section "graph" sees it, and the raw CUDA kernels' one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from torch import Tensor

from benchmarks.gpu.attention import FAMILIES, Call, attention_inputs, check_result, poison
from benchmarks.gpu.triton_calls import Results
from faops.backends.cuda_raw.launch import launch
from faops.backends.cuda_raw.specialize import specialise
from faops.device import detect


class Launched(Protocol):
    """A call whose tensors are on the device. The Triton kernels' ones are in benchmarks/gpu/triton_calls.py."""

    @property
    def results(self) -> Results:
        """What the last run computed."""

    def run(self) -> None:
        """Enqueue it."""

    def clear(self) -> None:
        """Poison the results."""

    def check(self, results: Results, context: str) -> None:
        """Hold ``results``, of this call or of one that got its inputs, to the accuracy rule."""

    def operands(self) -> list[Tensor]:
        """Every tensor that the call reads."""

    def spread(self, far: Callable[[Tensor], Tensor]) -> None:
        """Put copies that ``far`` makes in place of q, keys and values."""


class RawLaunched:
    """A call of a raw CUDA family; its results lie in the tensors that it was prepared with."""

    def __init__(self, family: str, call: Call) -> None:
        self._family, self._call = FAMILIES[family], call

    @property
    def results(self) -> Results:
        return self._call.operands.out, self._call.operands.lse

    @property
    def blocks(self) -> int:
        return self._call.kernel.grid

    def run(self) -> None:
        launch(self._call.kernel, self._call.operands)

    def clear(self) -> None:
        for tensor in self.results:
            if tensor is not None:
                poison(tensor)

    def check(self, results: Results, context: str) -> None:
        out, lse = results
        assert out is not None
        check_result(replace(self._call, operands=self._call.operands._replace(out=out, lse=lse)), context)

    def operands(self) -> list[Tensor]:
        return list(self._call.operands[:3])

    def spread(self, far: Callable[[Tensor], Tensor]) -> None:
        call = self._call
        q, k, v = (far(tensor) for tensor in self.operands())
        inputs = attention_inputs(call.case, call.tensors, call.seed, q.device)
        inputs.q, inputs.k, inputs.v = q, k, v
        operands = call.operands._replace(q=q, k=k, v=v)
        kernel = specialise(
            self._family.family, inputs, operands, self._family.tiles(inputs.problem(), detect(q.device))
        )
        self._call = replace(call, kernel=kernel, operands=operands)
