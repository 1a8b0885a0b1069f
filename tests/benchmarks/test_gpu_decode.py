"""The GPU suite's sections for the raw CUDA kernels of a KV cache, in the emulator."""

from __future__ import annotations

import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.gpu import contenders_decode, raw_decode, triton_decode
from benchmarks.gpu.contenders_decode import Cache, Calls
from benchmarks.gpu.options import Options
from benchmarks.gpu.outcome import SkipError
from benchmarks.gpu.raw_decode import own_kernel
from benchmarks.gpu.triton_calls import Place, Trial, hold, prepare
from faops import reference
from faops.backends.cuda_raw import emulator
from faops.device import known
from faops.problem import AttentionProblem

A100, T4 = Place.of("a100"), Place.of("t4")
SHAPE = {"capacity": 40, "head_dim": 16}
TRIAL = Trial("decode", torch.float16, ("append", "gqa", "paged16"), None, SHAPE, seed=5, kernel="cuda_raw.sm80_decode")


@pytest.fixture
def emulated(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if reason := emulator.missing():
        pytest.skip(f"NOT TESTED, nothing was launched: {reason}")
    cache = getattr(request.config, "cache", None)
    if cache is not None:
        monkeypatch.setenv("FAOPS_CACHE_DIR", str(cache.mkdir("gpu_suite")))
    monkeypatch.setenv("FAOPS_EMULATE", "a100")


def test_trials_cover_what_there_is() -> None:
    for place, dtypes in ((A100, {torch.float16, torch.bfloat16}), (T4, {torch.float16})):
        trials = raw_decode.trials(Options(), place.profile)
        kernel = own_kernel(place.profile)
        assert {trial.kernel for trial in trials} == {kernel.id} and kernel.id in str(trials[0])
        assert {trial.dtype for trial in trials} == dtypes
        alone = {trial.features for trial in trials if len(trial.features) < 2}
        assert alone >= {(), *((name,) for name in triton_decode.FEATURES)}
        assert all(triton_decode.compatible(trial.features) for trial in trials)
        assert {trial.shape["head_dim"] for trial in trials} >= {*raw_decode.HEAD_DIMS, 33, 255}
        problem = AttentionProblem("decode", "float16", seqlen_q=1, seqlen_k=300, heads_q=8, heads_kv=2,
                                   head_dim=64, head_dim_v=64)  # fmt: skip
        tried = {trial.config for trial in trials if trial.shape["head_dim"] == 64}
        assert tried >= set(kernel.configs(problem, place.profile))
        assert len({trial.seed for trial in trials}) > 0.9 * len(trials)
        assert len(raw_decode.trials(Options(quick=True), place.profile)) < len(trials)
    assert own_kernel(known("t4")).id == "cuda_raw.sm75_decode" and own_kernel(known("h200")).id == TRIAL.kernel


@pytest.mark.usefixtures("emulated")
def test_a_right_result_is_accepted() -> None:
    hold(TRIAL, A100)


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("number", [0, 1, 3])
def test_a_wrong_result_is_found(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Of out, lse and what was appended to the values."""
    call = prepare(TRIAL, A100)
    call.run()
    call.check(call.results, "as it is")
    spoilt = call.results[number]
    assert spoilt is not None
    spoilt.masked_fill_(spoilt.isfinite(), 7.0)
    with pytest.raises(AssertionError):
        call.check(call.results, "spoilt")


@pytest.mark.usefixtures("emulated")
def test_lengths_can_be_set() -> None:
    call = prepare(TRIAL, A100)
    assert isinstance(call, triton_decode.DecodeCall)
    call.run()
    call.set_lengths(torch.tensor([3, 0, 30], dtype=torch.int32))
    with pytest.raises(AssertionError):
        call.check(call.results, "of the lengths before")
    call.run()
    call.check(call.results, "of these lengths")


def test_where_the_kernels_do_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(raw_decode.Place, "of", lambda card: replace_arch(A100))
    (item,) = raw_decode.items(Options())
    with pytest.raises(SkipError, match="sm_70"):
        item.run()


def replace_arch(place: Place) -> Place:
    return Place(place.device, replace(place.profile, arch="sm_70"))


class Wrapper:
    """FlashInfer's class as its documentation has it, computing with the oracle."""

    def __init__(self, workspace: Tensor, layout: str, use_tensor_cores: bool = False) -> None:
        assert layout == "NHD" and workspace.dtype == torch.uint8

    def plan(self, ends: Tensor, pages: Tensor, last: Tensor, heads: int, heads_kv: int, dim: int, size: int,
             q_data_type: torch.dtype, kv_data_type: torch.dtype) -> None:  # fmt: skip
        self.table = pages.view(len(last), -1)
        assert ends.tolist() == [i * self.table.shape[1] for i in range(len(last) + 1)]
        assert (last == size).all() and heads % heads_kv == 0

    def run(self, q: Tensor, caches: tuple[Tensor, Tensor]) -> Tensor:
        out = reference.attention_with_kvcache(q[:, None], *caches, block_table=self.table)[0]
        return out[:, 0].to(q.dtype)


def test_flashinfer_gets_the_same_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    small: dict[str, Any] = {"HEADS": 4, "HEADS_KV": 2, "HEAD_DIM": 16, "WORKSPACE_BYTES": 64}
    for name, value in small.items():
        monkeypatch.setattr(contenders_decode, name, value)
    monkeypatch.setitem(sys.modules, "flashinfer", SimpleNamespace(BatchDecodeWithPagedKVCacheWrapper=Wrapper))
    cache = Cache(2, 32, "float16")
    q, k_cache, v_cache = cache.draw("cpu")
    calls = Calls(cache)
    out = calls.flashinfer(16)(q, k_cache, v_cache)()
    expected = reference.attention_with_kvcache(q, k_cache, v_cache)[0]
    torch.testing.assert_close(out.double(), expected, atol=2e-3, rtol=2e-3)
    inputs = calls.inputs(16, q, k_cache, v_cache)
    assert calls.inputs(16, q, k_cache, v_cache) is inputs
    assert calls.inputs(16, q, k_cache.clone(), v_cache) is not inputs
