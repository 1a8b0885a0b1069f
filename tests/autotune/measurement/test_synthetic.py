"""Inputs made for a problem ask that very problem, and every real kernel computes them correctly."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from faops import registry
from faops.autotune import effort
from faops.autotune.effort import Budget
from faops.autotune.measurement.bench import DeviceBench, relative_error
from faops.autotune.measurement.synthetic import canonical, converted, inputs_for
from faops.autotune.search.candidates import Candidate
from faops.device import detect
from faops.errors import TuningError
from faops.inputs import AttentionInputs, BackwardInputs, DecodeInputs
from faops.problem import AttentionProblem, Band
from faops.registry import Config

from ..support import FakeKernel

BASE = AttentionProblem(
    dtype="float32", batch=2, seqlen_q=24, seqlen_k=40, heads_q=4, heads_kv=2, head_dim=16, head_dim_v=16
)
DECODE = replace(BASE, op="decode", seqlen_q=1, seqlen_k=48)
CPU = torch.device("cpu")

FEATURES: dict[str, dict[str, Any]] = {
    "plain": {},
    "causal": {"band": Band(-1, 0)},
    "window": {"band": Band(7, 3)},
    "softcap": {"softcap": True},
    "alibi": {"alibi": True},
    "bias": {"bias": "bhmn"},
    "shared bias": {"bias": ".h.n"},
    "mask": {"mask": "b..n"},
    "sinks": {"sinks": True},
    "dropout": {"dropout": True},
    "lse": {"need_lse": True},
    "varlen": {"layout": "varlen", "band": Band(-1, 0)},
    "float16": {"dtype": "float16"},
    "bfloat16": {"dtype": "bfloat16"},
    "wide values": {"head_dim_v": 24},
}
DECODE_FEATURES: dict[str, dict[str, Any]] = {
    "plain": {},
    "append": {"append": True},
    "paged": {"layout": "paged", "page_size": 16, "append": True},
    "interleaved rotary": {"rotary": "interleaved", "append": True},
    "half rotary": {"rotary": "half", "append": True},
    "leftpad": {"leftpad": True},
    "batch index": {"batch_index": True},
    "window": {"band": Band(9, -1)},
    "two queries": {"seqlen_q": 2, "append": True, "band": Band(-1, 0)},
    "bfloat16": {"dtype": "bfloat16", "softcap": True},
}
PROBLEMS = (
    [pytest.param(replace(BASE, **change), id=f"forward {name}") for name, change in FEATURES.items()]
    + [
        pytest.param(
            replace(BASE, **{**change, "op": "backward", "need_lse": True}),
            id=f"backward {name}",
        )
        for name, change in FEATURES.items()
    ]
    + [pytest.param(replace(DECODE, **change), id=f"decode {name}") for name, change in DECODE_FEATURES.items()]
    + [
        pytest.param(replace(BASE, op="backward", need_lse=True, **change), id=f"backward {name}")
        for name, change in {
            "gradient of lse": {"lse_grad": True},
            "gradient of a bias": {"bias": ".hmn", "bias_grad": True},
            "deterministic": {"deterministic": True},
        }.items()
    ]
)


@pytest.mark.parametrize("problem", PROBLEMS)
def test_inputs_ask_their_problem_and_every_kernel_answers_it_correctly(problem: AttentionProblem) -> None:
    profile = detect(CPU)
    assert canonical(problem) == problem
    assert inputs_for(problem, CPU).problem() == problem
    bench = DeviceBench(problem, CPU, profile)
    accepted = [kernel for kernel in registry.kernels(problem.op) if kernel.check(problem, profile)]
    assert accepted
    for kernel in accepted:
        candidate = Candidate(kernel, kernel.default_config(problem, profile))
        bench.check(candidate)
        assert min(bench.sample(candidate, Budget(warmup=0.0, time_cap=0.0, min_samples=1))) > 0


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_forward_problem_round_trips(data: st.DataObject) -> None:
    draw = data.draw
    group, heads_kv = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    layout = draw(st.sampled_from(["dense", "varlen"]))
    problem = canonical(
        AttentionProblem(
            dtype=draw(st.sampled_from(["float16", "bfloat16", "float32", "float64"])),
            batch=draw(st.integers(2, 3)),
            seqlen_q=draw(st.integers(2, 9)),
            seqlen_k=draw(st.integers(2, 9)),
            heads_q=group * heads_kv if group * heads_kv > 1 else 2,
            heads_kv=heads_kv,
            head_dim=draw(st.integers(1, 20)),
            head_dim_v=draw(st.integers(1, 20)),
            layout=layout,  # type: ignore[arg-type]
            band=Band(draw(st.integers(-1, 12)), draw(st.integers(-1, 12))),
            softcap=draw(st.booleans()),
            alibi=draw(st.booleans()),
            bias=draw(st.sampled_from(["", "bhmn", "...n", ".hm."])),
            mask=draw(st.sampled_from(["", "b..n", "..mn"])),
            sinks=draw(st.booleans()),
            dropout=draw(st.booleans()),
            need_lse=draw(st.booleans()),
        )
    )
    assert inputs_for(problem, CPU).problem() == problem


def test_data_is_random_and_the_same_every_time() -> None:
    first, second = inputs_for(BASE, CPU), inputs_for(BASE, CPU)
    assert isinstance(first, AttentionInputs)
    assert isinstance(second, AttentionInputs)
    assert torch.equal(first.q, second.q)
    for tensor in (first.q, first.k, first.v):
        assert tensor.std() == pytest.approx(1.0, abs=0.2)
    assert not torch.equal(first.k, first.v)


def test_backward_inputs_come_from_a_real_forward() -> None:
    inputs = inputs_for(replace(BASE, op="backward", need_lse=True), CPU)
    assert isinstance(inputs, BackwardInputs)
    f = inputs.forward
    k, v = (x.repeat_interleave(2, dim=2).transpose(1, 2) for x in (f.k, f.v))
    scores = f.q.transpose(1, 2) @ k.transpose(2, 3) * f.scale
    torch.testing.assert_close(inputs.lse, scores.logsumexp(-1))
    torch.testing.assert_close(inputs.out, (scores.softmax(-1) @ v).transpose(1, 2))


def test_a_varlen_batch_is_uneven_and_a_cache_is_full() -> None:
    inputs = inputs_for(replace(BASE, batch=3, layout="varlen"), CPU)
    assert isinstance(inputs, AttentionInputs)
    assert inputs.cu_seqlens_q is not None
    assert inputs.cu_seqlens_q.diff().tolist() == [24, 18, 12]
    decode = inputs_for(replace(DECODE, append=True), CPU)
    assert isinstance(decode, DecodeInputs)
    assert decode.cache_seqlens is not None
    assert decode.cache_seqlens.tolist() == [47, 47]


def test_problems_without_inputs_are_refused() -> None:
    with pytest.raises(TuningError, match="fp8"):
        inputs_for(replace(BASE, fp8_descale=True), CPU)
    with pytest.raises(TuningError, match="page size"):
        inputs_for(replace(DECODE, layout="paged", page_size=5), CPU)
    with pytest.raises(TuningError, match="decode only"):
        inputs_for(replace(BASE, layout="paged"), CPU)


def test_inputs_too_large_for_the_memory_are_refused() -> None:
    huge = replace(BASE, batch=1 << 20, seqlen_q=1 << 20, heads_q=1 << 10, heads_kv=1 << 10)
    with pytest.raises(TuningError, match="inputs cannot be made"):
        DeviceBench(huge, CPU, detect(CPU))


def test_converted_inputs_share_nothing() -> None:
    inputs = inputs_for(replace(BASE, op="backward", need_lse=True, dropout=True), CPU)
    wide = converted(inputs, torch.float64)
    assert isinstance(inputs, BackwardInputs)
    assert isinstance(wide, BackwardInputs)
    assert wide.forward.q.dtype == wide.dout.dtype == torch.float64
    assert wide.forward.rng is not None
    assert wide.forward.rng.dtype == torch.int64
    wide.forward.q.zero_()
    wide.forward.rng.zero_()
    assert inputs.forward.q.abs().sum() > 0
    assert inputs.forward.rng is not None
    assert inputs.forward.rng.abs().sum() > 0


class Wrong(FakeKernel):
    """Computes what a real kernel does, and then spoils it."""

    def __init__(self, spoil: Any) -> None:
        super().__init__()
        self.spoil = spoil

    def launch(self, inputs: Any, config: Config) -> Any:
        kernel = registry.get("torch.blockwise_forward")
        assert kernel is not None
        out, lse = kernel.launch(inputs, kernel.default_config(inputs.problem(), detect(CPU)))
        return self.spoil(out, lse)


def nan(out: torch.Tensor) -> torch.Tensor:
    out[0, 3, 0, 0] = float("nan")
    return out


@pytest.mark.parametrize(
    "spoil",
    [
        lambda out, lse: (out * 1.03, lse),
        lambda out, lse: (out, lse + 0.01),
        lambda out, lse: (nan(out), lse),
        lambda out, lse: (torch.zeros_like(out), lse),
        lambda out, lse: (out[:1], lse),
        lambda out, lse: (out, torch.where(lse == float("-inf"), float("inf"), lse)),
        lambda out, lse: (out, None),
    ],
    ids=["scaled", "shifted lse", "nan", "zeros", "shape", "wrong infinity", "lse missing"],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_wrong_results_are_found(spoil: Any, dtype: str) -> None:
    dead_rows = replace(BASE, dtype=dtype, need_lse=True, seqlen_q=40, seqlen_k=24, band=Band(-1, 0))
    bench = DeviceBench(dead_rows, CPU, detect(CPU))
    bench.check(Candidate(Wrong(lambda out, lse: (out, lse)), Config()))
    with pytest.raises(TuningError, match=r"is wrong|is missing"):
        bench.check(Candidate(Wrong(spoil), Config()))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_wrong_late_row_of_a_causal_problem_is_found(dtype: str) -> None:
    """Late rows average many values and are small beside the first, yet are judged by their own size."""

    def spoil(out: torch.Tensor, lse: None) -> tuple[torch.Tensor, None]:
        out[:, -1] = 0
        return out, lse

    problem = replace(BASE, dtype=dtype, seqlen_q=512, seqlen_k=512, band=Band(-1, 0))
    bench = DeviceBench(problem, CPU, detect(CPU))
    with pytest.raises(TuningError, match="out is wrong"):
        bench.check(Candidate(Wrong(spoil), Config()))


def test_relative_error() -> None:
    infinity = float("inf")
    expected = torch.tensor([[1.0, -2.0, -infinity], [0.1, 0.2, 0.0]], dtype=torch.float64)

    def error(*first_row: float) -> float:
        return relative_error(torch.tensor([first_row, (0.1, 0.2, 0.0)]), expected)

    assert error(1.0, -2.0, -infinity) == pytest.approx(0, abs=1e-7)
    assert error(1.0, -2.5, -infinity) == pytest.approx(0.25)
    assert error(1.0, -2.0, 0.0) == error(1.0, float("nan"), -infinity) == infinity
    small = torch.tensor([[1.0, -2.0, -infinity], [0.1, 0.25, 0.0]])
    assert relative_error(small, expected) == pytest.approx(0.25)  # of its own row
    assert relative_error(torch.zeros(2), expected) == infinity
    assert relative_error(torch.zeros(0), torch.zeros(0)) == 0
    assert set(effort.TOLERANCE) >= {"float64", "float32", "float16", "bfloat16"}
