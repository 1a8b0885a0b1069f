"""The correctness gate knows every config of the npu kernels, at shapes that exercise what they choose between."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from faops import registry
from faops.autotune.measurement.bench import DeviceBench
from faops.autotune.search.candidates import Candidate
from faops.device import detect
from faops.errors import TuningError
from faops.problem import AttentionProblem, parse_shape
from faops.registry import Kernel
from tests.npu import double

SIZES = "b=2,sq=70,sk=130,h=4,hk=2,d=64"
CACHE = "op=decode,b=3,sk=256,h=4,hk=2,d=64,append=1"
SHAPES = [
    f"{SIZES},dtype=bfloat16,window=33:0,need_lse=1",
    f"{SIZES},dtype=float16,mask=b.mn,bias=.hmn",
    f"{SIZES},dtype=float32,causal=1,sinks=1",
    f"{SIZES},dtype=bfloat16,causal=1,layout=varlen,need_lse=1",
    f"{SIZES},dtype=bfloat16,causal=1,op=backward",
    f"{SIZES},dtype=float32,layout=varlen,op=backward",
    f"{CACHE},sq=1,dtype=float16,mask=b..n",
    f"{CACHE},sq=1,dtype=bfloat16,layout=paged,page_size=48,sk=192",
    f"{CACHE},sq=5,dtype=float16,layout=paged,page_size=128,causal=1,rotary=half",
]


def problem_of(shape: str) -> AttentionProblem:
    asked = parse_shape(shape)
    return replace(asked, need_lse=True) if asked.op == "backward" else asked


def candidates(asked: AttentionProblem) -> list[Candidate]:
    """Every config of every npu kernel that runs a problem."""
    device = detect("cpu")
    kernels = [kernel for kernel in registry.kernels(asked.op) if kernel.check(asked, device)]
    return [Candidate(kernel, config) for kernel in kernels for config in kernel.configs(asked, device)]


@pytest.mark.parametrize("shape", SHAPES)
def test_every_config_passes(npu: double.Handle, shape: str) -> None:
    asked = problem_of(shape)
    bench, found = DeviceBench(asked, torch.device("cpu"), detect("cpu")), candidates(asked)
    assert len(found) > 1
    for candidate in found:
        bench.check(candidate)
    assert npu.calls


@pytest.mark.parametrize("shape", [SHAPES[0], SHAPES[2], SHAPES[4], SHAPES[7]])
def test_a_wrong_result_is_seen_whatever_is_wrong(
    npu: double.Handle, shape: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Results that are off by a part in twenty in one row."""
    asked = problem_of(shape)
    bench, (candidate, *_) = DeviceBench(asked, torch.device("cpu"), detect("cpu")), candidates(asked)
    original = type(candidate.kernel).launch

    def off(self: Kernel, *given: Any) -> Any:
        first, *rest = original(self, *given)
        first[1, first.shape[1] // 2] *= 1.05
        return first, *rest

    monkeypatch.setattr(type(candidate.kernel), "launch", off)
    with pytest.raises(TuningError, match=r"(out|dq) is wrong: relative error 5"):
        bench.check(candidate)


def test_float32_is_checked_without_float64(npu: double.Handle, monkeypatch: pytest.MonkeyPatch) -> None:
    """NPUs multiply no matrices of it."""
    asked = parse_shape(f"{SIZES},dtype=float32")
    witness = registry._kernels["torch.blockwise_forward"]
    asked_of: list[torch.dtype] = []

    def launch(inputs: Any, config: Any) -> Any:
        asked_of.append(inputs.q.dtype)
        return type(witness).launch(witness, inputs, config)

    monkeypatch.setattr(witness, "launch", launch)
    DeviceBench(asked, torch.device("cpu"), detect("cpu")).check(candidates(asked)[0])
    assert asked_of == [torch.float32]
