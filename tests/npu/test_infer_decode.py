"""KV-cache calls on npu_fused_infer_attention_score, through the contract double."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch

import faops
from faops import dispatch, registry
from faops.backends.npu import operators
from faops.backends.npu.inference import fused
from faops.errors import ArgumentError
from faops.inputs import DecodeInputs
from faops.problem import AttentionProblem, Band
from faops.registry import Config
from tests import kvcache
from tests.kvcache import make_call
from tests.npu import double
from tests.npu.cachecalls import VERSIONS, check, mostly_full
from tests.npu.support import ascend, profile

KERNEL = "npu.infer_decode"
FUSED = tuple(fused.OPERATORS.values())
PROBLEM = AttentionProblem(
    op="decode", dtype="bfloat16", batch=2, seqlen_q=1, seqlen_k=512, heads_q=8, heads_kv=2, head_dim=128,
    head_dim_v=128,
)  # fmt: skip
# What the operator computes; the rest is refused.
FEATURES = tuple(
    name for name in kvcache.FEATURES if name not in ("softcap", "alibi", "alibi_batch", "value_dim")
)  # fmt: skip


def half(*features: str, **shape: int) -> kvcache.Call:
    dtype = random.choice((torch.float16, torch.bfloat16))
    shape = {"dim": 64, "dim_v": 64, **shape}
    return make_call(*features, dtype=dtype, **shape)


def fused_calls(handle: double.Handle) -> list[dict[str, object]]:
    return [arguments for name, arguments in handle.calls if name in FUSED]


def lengths_of(arguments: dict[str, object]) -> object:
    return arguments.get("actual_seq_kvlen", arguments.get("actual_seq_lengths_kv"))


def use(monkeypatch: pytest.MonkeyPatch, **changes: object) -> None:
    """Make the kernel's default config another one."""
    kernel = registry.get(KERNEL)
    default = kernel.default_config
    monkeypatch.setattr(
        kernel, "default_config", lambda problem, device: Config({**default(problem, device), **changes}), raising=False
    )
    dispatch.forget()


@pytest.mark.parametrize("M", mostly_full((1, 5, 64), (1, 5)))
@pytest.mark.parametrize("feature", [None, *FEATURES])
def test_every_feature(npu: double.Handle, feature: str | None, M: int) -> None:
    call = half(*filter(None, [feature]), M=M, keys=random.choice((1, 63, 130)))
    check(call, KERNEL)


@pytest.mark.parametrize("seed", mostly_full(range(32), range(8)))
def test_features_together(npu: double.Handle, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    chosen: tuple[str, ...] = ()
    for name in random.sample(FEATURES, len(FEATURES)):
        if len(chosen) < 4 and kvcache.compatible((*chosen, name)):
            chosen = (*chosen, name)
    page = random.choice((1, 3, 16, 128)) if "paged" in chosen else 0
    call = half(
        *chosen, M=random.choice((1, 1, 5, 33)), keys=random.choice((50, 129, 257)), page=page,
        dim=(dim := random.choice((32, 64, 128))), dim_v=dim, heads_kv=random.choice((1, 2)),
        group=random.choice((1, 3)),
    )  # fmt: skip
    configs = registry.get(KERNEL).configs(problem_of(call), profile())
    use(monkeypatch, **{**random.choice(configs), "gather": random.choice((1, 1 << 18))})
    check(call, KERNEL)


def problem_of(call: kvcache.Call) -> AttentionProblem:
    q, k_cache = (
        tensor if call.options.get("layout") != "bhsd" else tensor.transpose(1, 2) for tensor in call.tensors[:2]
    )
    table = call.options.get("block_table")
    return AttentionProblem(
        op="decode", dtype="float16" if call.dtype == torch.float16 else "bfloat16", batch=q.shape[0],
        seqlen_q=q.shape[1], seqlen_k=k_cache.shape[1], heads_q=q.shape[2], heads_kv=k_cache.shape[2],
        head_dim=q.shape[3], head_dim_v=q.shape[3], layout="dense" if table is None else "paged",
        page_size=0 if table is None else k_cache.shape[1],
        bias="...." if "bias" in call.options else "", mask="...." if "mask" in call.options else "",
    )  # fmt: skip


# --- what hides keys -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("features", [("mask",), ("bias",), ("mask", "bias", "window")])
def test_one_row_is_hidden_by_finite_shifts_of_every_head(npu: double.Handle, features: tuple[str, ...]) -> None:
    """(1, 1, 1, N) masks are ignored past the 512th key, shifts of one head are wrong, and -inf in them gives NaN."""
    call = half(*features, M=1, keys=700)
    if "bias" in features:
        call.options["bias"] = torch.where(torch.rand(700 + 9)[: call.tensors[1].shape[1]] < 0.2, -torch.inf, 0.5)
    check(call, KERNEL)
    for arguments in fused_calls(npu):
        assert arguments["atten_mask"] is None
        assert arguments["pse_shift"].shape[1:3] == (4, 1)
        assert arguments["pse_shift"].isfinite().all()


def test_several_rows_are_masked_without_their_heads(npu: double.Handle) -> None:
    call = half("causal", M=5, keys=70)
    call.options["mask"] = torch.rand(2, 1, 5, call.tensors[1].shape[1]) < 0.6
    check(call, KERNEL)
    [arguments] = fused_calls(npu)
    assert arguments["pse_shift"] is None and arguments["sparse_mode"] == 0
    assert arguments["atten_mask"].shape == (2, 1, 5, call.tensors[1].shape[1])
    assert not arguments["atten_mask"].all(-1).any(), "no document says what a row without a key gets"


def test_the_compressed_mask_is_made_once(npu: double.Handle) -> None:
    for _ in range(2):
        check(half("causal", M=5, keys=70), KERNEL)
    first, second = (arguments["atten_mask"] for arguments in fused_calls(npu))
    assert first is second or first.data_ptr() == second.data_ptr()
    assert first.shape == (2048, 2048)


def test_sequences_without_keys_and_rows_without_keys(npu: double.Handle) -> None:
    q = torch.randn(3, 7, 4, 64).half()
    k_cache, v_cache = (torch.full((3, 128, 2, 64), float("nan")).half() for _ in range(2))
    k_cache[1, :3], v_cache[1, :3] = torch.randn(3, 2, 64).half(), torch.randn(3, 2, 64).half()
    k_cache[2, :9], v_cache[2, :9] = torch.randn(9, 2, 64).half(), torch.randn(9, 2, 64).half()
    lengths = torch.tensor([0, 3, 9], dtype=torch.int32)
    out, lse = faops.attention_with_kvcache(
        q, k_cache, v_cache, cache_seqlens=lengths, causal=True, return_lse=True, backend=KERNEL
    )
    assert out[0].eq(0).all() and lse[0].eq(-torch.inf).all()
    assert out[1, :4].eq(0).all() and lse[1, :, :4].eq(-torch.inf).all()
    assert out[1, 4:].ne(0).all() and lse[1, :, 4:].isfinite().all() and lse[2].isfinite().all()


def test_nothing_cached_at_all(npu: double.Handle) -> None:
    q, cache = torch.randn(2, 1, 4, 64).half(), torch.full((2, 32, 2, 64), float("nan")).half()
    out, lse = faops.attention_with_kvcache(q, cache, cache.clone(), cache_seqlens=0, return_lse=True, backend=KERNEL)
    assert out.eq(0).all() and lse.eq(-torch.inf).all() and not fused_calls(npu)


# --- what is refused -------------------------------------------------------------------------------------------------


def inputs_of(**changes: object) -> DecodeInputs:
    batch, capacity = 2, 64
    made: dict[str, object] = {
        "q": torch.randn(batch, 1, 4, 64).half(), "k_cache": torch.randn(batch, capacity, 2, 64).half(),
        "v_cache": torch.randn(batch, capacity, 2, 64).half(), "k": torch.randn(batch, 1, 2, 64).half(),
        "v": torch.randn(batch, 1, 2, 64).half(), "cache_seqlens": torch.tensor([5, 9], dtype=torch.int32),
        "cache_batch_idx": None, "cache_leftpad": None, "block_table": None, "rotary_cos": None, "rotary_sin": None,
        "alibi_slopes": None, "bias": None, "mask": None, "sinks": None, "window_left": -1, "window_right": 0,
        "scale": 0.125, "softcap": 0.0, "rotary_interleaved": True, "num_splits": 0, "need_lse": True, "backend": "",
    }  # fmt: skip
    return DecodeInputs(**{**made, **changes})


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("cache_seqlens", {"cache_seqlens": torch.tensor([5, 64], dtype=torch.int32)}),
        ("cache_seqlens", {"cache_seqlens": torch.tensor([-1, 3], dtype=torch.int32)}),
        ("cache_leftpad", {"cache_leftpad": torch.tensor([0, 11], dtype=torch.int32)}),
        ("cache_batch_idx", {"cache_batch_idx": torch.tensor([0, 2], dtype=torch.int32)}),
        ("rotary_cos", {"rotary_cos": torch.ones(9, 4), "rotary_sin": torch.ones(9, 4)}),
    ],
)
def test_wrong_values_are_refused_before_anything_is_written(
    npu: double.Handle, name: str, changes: dict[str, object]
) -> None:
    """The kernel reads these numbers on the host anyway; on an NPU nobody has before."""
    inputs = inputs_of(**changes)
    before = inputs.k_cache.clone(), inputs.v_cache.clone()
    config = registry.get(KERNEL).default_config(inputs.problem(), profile())
    with pytest.raises(ArgumentError, match=name):
        registry.get(KERNEL).launch(inputs, config)
    assert torch.equal(inputs.k_cache, before[0]) and torch.equal(inputs.v_cache, before[1])
    assert not npu.calls


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"dtype": "float32"}, "float16 and bfloat16"),
        ({"head_dim": 72, "head_dim_v": 72}, "multiple of 16"),
        ({"head_dim": 528, "head_dim_v": 528}, "more than 512"),
        ({"head_dim_v": 64}, "values of the keys' head dim"),
        ({"heads_q": 130, "heads_kv": 2}, "65 query heads a key head"),
        ({"heads_q": 257, "heads_kv": 257}, "257 heads"),
        ({"batch": 65537}, "batch 65537"),
        ({"seqlen_k": 20971521}, "20971521"),
        ({"softcap": True}, "softcap"),
        ({"alibi": True}, "ALiBi"),
        ({"fp8_descale": True}, "fp8"),
        ({"bias": "bhmn", "batch": 64, "seqlen_q": 64, "seqlen_k": 8192}, "MiB"),
        ({"mask": "b..n", "seqlen_q": 4096, "seqlen_k": 131072}, "MiB"),
    ],
)
def test_reasons(changes: dict[str, object], words: str) -> None:
    decision = registry.get(KERNEL).check(replace(PROBLEM, **changes), profile())
    assert not decision and any(words in reason for reason in decision.reasons), decision


def test_every_reason_is_given() -> None:
    problem = replace(PROBLEM, dtype="float32", softcap=True, alibi=True, head_dim=72)
    decision = registry.get(KERNEL).check(problem, profile("310P"))
    assert len(decision.reasons) == 6, decision


@pytest.mark.parametrize(("soc", "runs"), [("310P", False), ("910B", True), ("910C", True), ("950", True)])
def test_devices(soc: str, runs: bool) -> None:
    assert bool(registry.get(KERNEL).check(PROBLEM, profile(soc))) == runs


def test_new_keys_need_an_operator_to_write_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("faops.backends.npu.inference.append.SCATTER", "npu_no_such")
    monkeypatch.setattr(operators, "operators", lambda: operators.recorded("2.5.1.post1"))
    assert registry.get(KERNEL).check(PROBLEM, profile())
    decision = registry.get(KERNEL).check(replace(PROBLEM, append=True), profile())
    assert not decision and "to write new keys with" in decision.reasons[0]


# --- versions --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
def test_every_version(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """2.5.1 has no second version of the operator, 2.1 to 2.6 no cache_mode, the older no gathering."""
    with ascend(version) as handle:
        for config in registry.get(KERNEL).configs(replace(PROBLEM, layout="paged", page_size=128), profile()):
            with pytest.MonkeyPatch.context() as patch:
                use(patch, **{**config, "gather": min(1, config.integer("gather"))})
                features = random.choice((("causal", "append", "rotary"), ("window", "append_more", "rotary_half")))
                call = half("paged", *features, M=random.choice((1, 5)), keys=140, page=128, dim=128, dim_v=128)
                check(call, KERNEL, f"{version} {config}")
        expected = {FUSED[0]} if version.startswith("2.5.1") else set(FUSED)
        assert {name for name, _ in handle.calls if name in FUSED} == expected


def test_bands_of_every_kind_reach_the_operator(npu: double.Handle) -> None:
    for band, expected in ((Band(-1, 0), (3, None, None)), (Band(9, 2), (4, 9, 2)), (Band(-1, 2), (4, 2147483647, 2))):
        found = fused.band_arguments(band, torch.device("cpu"))
        assert (found["sparse_mode"], found.get("pre_tokens"), found.get("next_tokens")) == expected
        assert found["atten_mask"].shape == (2048, 2048), "without it the sparse mode is ignored"
    assert fused.band_arguments(Band(), torch.device("cpu")) == {}


def test_footprints_count_what_is_copied() -> None:
    kernel = registry.get(KERNEL)
    for changes, copies in (({"page_size": 128}, False), ({"page_size": 24}, True), ({"page_size": 0}, False)):
        problem = replace(PROBLEM, layout="paged" if changes["page_size"] else "dense", **changes)
        default = kernel.default_config(problem, profile())
        in_place, gathered = (
            kernel.footprint(problem, profile(), Config({**default, "keys": keys})) for keys in ("in_place", "gathered")
        )
        assert (
            sum(part.traffic for part in in_place.parts()) < sum(part.traffic for part in gathered.parts())
        ) != copies


@pytest.mark.parametrize("M", [1, 5])
def test_rows_that_a_bias_hides_altogether(npu: double.Handle, M: int) -> None:
    call = half("bias", M=M, keys=70)
    bias = torch.randn(2, 1, M, call.tensors[1].shape[1]).to(call.dtype)
    bias[:, 0, M // 2] = -torch.inf
    call.options["bias"] = bias
    check(call, KERNEL)
