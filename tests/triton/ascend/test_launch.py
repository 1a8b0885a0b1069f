"""Launching on an NPU is Triton's own call with the right grid, arguments and options, on the right device."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from faops import registry
from faops.backends.triton import base, versions
from faops.backends.triton import launch as shared
from faops.backends.triton.ascend import forward, launch, space
from faops.backends.triton.ascend.gates.cases import Case
from faops.backends.triton.launch import Launch, Tensors
from faops.errors import LaunchError, UnavailableError
from faops.hollow import hollow_inputs
from faops.inputs import AttentionInputs
from faops.problem import AttentionProblem
from tests.triton.ascend.support import BACKEND


class Npu:
    """torch.npu, and a kernel as triton.jit makes it."""

    arg_names = ("x", "absent", "size", "BLOCK")

    def __init__(self) -> None:
        self.current: int | None = None
        self.calls: list[tuple[Any, ...]] = []
        self.error: Exception | None = None

    def is_available(self) -> bool:
        return False

    def current_device(self) -> int | None:
        return self.current

    @contextlib.contextmanager
    def device(self, index: int | None) -> Iterator[None]:
        before, self.current = self.current, index
        yield
        self.current = before

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def call(*arguments: Any, **options: Any) -> None:
            self.calls.append((grid, arguments, options, self.current))
            if self.error is not None:
                raise self.error

        return call


@pytest.fixture
def npu(monkeypatch: pytest.MonkeyPatch) -> Npu:
    found = Npu()
    monkeypatch.setattr(torch, "npu", found, raising=False)
    monkeypatch.setattr(shared, "kernel_function", lambda kernel: found)
    monkeypatch.setattr(launch, "_known", {})
    return found


X = torch.empty(4, device="meta")  # a device that is no CPU
TENSORS: Tensors = (X, None)
MADE = Launch("toy", (3, 1, 1), {"size": 4}, {"BLOCK": 16}, {"multibuffer": False})


def never() -> Launch:
    raise AssertionError("a known key is not described again")


def test_grid_arguments_and_options(npu: Npu) -> None:
    launch.launch("key", TENSORS, lambda: MADE)
    other = torch.empty(4, device="meta")
    launch.launch("key", (other, None), never)
    expected = ((3, 1, 1), (4, 16), {"multibuffer": False})
    for (grid, arguments, options, _), tensor in zip(npu.calls, (X, other), strict=True):
        assert arguments[0] is tensor and arguments[1] is None
        assert (grid, arguments[2:], options) == expected


def test_no_options_of_a_gpu() -> None:
    """triton-ascend warns of num_warps and num_stages."""
    inputs = hollow_inputs(AttentionProblem(seqlen_q=64, seqlen_k=64))
    assert isinstance(inputs, AttentionInputs)
    ((made, _),) = forward.launches(inputs, space.make_config(16, 32, 20))
    assert made.options == {"multibuffer": True}


def test_device_of_the_tensors(npu: Npu) -> None:
    npu.current = 1
    launch.launch("key", TENSORS, lambda: MADE)
    launch.launch("key", TENSORS, never)
    assert [current for *_, current in npu.calls] == [None, None] and npu.current == 1


def test_kernel_that_does_not_compile(npu: Npu) -> None:
    npu.error = RuntimeError("ub overflow, requires 2097152 bits while 1572864 bits available")
    with pytest.raises(UnavailableError, match=r"toy does not compile or load: RuntimeError: ub overflow"):
        launch.launch("key", TENSORS, lambda: MADE)
    npu.error = None
    launch.launch("key", TENSORS, lambda: MADE)  # it was not remembered
    npu.error = RuntimeError("507035")
    with pytest.raises(LaunchError, match="507035"):
        launch.launch("key", TENSORS, never)


def test_problem_whose_default_does_not_compile_is_refused(npu: Npu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "_refused", {})
    monkeypatch.setattr(Npu, "arg_names", ("out",))
    npu.error = RuntimeError("ub overflow")
    kernel = registry.get(BACKEND)
    assert kernel is not None
    problem = AttentionProblem(seqlen_q=64, seqlen_k=64)
    inputs = hollow_inputs(problem)
    device = base.detect("npu")
    assert kernel.check(problem, device)
    with pytest.raises(UnavailableError):
        kernel.launch(inputs, space.make_config(16, 32, 20))
    assert kernel.check(problem, device)  # a config that is not the default
    with pytest.raises(UnavailableError):
        kernel.launch(inputs, kernel.default_config(problem, device))
    assert not kernel.check(problem, device)


def test_cpu_tensors_need_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "interpreted", lambda: False)
    with pytest.raises(UnavailableError, match="TRITON_INTERPRET=1"):
        launch.launch("key", (torch.zeros(4),), lambda: MADE)


def test_lengths_come_to_the_device() -> None:
    """They may be on the host, where CANN's operators want them."""
    problem = AttentionProblem(batch=2, seqlen_q=64, seqlen_k=64, layout="varlen")
    inputs = hollow_inputs(problem)
    assert isinstance(inputs, AttentionInputs)
    inputs.cu_seqlens_q = inputs.cu_seqlens_k = torch.tensor([0, 3, 7], dtype=torch.int32)
    ((_, tensors),) = forward.launches(inputs, space.make_config(16, 32, 20))
    q, *_, cu_seqlens_q, cu_seqlens_k, rng = tensors
    assert q is not None and cu_seqlens_q is not None and cu_seqlens_k is not None and rng is None
    assert cu_seqlens_q.device == cu_seqlens_k.device == q.device


def test_case_describes_a_launch() -> None:
    case = Case(64, "float16", "everything", space.make_config(64, 128, 20))
    made, tensors = case.launch()
    assert made.kernel == "ascend_forward.attention_forward" and made.constants["BLOCK_N"] == 128
    assert [tensor is None for tensor in tensors] == [False] * 11 + [True]
    mask = tensors[7]
    assert mask is not None and mask.dtype == torch.int8  # there are no unsigned bytes, and no bits
    made.arguments(tensors)
