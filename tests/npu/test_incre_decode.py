"""One-row KV-cache calls on npu_incre_flash_attention, through the contract double."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch

import faops
from faops import dispatch, registry
from faops.errors import NoKernelError
from faops.problem import AttentionProblem
from faops.registry import Config
from tests import kvcache
from tests.kvcache import make_call
from tests.npu import cachecalls, double
from tests.npu.cachecalls import VERSIONS
from tests.npu.support import ascend, profile

KERNEL, OPERATOR = "npu.incre_decode", "npu_incre_flash_attention"
PROBLEM = AttentionProblem(
    op="decode", dtype="float16", batch=2, seqlen_q=1, seqlen_k=512, heads_q=8, heads_kv=2, head_dim=128,
    head_dim_v=128,
)  # fmt: skip
FEATURES = tuple(
    name for name in kvcache.FEATURES if name not in ("softcap", "alibi", "alibi_batch", "value_dim", "sinks")
)  # fmt: skip
WITHOUT_SHIFT = tuple(name for name in FEATURES if name not in ("bias", "mask"))


def check(call: kvcache.Call) -> None:
    cachecalls.check(call, KERNEL, with_lse=False)


def call_of(*features: str, **shape: object) -> kvcache.Call:
    return make_call(*features, **{"dtype": torch.float16, "dim": 64, "dim_v": 64, "M": 1, **shape})


@pytest.mark.parametrize("feature", [None, *FEATURES])
def test_every_feature(npu: double.Handle, feature: str | None) -> None:
    check(call_of(*filter(None, [feature]), keys=random.choice((1, 63, 130))))
    assert npu.count(OPERATOR) == 1 or feature == "leftpad"  # which may leave no key


@pytest.mark.parametrize("npu", [{"soc": "310P"}], indirect=True)
@pytest.mark.parametrize("feature", [None, *WITHOUT_SHIFT])
def test_on_the_310p(npu: double.Handle, feature: str | None) -> None:
    """It takes no pse_shift, so that a window's first page is copied, and its rotary operator one head dim only."""
    check(call_of(*filter(None, [feature]), keys=random.choice((1, 63, 130))))
    assert npu.count(OPERATOR) == 1 or feature == "leftpad"
    assert npu.count("npu_rotary_mul") == npu.count("npu_scatter_pa_kv_cache") == 0


@pytest.mark.parametrize(("page", "in_place"), [(16, True), (128, True), (3, False), (528, False)])
@pytest.mark.parametrize("layout", ["bshd", "bhsd"])
def test_pages(npu: double.Handle, page: int, in_place: bool, layout: str) -> None:
    call = call_of("paged", *(["bhsd"] if layout == "bhsd" else []), keys=70, page=page)
    check(call)
    [arguments] = [arguments for name, arguments in npu.calls if name == OPERATOR]
    assert (arguments["block_table"] is not None) == in_place
    if in_place:
        assert arguments["input_layout"] == ("BSH" if layout == "bshd" else "BNSD")
        assert arguments["key"].data_ptr() == call.tensors[1].data_ptr()


@pytest.mark.parametrize("version", VERSIONS)
def test_every_version(version: str) -> None:
    kernel = registry.get(KERNEL)
    with ascend(version):
        for config in kernel.configs(PROBLEM, profile()):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(kernel, "default_config", lambda *_, config=config: Config(config), raising=False)
                dispatch.forget()
                check(call_of("append", "rotary_half", *random.choice(((), ("paged",))), keys=70))


@pytest.mark.parametrize(
    ("soc", "changes", "words"),
    [
        ("910B", {"seqlen_q": 2}, "one row a sequence, not 2"),
        ("910B", {"need_lse": True}, "gives no lse"),
        ("910B", {"sinks": True}, "which sinks need"),
        ("910B", {"seqlen_k": 262145}, "more than 262144"),
        ("910B", {"head_dim": 72, "head_dim_v": 72}, "multiple of 16"),
        ("910C", {}, "not for 910C"),
        ("950", {}, "not for 950"),
        ("310P", {"dtype": "bfloat16"}, "no bfloat16"),
        ("310P", {"bias": "..mn"}, "no pse_shift"),
        ("310P", {"mask": "...n"}, "no pse_shift"),
        ("310P", {"batch": 257}, "310P's 256"),
        ("310P", {"seqlen_k": 65537}, "310P's 65536"),
    ],
)
def test_reasons(soc: str, changes: dict[str, object], words: str) -> None:
    decision = registry.get(KERNEL).check(replace(PROBLEM, **changes), profile(soc))
    assert not decision and any(words in reason for reason in decision.reasons), decision


def test_several_rows_are_refused(npu: double.Handle) -> None:
    with pytest.raises(NoKernelError, match="one row a sequence, not 2"):
        faops.attention_with_kvcache(*call_of(M=2, keys=9).tensors, cache_seqlens=3, backend=KERNEL)
