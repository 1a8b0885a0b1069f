"""Forward on npu_fused_infer_attention_score and npu_prompt_flash_attention, through the contract double."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import faops
from faops import dispatch, registry
from faops.backends.npu import operators
from faops.backends.npu.inference import fused
from faops.problem import AttentionProblem, Band
from faops.registry import Config
from tests.npu import double
from tests.npu.cachecalls import VERSIONS, mostly_full
from tests.npu.support import ascend, profile
from tests.support import FORWARD, Case, Inputs, assert_accurate, compatible, make_case, make_inputs, run_reference

FUSED, PROMPT = "npu.infer_forward", "npu.prompt_forward"
OPERATORS = {FUSED: tuple(fused.OPERATORS.values()), PROMPT: ("npu_prompt_flash_attention",)}
REFUSED = ("softcap", "alibi", "alibi_batch", "dropout")
FEATURES = [name for name in FORWARD if name not in REFUSED]
# The problem of a packed call: one head dim of 128.
PACKED = {"varlen", "bias", "mask", "value_dim"}
PROBLEM = AttentionProblem(
    op="forward", dtype="bfloat16", batch=2, seqlen_q=64, seqlen_k=64, heads_q=8, heads_kv=8, head_dim=128,
    head_dim_v=128,
)  # fmt: skip


def half(*features: str, **shape: int) -> Case:
    dtype = random.choice((torch.float16, torch.bfloat16))
    dim = 128 if "varlen" in features else random.choice((33, 64, 128))
    return make_case(*features, **{"dtype": dtype, "head_dim": dim, "head_dim_v": dim, **shape})


def check(case: Case, kernel: str) -> None:
    inputs = make_inputs(case)
    with torch.no_grad():
        exact, exact_lse = run_reference(case, inputs, torch.float64)
        plain, plain_lse = run_reference(case, inputs, case.dtype)
        out, lse = run(case, inputs, kernel)
    text = f"{case.features} {case.dtype} {case.tokens} {kernel}"
    assert out.dtype == case.dtype
    assert_accurate("out", out, exact, plain, text)
    if lse is not None:
        assert_accurate("lse", lse, exact_lse, plain_lse, text)


def run(case: Case, inputs: Inputs, kernel: str) -> tuple[Tensor, Tensor | None]:
    options = {**inputs.options, "return_lse": kernel == FUSED, "backend": kernel, "layout": case.layout}
    q, k, v, cu_q, cu_k = inputs.q, inputs.k, inputs.v, inputs.cu_seqlens_q, inputs.cu_seqlens_k
    if cu_q is None or cu_k is None:
        result = faops.attention(q, k, v, **options)
    else:
        result = faops.attention_varlen(q, k, v, cu_q, cu_k, case.seqlen_q, case.seqlen_k, **options)
    return result if kernel == FUSED else (result, None)


def calls(handle: double.Handle, kernel: str) -> list[dict[str, object]]:
    return [arguments for name, arguments in handle.calls if name in OPERATORS[kernel]]


def use(monkeypatch: pytest.MonkeyPatch, kernel: str, **changes: object) -> None:
    found = registry.get(kernel)
    default = found.default_config
    monkeypatch.setattr(
        found, "default_config", lambda problem, device: Config({**default(problem, device), **changes}), raising=False
    )
    dispatch.forget()


@pytest.mark.parametrize("rows", mostly_full((1, 33, 129), (1, 33)))
@pytest.mark.parametrize("kernel", [FUSED, PROMPT])
@pytest.mark.parametrize("feature", [None, *FEATURES])
def test_every_feature(npu: double.Handle, feature: str | None, kernel: str, rows: int) -> None:
    if kernel == PROMPT and feature in ("varlen", "sinks"):
        pytest.skip("has no lse, and is used for dense calls alone")
    check(half(*filter(None, [feature]), seqlen_q=rows), kernel)
    assert len(calls(npu, kernel)) == 1


@pytest.mark.parametrize("seed", mostly_full(range(32), range(8)))
def test_features_together(npu: double.Handle, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    kernel = (FUSED, PROMPT)[seed % 2]
    allowed = [name for name in FEATURES if kernel == FUSED or name not in ("varlen", "sinks")]
    chosen: tuple[str, ...] = ()
    for name in random.sample(allowed, len(allowed)):
        packs = not ({"varlen"} & {name, *chosen} and PACKED & {name, *chosen} - {"varlen"})
        if len(chosen) < 4 and packs and compatible((*chosen, name)):
            chosen = (*chosen, name)
    case = half(*chosen, seqlen_q=random.choice((1, 63, 127)), seqlen_k=random.choice((1, 65, 129)))
    problem = replace(PROBLEM, layout="varlen" if case.varlen else "dense", dtype=str(case.dtype)[6:])
    use(monkeypatch, kernel, **random.choice(registry.get(kernel).configs(problem, profile())))
    check(case, kernel)


@pytest.mark.parametrize(("rows", "keys"), [(65, 1), (129, 63), (1, 257), (63, 63)])
@pytest.mark.parametrize("features", [("causal",), ("window",), ("varlen", "causal"), ("varlen", "window")])
def test_more_rows_than_keys_and_fewer(npu: double.Handle, features: tuple[str, ...], rows: int, keys: int) -> None:
    check(half(*features, seqlen_q=rows, seqlen_k=keys), FUSED)


@pytest.mark.parametrize("kernel", [FUSED, PROMPT])
@pytest.mark.parametrize("shape", [(0, 5, 7), (2, 0, 7), (2, 5, 0)])
def test_empty(npu: double.Handle, kernel: str, shape: tuple[int, int, int]) -> None:
    batch, rows, keys = shape
    q, k = torch.randn(batch, rows, 4, 64).half(), torch.randn(batch, keys, 4, 64).half()
    out = faops.attention(q, k, k, backend=kernel)
    assert out.shape == q.shape and out.eq(0).all() and not calls(npu, kernel)


# --- layouts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", [FUSED, PROMPT])
@pytest.mark.parametrize(("layout", "expected"), [("bshd", "BSND"), ("bhsd", "BNSD")])
def test_nothing_is_copied(npu: double.Handle, kernel: str, layout: str, expected: str) -> None:
    q, k, v = (torch.randn(2, 40, 40, 64).half() for _ in range(3))
    out = faops.attention(q, k, v, causal=True, layout=layout, backend=kernel)
    [arguments] = calls(npu, kernel)
    assert arguments["input_layout"] == expected
    assert [arguments[name].data_ptr() for name in ("query", "key", "value")] == [x.data_ptr() for x in (q, k, v)]
    assert out.is_contiguous()


def test_strided_tensors_are_copied(npu: double.Handle) -> None:
    qkv = torch.randn(2, 33, 3, 4, 64).half()
    q, k, v = qkv.unbind(2)
    out = faops.attention(q, k, v, backend=FUSED)
    exact, _ = faops.reference.attention(q, k, v)
    torch.testing.assert_close(out.double(), exact, atol=2e-3, rtol=2e-3)


def test_packed_lengths_are_cumulative_without_the_zero(npu: double.Handle) -> None:
    case = half("varlen", "causal")
    inputs = make_inputs(case)
    with torch.no_grad():
        run(case, inputs, FUSED)
    [arguments] = calls(npu, FUSED)
    queries = arguments.get("actual_seq_qlen", arguments.get("actual_seq_lengths"))
    assert queries == inputs.cu_seqlens_q.tolist()[1:]


def test_packed_rows_without_a_band_still_have_a_mask(npu: double.Handle) -> None:
    """Mode 0 without a mask averages all values there, silently."""
    check(half("varlen"), FUSED)
    [arguments] = calls(npu, FUSED)
    assert (arguments["sparse_mode"], arguments["pre_tokens"], arguments["next_tokens"]) == (4, 2**31 - 1, 2**31 - 1)
    assert arguments["atten_mask"].shape == (2048, 2048)


def test_rows_behind_the_last_sequence(npu: double.Handle) -> None:
    q, k = torch.randn(9, 2, 128).half(), torch.randn(9, 2, 128).half()
    ends = torch.tensor([0, 3, 7], dtype=torch.int32)
    out, lse = faops.attention_varlen(q, k, k, ends, ends, 4, 4, return_lse=True, backend=FUSED)
    assert out[7:].eq(0).all() and lse[:, 7:].eq(-torch.inf).all()
    exact, exact_lse = faops.reference.attention_varlen(q, k, k, ends, ends)
    torch.testing.assert_close(out[:7].double(), exact, atol=2e-3, rtol=2e-3)
    torch.testing.assert_close(lse[:, :7].double(), exact_lse, atol=1e-3, rtol=1e-3)


def test_no_sequence_has_a_key(npu: double.Handle) -> None:
    q, k = torch.randn(9, 2, 128).half(), torch.randn(0, 2, 128).half()
    ends, none = torch.tensor([0, 3, 9], dtype=torch.int32), torch.zeros(3, dtype=torch.int32)
    sinks = torch.ones(2).half()
    out, lse = faops.attention_varlen(q, k, k, ends, none, 6, 0, sinks=sinks, return_lse=True, backend=FUSED)
    assert out.eq(0).all() and lse.eq(-torch.inf).all() and not calls(npu, FUSED)


# --- the prompt operator ---------------------------------------------------------------------------------------------


def test_prompt_is_told_that_keys_follow(npu: double.Handle) -> None:
    check(half("mask", seqlen_q=33), PROMPT)
    [arguments] = calls(npu, PROMPT)
    assert arguments["next_tokens"] == 2**31 - 1 == arguments["pre_tokens"]


@pytest.mark.parametrize("npu", [{"soc": "310P"}], indirect=True)
@pytest.mark.parametrize("features", [(), ("causal",), ("window",), ("bhsd", "window_left")])
def test_prompt_on_the_310p(npu: double.Handle, features: tuple[str, ...]) -> None:
    """It knows no compressed masks, so that a band is a mask of its own."""
    case = half(*features, dtype=torch.float16, seqlen_q=33, seqlen_k=65)
    check(case, PROMPT)
    [arguments] = calls(npu, PROMPT)
    assert arguments["sparse_mode"] == 0 and arguments["num_key_value_heads"] == 0
    mask = arguments["atten_mask"]
    assert mask is None if not features else mask is None or mask.shape[2:] == (33, 65)


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kernel", "soc", "changes", "words"),
    [
        (FUSED, "910B", {"dtype": "float32"}, "float16 and bfloat16"),
        (FUSED, "910B", {"softcap": True}, "softcap"),
        (FUSED, "910B", {"alibi": True}, "ALiBi"),
        (FUSED, "910B", {"dropout": True}, "dropout"),
        (FUSED, "910B", {"head_dim": 513}, "head_dim 513"),
        (FUSED, "910B", {"seqlen_q": 1, "seqlen_k": 262145}, "262145 keys of one row"),
        (FUSED, "910B", {"bias": "bhmn", "seqlen_q": 8192, "seqlen_k": 8192}, "MiB"),
        (FUSED, "910B", {"layout": "varlen", "mask": "..mn"}, "take no mask"),
        (FUSED, "910B", {"layout": "varlen", "bias": "..mn"}, "take no bias"),
        (FUSED, "910B", {"layout": "varlen", "head_dim": 64, "head_dim_v": 64, "heads_q": 16}, "head dim of 128"),
        (FUSED, "910B", {"layout": "varlen", "head_dim_v": 64}, "values of the keys' head dim"),
        (FUSED, "910B", {"layout": "varlen", "batch": 4097}, "4097 packed sequences"),
        (FUSED, "310P", {"dtype": "float16"}, "not for 310P"),
        (PROMPT, "910B", {"need_lse": True}, "no lse"),
        (PROMPT, "910B", {"sinks": True}, "which sinks need"),
        (PROMPT, "910B", {"layout": "varlen"}, "dense calls only"),
        (PROMPT, "950", {}, "not for 950"),
        (PROMPT, "910B", {"heads_q": 256, "heads_kv": 256, "head_dim": 250}, "65536"),
        (PROMPT, "310P", {"dtype": "bfloat16"}, "no bfloat16"),
        (PROMPT, "310P", {"heads_q": 16}, "grouped heads"),
        (PROMPT, "310P", {"bias": "..mn"}, "no pse_shift"),
        (PROMPT, "310P", {"mask": ".h.n"}, "no pse_shift"),
        (PROMPT, "310P", {"mask": "...n", "seqlen_q": 1}, "no pse_shift"),
        (PROMPT, "310P", {"batch": 129}, "more than the 310P's 128"),
        (PROMPT, "310P", {"seqlen_k": 65536}, "more than the 310P's 65535"),
        (PROMPT, "310P", {"seqlen_q": 32768, "seqlen_k": 32768, "band": Band(-1, 0)}, "a mask of 1024 MiB"),
    ],
)
def test_reasons(kernel: str, soc: str, changes: dict[str, object], words: str) -> None:
    decision = registry.get(kernel).check(replace(PROBLEM, **changes), profile(soc))
    assert not decision and any(words in reason for reason in decision.reasons), decision


def test_small_head_dims_are_packed_by_the_second_version_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = replace(PROBLEM, layout="varlen", head_dim=64, head_dim_v=64)
    kernel = registry.get(FUSED)
    assert {config["operator"] for config in kernel.configs(problem, profile())} == {"v2"}
    monkeypatch.setattr(operators, "operators", lambda: operators.recorded("2.5.1.post1"))
    assert not kernel.check(problem, profile())


# --- versions --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
def test_every_version(version: str) -> None:
    with ascend(version) as handle:
        for kernel, features in ((FUSED, ("causal",)), (FUSED, ("varlen", "window")), (PROMPT, ("window",))):
            case = half(*features, seqlen_q=17, seqlen_k=33)
            problem = replace(PROBLEM, layout="varlen" if case.varlen else "dense")
            for config in registry.get(kernel).configs(problem, profile()):
                with pytest.MonkeyPatch.context() as patch:
                    use(patch, kernel, **config)
                    check(case, kernel)
        expected = {FUSED: 1 if version.startswith("2.5.1") else 2, PROMPT: 1}
        for kernel, count in expected.items():
            assert len({name for name, _ in handle.calls if name in OPERATORS[kernel]}) == count


def test_gradients_come_from_another_kernel(npu: double.Handle) -> None:
    q, k, v = (torch.randn(1, 40, 2, 64).half().requires_grad_() for _ in range(3))
    faops.attention(q, k, v, causal=True, backend=FUSED).float().square().sum().backward()
    exact = [tensor.detach().double().requires_grad_() for tensor in (q, k, v)]
    faops.reference.attention(*exact, causal=True)[0].square().sum().backward()
    for mine, other in zip((q, k, v), exact):
        torch.testing.assert_close(mine.grad.double(), other.grad, atol=3e-2, rtol=3e-2)
