"""Every reason against a problem, for planning alone: no operator is in this process."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from faops import registry
from faops.backends.npu import operators
from faops.backends.npu.fusion import support
from faops.device import known
from faops.problem import AttentionProblem, Band
from faops.registry import Rejected

PROBLEM = AttentionProblem(
    dtype="bfloat16", batch=2, seqlen_q=64, seqlen_k=128, heads_q=8, heads_kv=2, head_dim=128, head_dim_v=128
)
BACKWARD = replace(PROBLEM, op="backward", need_lse=True)
DEVICE = known("910b")


def reasons(problem: AttentionProblem, device: str = "910b") -> tuple[str, ...]:
    kernel = registry.get(f"npu.fusion_{problem.op}")
    assert kernel is not None
    decision = kernel.check(problem, known(device))
    return decision.reasons if isinstance(decision, Rejected) else ()


@pytest.mark.parametrize("problem", [PROBLEM, BACKWARD], ids=["forward", "backward"])
@pytest.mark.parametrize("device", ["910b", "910c", "950"])
def test_a_plain_problem_is_planned_without_a_device(problem: AttentionProblem, device: str) -> None:
    assert reasons(problem, device) == ()
    for changes in (
        {"band": Band(-1, 0)}, {"band": Band(16, 4)}, {"mask": "b..n"}, {"bias": ".hmn"}, {"layout": "varlen"},
        {"alibi": True, "seqlen_k": 64}, {"head_dim_v": 64}, {"seqlen_k": 0}, {"batch": 0}, {"dtype": "float16"},
        {"dtype": "float32", "alibi": True, "bias": "b..n"},
    ):  # fmt: skip
        assert reasons(replace(problem, **changes), device) == (), changes  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"dtype": "float64"}, "computes float16, bfloat16, float32, not float64"),
        ({"dtype": "float8_e4m3fn"}, "not float8_e4m3fn"),
        ({"heads_q": 512, "heads_kv": 512}, "up to 256 query heads, not 512"),
        ({"head_dim": 1024}, "head_dim up to 768, not 1024"),
        ({"head_dim_v": 192}, "head_dim_v up to head_dim 128, not 192"),
        ({"seqlen_k": 2_000_000}, "sequences up to 1000000, not 2000000"),
        ({"layout": "paged"}, "no paged layout"),
        ({"batch": 5_000_000}, "up to 2097152 sequences, not 5000000"),
        ({"batch": 2048, "layout": "varlen"}, "up to 1024 packed sequences, not 2048"),
        ({"softcap": True}, "no softcap"),
        ({"dropout": True}, "counter-based mask of faops cannot be given to both"),
        ({"fp8_descale": True}, "has no fp8_descale"),
        ({"rotary": "half"}, "has no rotary half"),
        ({"append": True}, "has no append"),
        ({"alibi": True}, "ALiBi for seqlen_q different from seqlen_k as a bfloat16 tensor"),
        ({"alibi": True, "bias": "b..n", "seqlen_k": 64}, "ALiBi with a bias as a bfloat16 tensor"),
        ({"alibi": True, "layout": "varlen", "seqlen_k": 64}, "takes no ALiBi that suits every packed sequence"),
        ({"bias": "bhmn", "layout": "varlen"}, "takes no bias that suits"),
        ({"mask": "bhmn", "layout": "varlen"}, "takes no mask that suits"),
        ({"mask": "bh.n", "batch": 16, "heads_q": 64, "seqlen_q": 4096, "seqlen_k": 4096}, "a mask of 16384 MiB"),
        ({"bias": "b.mn", "batch": 16, "seqlen_q": 8192, "seqlen_k": 8192}, "a pse of 16384 MiB"),
    ],
)
@pytest.mark.parametrize("problem", [PROBLEM, BACKWARD], ids=["forward", "backward"])
def test_refusals(problem: AttentionProblem, changes: dict[str, Any], expected: str) -> None:
    found = reasons(replace(problem, **changes))
    assert len(found) == 1 and expected in found[0], found


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"lse_grad": True}, "no gradient through lse"),
        ({"bias_grad": True, "bias": "b..n"}, "its dpse is reserved"),
        ({"deterministic": True}, r"only while torch.use_deterministic_algorithms"),
    ],
)
def test_refusals_of_backward(changes: dict[str, Any], expected: str) -> None:
    found = reasons(replace(BACKWARD, **changes))
    assert len(found) == 1 and expected in found[0]


def test_deterministic_where_the_process_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    assert reasons(replace(BACKWARD, deterministic=True)) == ()


def test_every_reason_is_given() -> None:
    found = reasons(replace(PROBLEM, dtype="float64", softcap=True, dropout=True, head_dim_v=256))
    assert len(found) == 4


@pytest.mark.parametrize(
    ("device", "expected"), [("310p", "910B, 910C, 950, not on 310P"), ("t4", "runs on Ascend NPUs")]
)
def test_devices(device: str, expected: str) -> None:
    problem = replace(PROBLEM, dtype="float16")
    for case in (problem, replace(problem, op="backward")):
        (found,) = reasons(case, device)
        assert expected in found


def test_unknown_chips_are_refused() -> None:
    device = replace(DEVICE, arch="ascend-unknown")
    assert any("not on ascend-unknown" in reason for reason in support.reasons(PROBLEM, device))


# --- versions ---------------------------------------------------------------------------------------------------------


def unsuited(problem: AttentionProblem, version: str, device: str = "910b") -> dict[str, str]:
    return support.suitability(problem, known(device), operators.recorded(version))


def test_version_2_comes_first_and_3_last() -> None:
    assert support.versions(PROBLEM, DEVICE) == support.versions(BACKWARD, DEVICE) == ["v2", "v1", "v3"]


def test_only_version_2_adds_to_the_scores_after_scaling() -> None:
    for changes in ({"bias": "b..n"}, {"alibi": True, "seqlen_k": 64}):
        found = unsuited(replace(PROBLEM, **changes), "2.13.0")  # type: ignore[arg-type]
        assert found["v2"] == "" and "no pse_type" in found["v1"] and "no pse_type" in found["v3"]


def test_old_versions_have_no_sink() -> None:
    found = unsuited(replace(PROBLEM, sinks=True), "2.1.0.post17")
    assert "npu_fusion_attention_v2 of torch_npu 2.1.0.post17, recorded has no sink" in found["v2"]
    assert "has no npu_fusion_attention_v3" in found["v3"]
    assert not any(unsuited(replace(PROBLEM, sinks=True), "2.6.0.post5")[version] for version in ("v1", "v2"))


def test_gradients_of_sinks_need_nothing_of_the_operator() -> None:
    assert unsuited(replace(BACKWARD, sinks=True), "2.5.1.post1")["v2"] == ""


def test_what_the_950_does_otherwise() -> None:
    """CANN takes no sink there (version 1 drops it without a word), and version 3 does not run."""
    found = unsuited(replace(PROBLEM, sinks=True), "2.13.0", "950")
    assert "has no sink on 950" in found["v1"] and "has no sink on 950" in found["v2"]
    assert "does not run on 950" in unsuited(PROBLEM, "2.13.0", "950")["v3"]
    assert unsuited(replace(BACKWARD, sinks=True), "2.13.0", "950")["v2"] == ""
    for device in ("910b", "910c"):
        assert reasons(replace(PROBLEM, sinks=True), device) == ()


def test_without_any_suitable_operator_the_reasons_name_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(support, "operators", lambda: operators.recorded("2.5.1.post1"))
    found = reasons(replace(PROBLEM, sinks=True))
    assert [reason.rpartition("has no ")[2] for reason in found] == ["sink", "sink", "npu_fusion_attention_v3"]


def test_sinks_need_a_cann_that_has_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ASCEND_HOME_PATH", str(tmp_path))
    record = tmp_path / "ascend_toolkit_install.info"
    record.write_text("version=8.3.RC1\n", encoding="utf-8")
    problem = replace(PROBLEM, sinks=True)
    assert reasons(problem) == ("npu_fusion_attention has a sink from CANN 8.5 on, not in 8.3.RC1",)
    assert reasons(PROBLEM) == ()
    record.write_text("version=9.0.0\n", encoding="utf-8")
    assert reasons(problem) == ()
