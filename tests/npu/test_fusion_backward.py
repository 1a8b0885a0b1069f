"""Gradients by npu_fusion_attention_grad, through the contract double, against the float64 oracle."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import faops
from faops import reference
from faops.backends.npu.fusion import backward
from faops.backends.npu.fusion.backward import FusionBackward
from faops.device import known
from faops.errors import FaopsWarning, NoKernelError
from faops.inputs import AttentionInputs, BackwardInputs
from faops.problem import AttentionProblem, Band
from tests import support
from tests.npu import double

BACKEND = "npu.fusion"
GRAD = "npu_fusion_attention_grad_v2"
COVERED = ("gqa", "mqa", "value_dim", "bhsd", "varlen", "causal", "window", "window_left", "window_right", "scale",
           "alibi", "alibi_batch", "mask", "sinks")  # fmt: skip


def accepted(case: support.Case) -> bool:
    return not (case.varlen and any(name in case.options for name in ("alibi_slopes", "mask")))


def sample(rows: int = 33, keys: int = 65) -> list[Tensor]:
    """q, k and v, of 4 and 2 heads."""
    return [
        torch.randn(2, length, heads, 16, requires_grad=True) for length, heads in ((rows, 4), (keys, 2), (keys, 2))
    ]


def compare(leaves: list[Tensor], options: dict[str, Any], backend: str | None = BACKEND) -> None:
    """Gradients of faops and of the oracle, for one random dout."""
    out = faops.attention(*leaves[:3], backend=backend, **options)
    exact, _ = reference.attention(*leaves[:3], **options)
    dout = torch.randn_like(out)
    actual = torch.autograd.grad(out, leaves, dout)
    expected = torch.autograd.grad(exact, leaves, dout.double())
    for found, wanted in zip(actual, expected):
        torch.testing.assert_close(found.double(), wanted.double(), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("lengths", [(17, 33), (33, 17), (20, 20)], ids=str)
def test_each_feature(npu: double.Handle, lengths: tuple[int, int]) -> None:
    cases = [support.make_case(seqlen_q=lengths[0], seqlen_k=lengths[1])]
    cases += [support.make_case(name, seqlen_q=lengths[0], seqlen_k=lengths[1]) for name in COVERED]
    for case in filter(accepted, cases):
        support.check(case, BACKEND)
    assert npu.count(GRAD) == sum(map(accepted, cases))


@pytest.mark.full
@pytest.mark.parametrize("features", support.covering_sets(COVERED), ids="-".join)
def test_pairs_of_features(npu: double.Handle, features: tuple[str, ...]) -> None:
    case = support.make_case(*features, seqlen_q=65, seqlen_k=33)
    if accepted(case):
        support.check(case, BACKEND)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit(npu: double.Handle, dtype: torch.dtype) -> None:
    for features in (("causal", "gqa"), ("varlen", "causal", "mqa"), ("mask", "value_dim")):
        support.check(support.make_case(*features, dtype=dtype), BACKEND)


@pytest.mark.parametrize("npu", ["2.1.0.post17", "2.5.1.post1", {"soc": "950"}], indirect=True, ids=str)
def test_other_versions_and_chips(npu: double.Handle) -> None:
    for features in (("causal", "gqa"), ("varlen", "window"), ("mask",)):
        support.check(support.make_case(*features), BACKEND)


def test_a_bias_without_a_gradient(npu: double.Handle) -> None:
    for shape in ((2, 1, 1, 65), (1, 4, 33, 65)):
        compare(sample(), {"bias": torch.randn(shape), "causal": True})
        assert npu.calls[-1][0] == GRAD and npu.calls[-1][1]["pse_type"] == 0


def test_the_gradient_of_a_bias_is_left_to_others(npu: double.Handle) -> None:
    """The operator returns a dpse that its documents call reserved."""
    bias = torch.randn(2, 1, 1, 65, requires_grad=True)
    compare([*sample(), bias], {"bias": bias}, backend=None)
    assert npu.count(GRAD) == 0
    with pytest.raises(NoKernelError, match="dpse is reserved"):
        compare([*sample(), bias], {"bias": bias})


def test_a_gradient_through_lse_is_refused(npu: double.Handle) -> None:
    """Autograd of the operator would drop it without a word."""
    q, k, v = sample()
    out, lse = faops.attention(q, k, v, return_lse=True, backend=BACKEND)
    with pytest.raises(NoKernelError, match="no gradient through lse"):
        (out.sum() + lse.sum()).backward()
    out, lse = faops.attention(q, k, v, return_lse=True)
    (out.sum() + lse.sum()).backward()
    assert q.grad is not None and npu.count(GRAD) == 0


@pytest.mark.parametrize("forward", ["torch", BACKEND])
@pytest.mark.parametrize("packed", [False, True])
def test_any_forward_suits(npu: double.Handle, forward: str, packed: bool) -> None:
    """(out, lse) is all that passes; one that counted sinks and dead rows in its own way too."""
    q, k, v = sample(20, 12)
    options: dict[str, Any] = {"causal": True, "sinks": torch.randn(4, requires_grad=True)}
    starts_q, starts_k = (torch.tensor(values, dtype=torch.int32) for values in ((0, 5, 5, 20), (0, 3, 7, 12)))

    def run(backend: str) -> tuple[Tensor, Tensor]:
        if packed:
            return faops.attention_varlen(
                q[0], k[0], v[0], starts_q, starts_k, 15, 5, return_lse=True, backend=backend, **options
            )
        return faops.attention(q, k, v, return_lse=True, backend=backend, **options)

    with torch.no_grad():
        out, lse = run(forward)
    dout = torch.randn_like(out)
    inputs = _backward_inputs(q, k, v, options["sinks"], (starts_q, starts_k) if packed else None, out, lse, dout)
    kernel = FusionBackward()
    found = kernel.launch(inputs, kernel.default_config(inputs.problem(), known("910b")))
    if packed:
        exact, _ = reference.attention_varlen(q[0], k[0], v[0], starts_q, starts_k, **options)
    else:
        exact, _ = reference.attention(q, k, v, **options)
    expected = torch.autograd.grad(exact, [q, k, v, options["sinks"]], dout.double())
    for actual, wanted in zip((*found[:3], found[4]), expected):
        assert actual is not None
        wanted = wanted[0] if packed and wanted.dim() == 4 else wanted
        torch.testing.assert_close(actual.double(), wanted.double(), atol=2e-5, rtol=1e-4)


def _backward_inputs(
    q: Tensor, k: Tensor, v: Tensor, sinks: Tensor, starts: tuple[Tensor, Tensor] | None, out: Tensor, lse: Tensor,
    dout: Tensor,
) -> BackwardInputs:  # fmt: skip
    q, k, v = (tensor.detach()[0] if starts else tensor.detach() for tensor in (q, k, v))
    longest = (15, 5) if starts else (q.shape[1], k.shape[1])
    forward = AttentionInputs(
        q, k, v, None, None, None, sinks.detach(), *(starts or (None, None)), None, *longest, -1, 0, 0.25, 0.0, 0.0,
        False, True, "",
    )  # fmt: skip
    return BackwardInputs(dout, None, forward, out, lse, False, True)


@pytest.mark.parametrize("band", [Band(-1, 0), Band(3, 2), Band()], ids=str)
def test_configs_agree(npu: double.Handle, band: Band, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = AttentionProblem(
        op="backward", dtype="float32", batch=2, seqlen_q=12, seqlen_k=7, heads_q=4, heads_kv=2, head_dim=16,
        head_dim_v=16, band=band, need_lse=True,
    )  # fmt: skip
    configs = FusionBackward().configs(problem, known("910b"))
    assert {config["operator"] for config in configs} == {"v1", "v2", "v3"}
    for config in configs:
        monkeypatch.setattr(FusionBackward, "default_config", lambda *_, config=config: config)
        faops.dispatch.forget()
        compare(sample(12, 7), {"window": (band.left, band.right)})


def test_rows_without_a_key_have_gradient_0_whatever_the_operator_thinks(npu: double.Handle) -> None:
    mask = torch.rand(2, 4, 33, 65) < 0.5
    mask[:, :, 5] = False
    leaves = sample()
    compare(leaves, {"mask": mask})
    told = npu.calls[-1][1]
    assert told["softmax_max"].isfinite().all() and told["softmax_sum"].eq(1).all()
    out = faops.attention(*leaves, mask=mask, backend=BACKEND)
    (dq,) = torch.autograd.grad(out, leaves[:1], torch.randn_like(out))
    assert dq[:, 5].eq(0).all()


def test_lse_goes_in_as_eight_equal_lanes(npu: double.Handle) -> None:
    leaves = sample()
    out, lse = faops.attention(*leaves, return_lse=True, backend=BACKEND)
    torch.autograd.grad(out, leaves, torch.randn_like(out))
    given = npu.calls[-1][1]["softmax_max"]
    assert given.shape == (2, 4, 33, 8) and given.is_contiguous()
    assert torch.equal(given, lse.detach().unsqueeze(-1).expand_as(given))


def test_fitting_tensors_are_not_copied(npu: double.Handle) -> None:
    q, k, v = sample()
    out = faops.attention(q, k, v, backend=BACKEND)
    dout = torch.randn_like(out)
    torch.autograd.grad(out, [q, k, v], dout)
    told = npu.calls[-1][1]
    for name, tensor in (("query", q), ("key", k), ("value", v), ("dy", dout), ("attention_in", out)):
        assert told[name].data_ptr() == tensor.data_ptr(), name


@pytest.mark.parametrize(("rows", "keys"), [(0, 5), (5, 0)])
def test_empty_calls(npu: double.Handle, rows: int, keys: int) -> None:
    leaves = sample(rows, keys)
    out = faops.attention(*leaves, backend=BACKEND)
    gradients = torch.autograd.grad(out, leaves, torch.randn_like(out))
    assert npu.calls == []
    assert all(gradient.eq(0).all() and gradient.shape == leaf.shape for gradient, leaf in zip(gradients, leaves))


# --- determinism ------------------------------------------------------------------------------------------------------


def test_determinism_is_that_of_the_process(npu: double.Handle) -> None:
    with pytest.raises(NoKernelError, match="use_deterministic_algorithms"):
        run_deterministic(BACKEND)
    run_deterministic()
    assert npu.count(GRAD) == 0


def run_deterministic(backend: str | None = None) -> None:
    q, k, v = sample()
    out = faops.attention(q, k, v, deterministic=True, backend=backend)
    torch.autograd.grad(out, [q, k, v], torch.randn_like(out))


def test_determinism_switched_off_after_planning_is_noticed(
    npu: double.Handle, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
        run_deterministic()
    assert npu.count(GRAD) == 1
    with pytest.warns(FaopsWarning, match="was switched off"):
        run_deterministic()
    assert npu.count(GRAD) == 1


def test_sinks_of_dead_rows_have_no_gradient() -> None:
    inputs = _backward_inputs(
        *(torch.randn(1, 2, 4, 8) for _ in range(3)), torch.zeros(4), None, torch.zeros(1, 2, 4, 8),
        torch.full((1, 4, 2), -math.inf), torch.randn(1, 2, 4, 8),
    )  # fmt: skip
    found = backward.gradient_of_sinks(inputs)
    assert found is not None and found.eq(0).all()
