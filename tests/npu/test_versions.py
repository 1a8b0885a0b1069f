"""All recorded versions of torch_npu: every call that the fusion kernels make binds to the operator's schema of that
version, or the problem is refused beforehand with a reason that names what is missing.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

import faops
from faops import registry
from faops.backends.npu import operators
from faops.device import known
from faops.errors import NoKernelError
from faops.problem import AttentionProblem, Band
from faops.registry import Kernel
from tests import support
from tests.npu import double

BACKEND = "npu.fusion"
FEATURES = ("bhsd", "gqa", "varlen", "causal", "window", "scale", "softcap", "alibi", "bias", "mask", "sinks",
            "dropout")  # fmt: skip
SHAPE: dict[str, Any] = {"batch": 2, "seqlen_q": 3, "seqlen_k": 5, "heads_q": 2, "heads_kv": 2, "head_dim": 8}
EVERY_VERSION = pytest.mark.parametrize("npu", operators.versions(), indirect=True)

# What no version runs, and what some lack.
NEVER = {"softcap": "no softcap", "dropout": "counter-based mask"}
SINCE = {"sinks": ("2.6.0.post5", "has no sink")}


def refusal(feature: str, version: str) -> str:
    """Part of the reason against a feature; "" where it must run."""
    if feature in SINCE:
        first, reason = SINCE[feature]
        versions = operators.versions()
        return reason if versions.index(version) < versions.index(first) else ""
    return NEVER.get(feature, "")


@EVERY_VERSION
def test_every_feature_binds_or_is_refused(npu: double.Handle) -> None:
    for feature in FEATURES:
        case = support.make_case(feature, head_dim_v=8, **SHAPE)
        expected = refusal(feature, npu.version)
        before = len(npu.calls)
        if expected:
            with pytest.raises(NoKernelError, match=expected):
                support.check(case, BACKEND, backward=False)
            assert len(npu.calls) == before
        else:
            while len(npu.calls) == before:  # random lengths may give no sequence both rows and keys: nothing to call
                support.check(case, BACKEND, backward=feature != "bias")
            assert len(npu.calls) - before == (1 if feature == "bias" else 2), feature


@EVERY_VERSION
def test_every_config_binds(npu: double.Handle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each operator of the family that this version has, with each layout and each mask, forward and backward."""
    has_v3 = operators.operators().has("npu_fusion_attention_v3")
    kernels = [kernel for kernel in registry.kernels() if kernel.matches(BACKEND)]
    choices = [kernel.configs(problem(kernel), known("910b")) for kernel in kernels]
    assert len(kernels) == 2 and choices[0] == choices[1]
    for config in choices[0]:
        if config["layout"] == "as_given" or config["mask"] == "full":
            for kernel in kernels:
                monkeypatch.setattr(type(kernel), "default_config", lambda *_, config=config: config)
            run()
    called = {operator for operator, _ in npu.calls}
    versions = ("", "_v2", "_v3") if has_v3 else ("", "_v2")
    assert called == {f"npu_fusion_attention{part}{version}" for version in versions for part in ("", "_grad")}


def problem(kernel: Kernel) -> AttentionProblem:
    return AttentionProblem(
        op=kernel.op, dtype="float32", batch=2, seqlen_q=3, seqlen_k=5, heads_q=2, heads_kv=2, head_dim=8,
        head_dim_v=8, band=Band(2, 0), need_lse=True,
    )  # fmt: skip


def run() -> None:
    faops.dispatch.forget()
    q, k, v = (torch.randn(2, length, 2, 8, requires_grad=True) for length in (3, 5, 5))
    out = faops.attention(q, k, v, window=(2, 0), backend=BACKEND)
    torch.autograd.grad(out, [q, k, v], torch.randn_like(out))
