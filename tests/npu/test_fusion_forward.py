"""Forward on npu_fusion_attention, through the contract double, against the float64 oracle; and what it is told."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

import faops
from faops import dispatch, reference
from faops.backends.npu import masks
from faops.backends.npu.fusion import kernel as fusion
from faops.backends.npu.fusion.forward import FusionForward
from faops.device import known
from faops.errors import NoKernelError
from faops.inputs import AttentionInputs
from faops.problem import AttentionProblem, Band
from tests import support
from tests.npu import double

BACKEND = "npu.fusion"
V2 = "npu_fusion_attention_v2"
COVERED = ("gqa", "mqa", "value_dim", "bhsd", "varlen", "causal", "window", "window_left", "window_right", "scale",
           "alibi", "alibi_batch", "bias", "mask", "sinks")  # fmt: skip


def last(npu: double.Handle, name: str = V2) -> dict[str, Any]:
    """Arguments of the newest call, which was one of operator ``name``."""
    operator, arguments = npu.calls[-1]
    assert operator == name
    return arguments


def sample(batch: int = 2, rows: int = 33, keys: int = 65, dim: int = 40) -> list[torch.Tensor]:
    """q, k and v, of 4 and 2 heads."""
    return [torch.randn(batch, length, heads, dim) for length, heads in ((rows, 4), (keys, 2), (keys, 2))]


def accepted(case: support.Case) -> bool:
    """Whether a case's problem is one for this kernel; refusals have their own tests."""
    packed_extra = case.varlen and any(name in case.options for name in ("alibi_slopes", "bias", "mask"))
    explicit = "alibi_slopes" in case.options and ("bias" in case.options or case.seqlen_q != case.seqlen_k)
    return not packed_extra and (not explicit or case.dtype == torch.float32)


# --- numbers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lengths", [(17, 33), (33, 17), (20, 20)], ids=str)
def test_each_feature(npu: double.Handle, lengths: tuple[int, int]) -> None:
    for features in [(), *((name,) for name in COVERED)]:
        for dtype in (torch.float32, torch.float16):
            case = support.make_case(*features, dtype=dtype, seqlen_q=lengths[0], seqlen_k=lengths[1])
            if accepted(case):
                support.check(case, BACKEND, backward=False)
            else:
                with pytest.raises(NoKernelError):
                    support.check(case, BACKEND, backward=False)


@pytest.mark.full
@pytest.mark.parametrize("features", support.covering_sets(COVERED), ids="-".join)
def test_pairs_of_features(npu: double.Handle, features: tuple[str, ...]) -> None:
    case = support.make_case(*features, seqlen_q=65, seqlen_k=33)
    if accepted(case):
        support.check(case, BACKEND, backward=False)


@pytest.mark.parametrize("size", support.SIZES)
def test_odd_sizes(npu: double.Handle, size: int) -> None:
    for features, lengths in ((("causal",), (size, 129)), (("window", "varlen"), (129, size))):
        case = support.make_case(*features, batch=2, heads_q=2, heads_kv=1, seqlen_q=lengths[0], seqlen_k=lengths[1])
        support.check(case, BACKEND, backward=False)


@pytest.mark.parametrize("npu", ["2.1.0.post17", {"soc": "950"}, {"soc": "910C"}], indirect=True, ids=str)
def test_other_versions_and_chips(npu: double.Handle) -> None:
    for features in (("causal", "gqa"), ("varlen", "window"), ("mask",), ("bias",)):
        support.check(support.make_case(*features, dtype=torch.bfloat16), BACKEND, backward=False)


# --- every config gives the same --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("band", "lengths"),
    [(Band(-1, 0), (7, 12)), (Band(3, 2), (12, 7)), (Band(-1, 2), (9, 9)), (Band(2, -1), (3, 40)), (Band(), (5, 6))],
    ids=str,
)
def test_configs_agree(npu: double.Handle, band: Band, lengths: tuple[int, int]) -> None:
    q, k, v = sample(rows=lengths[0], keys=lengths[1], dim=8)
    window = (band.left, band.right)
    exact, exact_lse = reference.attention(q, k, v, window=window)
    problem = AttentionProblem(
        dtype="float32", batch=2, seqlen_q=lengths[0], seqlen_k=lengths[1], heads_q=4, heads_kv=2, head_dim=8,
        head_dim_v=8, band=band.simplify(*lengths), need_lse=True,
    )  # fmt: skip
    kernel = FusionForward()
    configs = kernel.configs(problem, known("910b"))
    assert configs[0] == kernel.default_config(problem, known("910b"))
    assert len(configs) == len(set(configs)) == 3 * 3 * (1 if problem.band.full else 2)
    for config in configs:
        out, lse = kernel.launch(_inputs(q, k, v, window), config)
        assert lse is not None
        torch.testing.assert_close(out.double(), exact, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(lse.double(), exact_lse, atol=1e-5, rtol=1e-5)


def _inputs(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, window: tuple[int, int]) -> AttentionInputs:
    return AttentionInputs(
        q, k, v, None, None, None, None, None, None, None, q.shape[1], k.shape[1], *window, q.shape[-1] ** -0.5, 0.0,
        0.0, False, True, "",
    )  # fmt: skip


# --- what the operator is told ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "mode", "sides"),
    [
        ({"causal": True}, 3, None),
        ({"window": (5, 2)}, 4, (5, 2)),
        ({"window": (5, None), "causal": True}, 4, (5, 0)),
        ({"window": (-1, 2)}, 4, (65, 2)),
        ({}, 0, None),
        ({"window": (1000, 1000)}, 0, None),
    ],
)
def test_bands_use_the_one_compressed_mask(npu: double.Handle, options: Any, mode: int, sides: Any) -> None:
    masks.compressed.cache_clear()
    for _ in range(2):
        faops.attention(*sample(), backend=BACKEND, **options)
        told = last(npu)
        assert told["sparse_mode"] == mode
        assert (told["atten_mask"] is None) == (mode == 0)
        if sides:
            assert (told["pre_tokens"], told["next_tokens"]) == sides
    given = [arguments["atten_mask"] for _, arguments in npu.calls if arguments["atten_mask"] is not None]
    assert len({mask.data_ptr() for mask in given}) == (1 if given else 0)
    assert masks.compressed.cache_info().misses == (1 if given else 0)


def test_the_mask_is_turned_round(npu: double.Handle) -> None:
    mask = torch.rand(2, 1, 33, 65) < 0.5
    faops.attention(*sample(), mask=mask, backend=BACKEND)
    told = last(npu)
    assert torch.equal(told["atten_mask"], ~mask) and told["sparse_mode"] == 1 and told["inner_precise"] == 2


def test_a_mask_of_keys_is_never_given_as_such(npu: double.Handle) -> None:
    """(B, 1, 1, N) is refused by the operator (561103)."""
    faops.attention(*sample(), mask=torch.rand(2, 1, 1, 65) < 0.7, backend=BACKEND)
    assert tuple(last(npu)["atten_mask"].shape) == (2, 1, 33, 65)


def test_lengths_are_host_numbers_without_the_leading_0(npu: double.Handle) -> None:
    q, k = torch.randn(9, 2, 8), torch.randn(12, 2, 8)
    starts_q, starts_k = (torch.tensor(values, dtype=torch.int32) for values in ((0, 4, 9), (0, 5, 12)))
    faops.attention_varlen(q, k, k, starts_q, starts_k, 5, 7, causal=True, backend=BACKEND)
    told = last(npu)
    assert list(told["actual_seq_qlen"]) == [4, 9] and list(told["actual_seq_kvlen"]) == [5, 12]
    assert told["input_layout"] == "TND" and told["sparse_mode"] == 3 and told["head_num"] == 2


def test_packed_lse_read_by_its_shape_would_be_wrong(npu: double.Handle) -> None:
    """The trap is in the double: its storage is not what the shape (T, H, 8) says."""
    q, starts = torch.randn(9, 3, 8), torch.tensor([0, 4, 9], dtype=torch.int32)
    told: list[Any] = []
    plain = torch.ops.npu.npu_fusion_attention_v2(
        q, q, q, head_num=3, input_layout="TND", actual_seq_qlen=[4, 9], actual_seq_kvlen=[4, 9]
    )
    told.append(plain[1][..., 0] + plain[2][..., 0].log())
    _, exact = reference.attention_varlen(q, q, q, starts, starts, scale=1.0)
    _, lse = faops.attention_varlen(q, q, q, starts, starts, 5, 5, scale=1.0, return_lse=True, backend=BACKEND)
    torch.testing.assert_close(lse.double(), exact, atol=1e-5, rtol=1e-5)
    assert float((told[0].T.double() - exact).abs().max()) > 0.5


@pytest.mark.parametrize("layout", ["BSND", "BNSD", "SBH"])
def test_tensors_go_as_they_lie(npu: double.Handle, layout: str) -> None:
    def lying(length: int) -> torch.Tensor:
        if layout == "BNSD":
            return torch.randn(2, 4, length, 8).transpose(1, 2)
        return torch.randn(length, 2, 4, 8).transpose(0, 1) if layout == "SBH" else torch.randn(2, length, 4, 8)

    q, k, v = lying(33), lying(65), lying(65)
    out = faops.attention(q, k, v, causal=True, backend=BACKEND)
    told = last(npu)
    assert told["input_layout"] == layout
    for name, tensor in (("query", q), ("key", k), ("value", v)):
        assert told[name].data_ptr() == tensor.data_ptr(), name
    assert (out if layout != "BNSD" else out.transpose(1, 2)).is_contiguous()
    exact, _ = reference.attention(q, k, v, causal=True)
    torch.testing.assert_close(out.double(), exact, atol=1e-5, rtol=1e-5)


def test_sinks_are_float32(npu: double.Handle) -> None:
    faops.attention(*sample(), sinks=torch.randn(4), backend=BACKEND)
    assert last(npu)["sink"].dtype == torch.float32


@pytest.mark.parametrize("npu", [{"soc": "950"}], indirect=True)
def test_sinks_on_the_950_are_left_to_others(npu: double.Handle) -> None:
    with pytest.raises(NoKernelError, match="npu_fusion_attention_v2 has no sink on 950"):
        faops.attention(*sample(), sinks=torch.randn(4), backend=BACKEND)


def test_alibi_of_equal_lengths_is_the_operators(npu: double.Handle) -> None:
    slopes = torch.rand(4)
    faops.attention(*sample(rows=40, keys=40), alibi_slopes=slopes, causal=True, backend=BACKEND)
    told = last(npu)
    assert told["pse_type"] == 2 and torch.equal(told["pse"], slopes) and told["sparse_mode"] == 3


# --- rows without a key -----------------------------------------------------------------------------------------------


def test_dead_rows_of_a_band_do_not_reach_the_operator(npu: double.Handle) -> None:
    q, k, v = sample(rows=20, keys=6)
    out, lse = faops.attention(q, k, v, causal=True, return_lse=True, backend=BACKEND)
    assert last(npu)["query"].shape[1] == 6
    assert out[:, :14].eq(0).all() and lse[..., :14].eq(-math.inf).all() and lse[..., 14:].isfinite().all()


def test_masks_and_biases_begin_at_the_first_row_that_is_left(npu: double.Handle) -> None:
    q, k, v = sample(rows=20, keys=6)
    options: dict[str, Any] = {"mask": torch.rand(2, 1, 20, 6) < 0.7, "bias": torch.randn(1, 4, 20, 6), "causal": True}
    out, lse = faops.attention(q, k, v, return_lse=True, backend=BACKEND, **options)
    exact, exact_lse = reference.attention(q, k, v, **options)
    torch.testing.assert_close(out.double(), exact, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(lse.double(), exact_lse, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("precise", [0, 2])
def test_dead_rows_of_a_mask_are_put_right(npu: double.Handle, precise: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unguarded the operator averages over all keys there."""
    monkeypatch.setattr("faops.backends.npu.fusion.space.precise_choices", lambda problem: (precise,))
    mask = torch.rand(2, 4, 33, 65) < 0.5
    mask[1, 2, 7] = False
    mask[0, :, 11] = False
    q, k, v = sample()
    out, lse = faops.attention(q, k, v, mask=mask, return_lse=True, backend=BACKEND)
    assert last(npu)["inner_precise"] == precise
    exact, exact_lse = reference.attention(q, k, v, mask=mask)
    torch.testing.assert_close(out.double(), exact, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(lse.double(), exact_lse, atol=1e-5, rtol=1e-5)


def test_a_bias_may_hide_too(npu: double.Handle) -> None:
    """-inf hides a pair, and with a band and a mask whole rows."""
    bias = torch.randn(2, 1, 1, 65)
    bias[0, ..., :40] = -math.inf
    bias[1] = -math.inf
    q, k, v = sample()
    options: dict[str, Any] = {"bias": bias, "causal": True, "mask": torch.rand(1, 4, 33, 65) < 0.3}
    out, lse = faops.attention(q, k, v, return_lse=True, backend=BACKEND, **options)
    exact, exact_lse = reference.attention(q, k, v, **options)
    torch.testing.assert_close(out.double(), exact, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(lse.double(), exact_lse, atol=1e-5, rtol=1e-5)
    assert exact_lse[0, :, 0].eq(-math.inf).all()


@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 0, 4), (2, 3, 0)], ids=str)
def test_empty_calls_are_answered_without_the_operator(npu: double.Handle, shape: tuple[int, int, int]) -> None:
    q, k, v = sample(batch=shape[0], rows=shape[1], keys=shape[2])
    out, lse = faops.attention(q, k, v, return_lse=True, backend=BACKEND)
    assert npu.calls == [] and out.shape == q.shape and lse.shape == (shape[0], 4, shape[1])
    assert out.eq(0).all() and lse.eq(-math.inf).all()


def test_empty_packed_calls(npu: double.Handle) -> None:
    q, starts = torch.randn(3, 2, 8), torch.tensor([0, 0, 3], dtype=torch.int32)
    none = torch.zeros(3, dtype=torch.int32)
    out, lse = faops.attention_varlen(q, q[:0], q[:0], starts, none, 3, 0, return_lse=True, backend=BACKEND)
    assert npu.calls == [] and out.eq(0).all() and lse.eq(-math.inf).all()


# --- graphs -----------------------------------------------------------------------------------------------------------


def test_a_capture_takes_the_operator_and_layout_that_a_graph_can_hold(
    npu: double.Handle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fusion, "capturing", lambda q: True)
    q, k, v = sample()
    out = faops.attention(q, k, v, causal=True, backend=BACKEND)
    assert last(npu, "npu_fusion_attention_v3")["input_layout"] == "BNSD"
    torch.testing.assert_close(out.double(), reference.attention(q, k, v, causal=True)[0], atol=1e-5, rtol=1e-5)
    faops.attention(q, k, v, bias=torch.randn(1, 4, 1, 65), backend=BACKEND)  # v3 has no pse_type
    assert npu.calls[-1][0] == V2


def test_nothing_is_captured_on_a_cpu() -> None:
    assert not fusion.capturing(torch.ones(1))


# --- planning ---------------------------------------------------------------------------------------------------------


def test_it_is_the_default_on_an_npu(npu: double.Handle) -> None:
    problem = AttentionProblem(dtype="float16", seqlen_q=64, seqlen_k=64, heads_q=4, heads_kv=4)
    assert dispatch.plan(problem, known("910b")).kernel.id == "npu.fusion_forward"
    faops.attention(*sample())
    assert npu.count(V2) == 1


def test_what_it_refuses_goes_to_another_kernel(npu: double.Handle) -> None:
    problem = AttentionProblem(dtype="float32", seqlen_q=64, seqlen_k=64, heads_q=4, heads_kv=4, softcap=True)
    assert dispatch.plan(problem, known("910b")).kernel.backend != "npu"
