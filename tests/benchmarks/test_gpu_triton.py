"""The GPU suite's trials of the Triton kernels, run in the interpreter; and that they find what is wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from benchmarks import record
from benchmarks.gpu import triton_calls, triton_compile, triton_correctness, triton_decode
from benchmarks.gpu.options import Options
from benchmarks.gpu.outcome import SkipError
from benchmarks.gpu.supervisor import Section
from benchmarks.gpu.triton_calls import Place, Trial, hold, kernel_of, prepare
from faops import dispatch
from faops.backends.triton import versions
from faops.device import known
from faops.problem import OPS, AttentionProblem
from tests.support import FEATURES

A100 = Place.of("a100")
SMALL = {"seqlen_q": 20, "seqlen_k": 30, "heads_q": 2, "heads_kv": 2, "head_dim": 16, "head_dim_v": 16}
ONE_HEAD = {**SMALL, "batch": 1, "heads_q": 1, "heads_kv": 1}
TRIALS = {
    "forward": Trial("forward", torch.float16, ("alibi",), shape=SMALL, seed=3),
    "backward": Trial("backward", torch.float16, ("causal", "bias", "sinks"), shape=ONE_HEAD, seed=4),
    "decode": Trial(
        "decode", torch.float16, ("append", "paged16"), shape={"capacity": 40, "head_dim": 16}, seed=5
    ),
}  # fmt: skip


@pytest.fixture(autouse=True)
def interpreted(private_settings: None, monkeypatch: pytest.MonkeyPatch) -> None:
    if versions.installed() is None:
        pytest.skip("NOT TESTED, no kernel was interpreted: Triton is not installed")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    dispatch.forget()


@pytest.mark.parametrize("op", OPS)
def test_right_results_are_accepted(op: str) -> None:
    hold(TRIALS[op], A100)


def test_backward_after_another_backend() -> None:
    hold(replace(TRIALS["backward"], forward="torch"), A100)
    with pytest.raises(SkipError, match="no kernel can run"):
        hold(replace(TRIALS["backward"], forward="cuda_raw"), A100)


def test_a_config_that_adds_atomically_need_not_repeat(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = kernel_of("backward")
    config = next(
        config
        for config in kernel.configs(AttentionProblem("backward", head_dim=16, head_dim_v=16), A100.profile)
        if config["atomic_dq"]
    )
    hold(replace(TRIALS["backward"], config=config), A100)
    spoil(monkeypatch, "backward", lambda results: results[0][0, 0, 0, :1].add_(1e-3), from_launch=2)
    hold(replace(TRIALS["backward"], config=config), A100)


def spoil(monkeypatch: pytest.MonkeyPatch, op: Any, change: Callable[[Any], object], from_launch: int = 1) -> None:
    """What ``op``'s kernel computes is changed before anybody sees it, from that launch on."""
    kernel = kernel_of(op)
    launch, count = kernel.launch, 0

    def changed(*arguments: Any) -> Any:
        nonlocal count
        results, count = launch(*arguments), count + 1
        if count >= from_launch:
            change(results)
        return results

    monkeypatch.setattr(kernel, "launch", changed)


@pytest.mark.parametrize(
    ("op", "change"),
    [
        ("forward", lambda results: results[0][-1, 1, 1, 15:].fill_(torch.nan)),  # one element never written
        ("forward", lambda results: results[1][0, 0, :1].add_(1e-2)),
        ("backward", lambda results: results[0].mul_(1.1)),
        ("backward", lambda results: results[1].copy_(results[1].roll(1, dims=1))),
        ("backward", lambda results: results[3].mul_(0.5)),
        ("backward", lambda results: results[4].add_(0.5)),
        ("decode", lambda results: results[0][0, 0, 0, :1].fill_(torch.inf)),
    ],
)
def test_a_wrong_result_is_found(monkeypatch: pytest.MonkeyPatch, op: str, change: Callable[[Any], object]) -> None:
    spoil(monkeypatch, op, change)
    with pytest.raises(AssertionError, match=TRIALS[op].op):
        hold(TRIALS[op], A100)


def test_a_cache_that_is_not_written_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    call = prepare(TRIALS["decode"], A100)
    call.run()
    call.check(call.results, "as it is")
    table, length = call.inputs.block_table[0], int(call.inputs.cache_seqlens[0])
    call.inputs.v_cache[table[length // 16], length % 16] += 1
    with pytest.raises(AssertionError, match="v_cache differs"):
        call.check(call.results, "spoilt")


def test_other_bits_the_second_time_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch, "forward", lambda results: results[0][0, 0, 0].mul_(1.01), from_launch=2)
    with pytest.raises(AssertionError, match="other bits"):
        hold(TRIALS["forward"], A100)


def test_results_start_poisoned() -> None:
    with triton_calls.poisoned():
        assert torch.empty(100).isnan().all()
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_trial_is_the_same_everywhere() -> None:
    for trial in TRIALS.values():
        one, other = (prepare(trial, A100) for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(one.operands(), other.operands(), strict=True))
        assert one.config == other.config


def test_trials_cover_what_there_is() -> None:
    options, profile = Options(card="h200", seed=7), known("h200")
    trials = triton_correctness.trials(options, profile)
    assert len({trial.seed for trial in trials}) > 0.99 * len(trials)
    for op in OPS:
        mine = [trial for trial in trials if trial.op == op]
        names = triton_decode.FEATURES if op == "decode" else FEATURES
        seen = {name for name in names if op != "forward" or name not in ("lse_grad", "deterministic")}
        for dtype in triton_correctness.DTYPES:
            alone = {trial.features for trial in mine if trial.dtype == dtype and len(trial.features) < 2}
            assert alone >= {(name,) for name in seen} | {()}
            dims = {trial.shape["head_dim"] for trial in mine if trial.dtype == dtype}
            assert dims >= {*triton_correctness.HEAD_DIMS, 33, 255}
        for head_dim in triton_correctness.CONFIG_HEAD_DIMS:
            rows = 1 if op == "decode" else 300
            problem = AttentionProblem(
                op, seqlen_q=rows, seqlen_k=300, heads_q=8, heads_kv=2, head_dim=head_dim, head_dim_v=head_dim
            )
            tried = {trial.config for trial in mine if trial.shape["head_dim"] == head_dim}
            assert tried >= set(kernel_of(op).configs(problem, profile))
    assert {trial.forward for trial in trials} == {"triton", "cuda_raw", "torch"}
    assert len(triton_correctness.trials(replace(options, quick=True), profile)) < 0.8 * len(trials)


def test_turing_is_skipped() -> None:
    (item,) = triton_correctness.items(Options(card="t4"))
    with pytest.raises(SkipError, match="sm_75"):
        item.run()


def test_everything_that_is_timed_is_compiled_beforehand() -> None:
    whole = [item.name for item in triton_compile.items(Options(card="h200"))]
    assert len(whole) == len(set(whole)) > len(triton_compile.items(Options(card="h200", quick=True)))
    for part in ("forward 4096 d64 full float16", "backward 4096 d256 causal", "decode 16 x 16384", "flex backward"):
        assert any(name.startswith(part) for name in whole)
    with pytest.raises(SkipError, match="sm_75"):
        triton_compile.items(Options(card="t4"))[0].run()


def test_flex_attention_that_does_not_compile_is_no_fault() -> None:
    def failing() -> None:
        raise RuntimeError("no such kernel")

    with pytest.raises(SkipError, match="no such kernel"):
        triton_compile._run_flex(failing)


def test_compiling_tells_registers() -> None:
    """In a process that does not interpret."""
    code = (
        "import json; from benchmarks.gpu import triton_compile; from benchmarks.gpu.options import Options\n"
        "items = triton_compile.items(Options(card='h200'))\n"
        "item = next(item for item in items if item.name.startswith('decode') and 'dense' in item.name)\n"
        "print(json.dumps(item.run()))"
    )
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=record.ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)["kernels"]["decode.attention_decode"]
    assert figures["registers"] > 32 and figures["shared_bytes"] > 2**14 and figures["threads"] >= 128


@pytest.mark.full
def test_interpreted_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some trials in a process of the suite, which sees to it that Triton interprets there."""
    monkeypatch.delenv("TRITON_INTERPRET")
    options = Options(card="a100", quick=True, seed=7)
    parts = len(triton_correctness.items(options)) // 2
    found = Section("triton_correctness", replace(options, part=5, parts=parts), 1e18, lambda outcome: None).run()
    assert len(found) >= 2 and all(outcome.status == "ok" for outcome in found), found
