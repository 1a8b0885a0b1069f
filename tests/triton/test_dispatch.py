"""Who gets the Triton kernels: a GPU by priority, a CPU only who asks for them by name."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import faops
from faops import dispatch, registry
from faops.autotune.measurement.synthetic import inputs_for
from faops.autotune.tuner import tune
from faops.backends.triton import base, space, versions
from faops.backends.triton.forward import TritonForward
from faops.device import detect, known
from faops.errors import NoKernelError, UnavailableError
from faops.inputs import AttentionInputs
from faops.problem import AttentionProblem, Op
from faops.registry import Config, Rejected

CPU = detect("cpu")
PROBLEM = AttentionProblem(
    dtype="float32", batch=1, heads_q=2, heads_kv=2, seqlen_q=20, seqlen_k=20, head_dim=16, head_dim_v=16
)
OPS: tuple[Op, ...] = ("forward", "backward")


def of(op: Op) -> AttentionProblem:
    return replace(PROBLEM, op=op, need_lse=op == "backward")


@pytest.mark.parametrize("op", OPS)
def test_a_cpu_that_interprets_still_runs_torch(op: Op) -> None:
    assert dispatch.plan(of(op), CPU).kernel.backend == "torch"
    assert dispatch.plan(of(op), CPU, "triton").kernel.id == f"triton.{op}"
    assert dispatch.plan(of(op), CPU, f"triton.{op}").forced
    said = str(dispatch.explain(of(op), CPU))
    assert f'triton.{op}: accepts, with backend="triton" only' in said


def test_calls_go_where_they_are_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    ran = []
    for kernel in registry.kernels():
        usual = kernel.launch
        monkeypatch.setattr(
            kernel, "launch", lambda inputs, config, k=kernel, usual=usual: (ran.append(k.id), usual(inputs, config))[1]
        )
    q, k, v = (torch.randn(1, 20, 2, 16, requires_grad=True) for _ in range(3))
    faops.attention(q, k, v).sum().backward()
    assert all(name.startswith("torch.") for name in ran)
    ran.clear()
    faops.attention(q, k, v, backend="triton").sum().backward()
    assert ran == ["triton.forward", "triton.backward"]
    monkeypatch.setenv("FAOPS_BACKEND", "triton")
    dispatch.forget()
    ran.clear()
    faops.attention(q, k, v)
    assert ran == ["triton.forward"]


def test_a_backward_left_open_by_another_backend_is_not_interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAOPS_EMULATE", "a100")
    half = replace(of("backward"), dtype="float16")
    assert dispatch.plan(half, CPU, "cuda_raw").kernel.backend == "torch"


def test_what_runs_on_request_only_is_no_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no other kernel runs, the error says what to ask for."""
    kernels = [kernel for kernel in registry.kernels("forward") if kernel.id == "triton.forward"]
    with pytest.raises(NoKernelError) as caught:
        dispatch.runnable(kernels, PROBLEM, CPU)
    assert caught.value.rejections["triton.forward"] == ('it runs here only when asked for: backend="triton"',)
    assert dispatch.runnable(kernels, PROBLEM, CPU, forced=True) == kernels


@pytest.mark.usefixtures("idle_machine")
def test_the_tuner_leaves_interpreted_kernels_out(tmp_path: Path) -> None:
    seen: set[str] = set()
    tune([PROBLEM], on_event=lambda event: seen.add(str(event)))
    assert seen
    assert not any("triton" in text for text in seen)


# ---------------------------------------------------------------------------------------------- on cards


@pytest.mark.parametrize("card", ["a100", "3090", "4090", "h100", "h200", "b200", "5090"])
def test_cards_run_it_unasked_where_nothing_better_does(card: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET")
    for op in OPS:
        kernel = registry.get(f"triton.{op}")
        assert kernel is not None
        assert kernel.check(of(op), known(card))
        assert kernel.automatic(known(card))
        ranked = [kernel.id for kernel in dispatch.runnable(registry.kernels(op), of(op), known(card))]
        assert ranked.index(f"triton.{op}") < ranked.index(f"torch.blockwise_{op}")


@pytest.mark.parametrize(
    ("card", "changes", "reason"),
    [
        ("t4", {}, "sm_75"),
        ("910b", {}, "it runs on NVIDIA GPUs, not on"),
        ("a100", {"dtype": "float64"}, "not in float64"),
        ("a100", {"dtype": "float8_e4m3fn", "fp8_descale": True}, "not in float8_e4m3fn"),
        ("a100", {"dtype": "float8_e4m3fn", "fp8_descale": True}, "it takes no fp8 descales"),
        ("a100", {"head_dim": 257}, "head_dim 257 is more than 256"),
        ("a100", {"head_dim_v": 300}, "head_dim_v 300 is more than 256"),
        ("a100", {"batch": 2**20, "heads_q": 2**10, "heads_kv": 1, "seqlen_q": 64}, "the grid would have more than"),
    ],
)
@pytest.mark.parametrize("op", OPS)
def test_what_it_refuses(op: Op, card: str, changes: dict[str, object], reason: str) -> None:
    kernel = registry.get(f"triton.{op}")
    assert kernel is not None
    decision = kernel.check(replace(of(op), **changes), known(card))  # type: ignore[arg-type]
    assert isinstance(decision, Rejected)
    assert reason in "; ".join(decision.reasons)


def test_without_triton_every_kernel_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "installed", lambda: None)
    for kernel in registry.kernels():
        if kernel.backend == "triton" and kernel.id != "triton.ascend_forward":
            decision = kernel.check(replace(PROBLEM, op=kernel.op), known("h100"))
            assert isinstance(decision, Rejected)
            assert "pip install 'faops[triton]'" in "; ".join(decision.reasons)


def test_a_tuning_result_is_not_served_for_other_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A change in a kernel or in what launches it changes the hash that results are stored with; one in the list of
    configs does not.
    """
    shutil.copytree(Path(base.__file__).parent, tmp_path / "triton")
    monkeypatch.setattr(base, "__file__", str(tmp_path / "triton" / "base.py"))
    hashes = {base._source_hash.__wrapped__()}
    for name in ("kernels/scores.py", "kernels/backward.py", "launch.py", "decode_tiles.py", "space.py"):
        with (tmp_path / "triton" / name).open("a") as file:
            file.write("# changed\n")
        hashes.add(base._source_hash.__wrapped__())
    assert len(hashes) == 5
    kernel = registry.get("triton.forward")
    assert kernel is not None
    assert kernel.source_hash() in hashes


def test_a_problem_that_does_not_compile_is_not_planned_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """For its default config; another config may fail without more ado, and other problems are not concerned."""
    kernel = registry.get("triton.forward")
    assert isinstance(kernel, TritonForward)
    monkeypatch.setattr(base, "_refused", {})

    def fail(self: TritonForward, inputs: AttentionInputs, config: Config) -> None:
        raise UnavailableError("the compiler gave up")

    monkeypatch.setattr(TritonForward, "run", fail)
    inputs = inputs_for(PROBLEM, torch.device("cpu"))
    problem = inputs.problem()
    with pytest.raises(UnavailableError, match="the compiler gave up"):
        kernel.launch(inputs, space.make_config(32, 32, 4, 1))
    assert kernel.check(problem, CPU)
    with pytest.raises(UnavailableError, match="the compiler gave up"):
        kernel.launch(inputs, kernel.default_config(problem, CPU))
    assert kernel.check(problem, CPU) == Rejected(("the compiler gave up",))
    assert kernel.check(replace(problem, softcap=True), CPU)
    dispatch.forget()
    with pytest.raises(NoKernelError, match="the compiler gave up"):
        faops.attention(inputs.q, inputs.k, inputs.v, backend="triton")
