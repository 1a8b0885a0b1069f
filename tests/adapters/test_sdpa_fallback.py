"""What stays with PyTorch, each for its reason, with PyTorch's own result or error."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.bias import causal_lower_right, causal_upper_left

import faops
from faops.adapters import sdpa
from faops.errors import ArgumentError, NoKernelError


def qkv(heads_kv: int = 4, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [torch.randn(2, heads, length, 8).to(dtype) for heads, length in ((4, 9), (heads_kv, 13), (heads_kv, 13))]


class Labelled(Tensor):
    """A subclass without behaviour of its own."""


def attention(*args: Any, **kwargs: Any) -> Tensor:
    return F.scaled_dot_product_attention(*args, **kwargs)


def nested() -> Tensor:
    rows = [torch.randn(length, 4, 8) for length in (3, 5)]
    return torch.nested.nested_tensor(rows, layout=torch.jagged).transpose(1, 2)


def strided_nested() -> Tensor:
    return torch.nested.nested_tensor([torch.randn(4, length, 8) for length in (3, 5)])


AXES = "query, key and value have different numbers of axes, or one"
SUBCLASS = "a tensor subclass brings its own attention"
UNFIT = "shapes of query, key and value that do not fit"
MASK_DTYPE = "attn_mask has another dtype than bool, float32 or the query's"
MASK_SUBCLASS = "attn_mask is a tensor subclass"
BIAS_LENGTHS = "a causal bias made for other lengths"
TRACED = "torch.jit.trace keeps to operators of PyTorch"
MASK_AXES = "attn_mask has one axis, or more than the query"
SURPLUS = "arguments that the function does not have"
FLAGS = "is_causal or enable_gqa is no bool"
HEADS = "key and value with different numbers of heads"

KEPT: dict[str, tuple[str, Callable[[], Any]]] = {
    "subclass": (SUBCLASS, lambda: attention(qkv()[0].as_subclass(Labelled), *qkv()[1:])),
    "jagged": (SUBCLASS, lambda: attention(*[nested()] * 3).values()),
    "nested": ("a nested, sparse or meta tensor", lambda: attention(*[strided_nested()] * 3).to_padded_tensor(0.0)),
    "meta": ("a nested, sparse or meta tensor", lambda: attention(*(x.to("meta") for x in qkv())).shape),
    "dtype": ("dtype int64", lambda: attention(*(x.long() for x in qkv()))),
    "complex": ("dtype complex64", lambda: attention(*(x.to(torch.complex64) for x in qkv()))),
    "other axes": (AXES, lambda: attention(qkv()[0][0], *qkv()[1:])),
    "one axis": (AXES, lambda: attention(*[torch.ones(3)] * 3)),
    "head dims": (UNFIT, lambda: attention(qkv()[0][..., :5], *qkv()[1:])),
    "keys": (UNFIT, lambda: attention(*qkv()[:2], qkv()[2][:, :, :4])),
    "batches": ("leading axes that do not broadcast", lambda: attention(qkv()[0].repeat(2, 1, 1, 1), *qkv()[1:])),
    "heads": ("heads that do not broadcast", lambda: attention(*qkv(heads_kv=2))),
    "grouped": (
        "heads of key that do not divide those of query",
        lambda: attention(*qkv(heads_kv=3), enable_gqa=True),
    ),
    "value heads": (HEADS, lambda: attention(*qkv(heads_kv=2)[:2], qkv(heads_kv=1)[2], enable_gqa=True)),
    "flag": (FLAGS, lambda: attention(*qkv(), is_causal="yes")),
    "dropout": ("dropout_p outside [0, 1)", lambda: attention(*qkv(), dropout_p=1.0)),
    "negative dropout": ("dropout_p outside [0, 1)", lambda: attention(*qkv(), dropout_p=-0.5)),
    "mask and causal": ("attn_mask beside is_causal", lambda: attention(*qkv(), torch.ones(9, 13).bool(), 0.0, True)),
    "mask of int": (MASK_DTYPE, lambda: attention(*qkv(), torch.ones(9, 13, dtype=torch.int64))),
    "mask of float64": (MASK_DTYPE, lambda: attention(*qkv(), torch.ones(9, 13, dtype=torch.float64))),
    "short mask": (MASK_AXES, lambda: attention(*qkv(), torch.ones(13))),
    "long mask": (MASK_AXES, lambda: attention(*qkv(), torch.ones(1, 1, 1, 9, 13))),
    "mask subclass": (MASK_SUBCLASS, lambda: attention(*qkv(), torch.ones(9, 13).as_subclass(Labelled))),
    "bias lengths": (BIAS_LENGTHS, lambda: attention(*qkv(), causal_upper_left(9, 12))),
    "bias lengths right": (BIAS_LENGTHS, lambda: attention(*qkv(), causal_lower_right(9, 14))),
    "surplus": (SURPLUS, lambda: attention(*qkv(), None, 0.0, False, 0.5)),
    "unknown": (SURPLUS, lambda: attention(*qkv(), softcap=1.0)),
    "no tensor": (SURPLUS, lambda: attention(1, 2, 3)),
    "too few": (SURPLUS, lambda: attention(torch.ones(1, 1, 2, 2))),
    "mixed dtypes": (
        "faops refuses k: the dtype of q, torch.float32 is expected",
        lambda: attention(qkv()[0], *(x.half() for x in qkv()[1:])),
    ),
    "wide mask": (
        "faops refuses mask: a shape that broadcasts to (batch, heads, M, N) = (2, 4, 9, 13) is expected",
        lambda: attention(*qkv(), torch.ones(9, 12).bool()),
    ),
    "scale": (
        "faops refuses scale: a finite number or None is expected",
        lambda: attention(*qkv(), scale=float("inf")),
    ),
    "vmap": ("a transform of torch.func is active", lambda: torch.func.vmap(attention)(*qkv())),
    "grad": (
        "a transform of torch.func is active",
        lambda: torch.func.grad(lambda q: attention(q, *qkv()[1:]).sum())(qkv()[0]),
    ),
    "trace": (TRACED, lambda: torch.jit.trace(attention, qkv(), check_trace=False)),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("name", KEPT)
@pytest.mark.parametrize("everywhere", [False, True], ids=["block", "installed"])
def test_calls_that_stay(name: str, everywhere: bool, seeded: int) -> None:
    reason, call = KEPT[name]

    def outcome() -> Any:
        torch.manual_seed(seeded)
        try:
            return call()
        except Exception as error:
            return type(error), str(error)

    expected = outcome()
    sdpa.reset_stats()
    if everywhere:
        sdpa.install()
        try:
            found = outcome()
        finally:
            sdpa.uninstall()
    else:
        with sdpa.enabled():
            found = outcome()
    if name == "trace":
        assert "faops::" not in str(found.graph) and "aten::scaled_dot_product_attention" in str(found.graph)
    elif isinstance(expected, Tensor):
        torch.testing.assert_close(found, expected, equal_nan=True)
    else:
        assert found == expected
    calls = sdpa.stats()
    assert calls.routed == 0 and set(calls.kept) == {reason}, calls


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_forward_mode_stays() -> None:
    q, k, v = qkv()
    with torch.autograd.forward_ad.dual_level(), sdpa.enabled() as calls, sdpa_math():
        dual = torch.autograd.forward_ad.make_dual(q, torch.ones_like(q))
        out = torch.autograd.forward_ad.unpack_dual(attention(dual, k, v))
    assert out.tangent is not None and calls.routed == 0
    with torch.autograd.forward_ad.dual_level(), sdpa.enabled() as calls:
        attention(q, k, v)
    assert set(calls.kept) == {"forward-mode differentiation is active"}


def sdpa_math() -> Any:
    return sdpa_kernel(SDPBackend.MATH)


@pytest.mark.parametrize("kernel", [SDPBackend.MATH, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION])
def test_a_wish_for_a_kernel_of_pytorch_is_honoured(kernel: SDPBackend) -> None:
    with sdpa.enabled() as calls:
        with sdpa_kernel([kernel, SDPBackend.MATH]):
            attention(*qkv())
        assert dict(calls.kept) == {"sdpa_kernel asks for certain kernels of PyTorch": 1}
        attention(*qkv())
    assert calls.routed == 1


def test_without_cudnn_alone_calls_are_routed() -> None:
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        with sdpa.enabled() as calls:
            attention(*qkv())
    finally:
        torch.backends.cuda.enable_cudnn_sdp(True)
    assert calls.routed == 1


def test_a_problem_without_a_kernel_stays_unless_a_backend_is_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(q: Tensor, *others: Tensor, backend: str | None, **options: Any) -> Tensor:
        problem = faops.AttentionProblem(op="forward", dtype="float32", batch=1, seqlen_q=1, seqlen_k=1, heads_q=1,
                                         heads_kv=1, head_dim=8, head_dim_v=8)  # fmt: skip
        raise NoKernelError(problem, "cpu", {})

    monkeypatch.setattr(faops, "attention", refuse)
    with sdpa.enabled() as calls:
        attention(*qkv())
    assert dict(calls.kept) == {"no kernel of faops takes this problem": 1}
    with sdpa.enabled(backend="triton"), pytest.raises(NoKernelError):
        attention(*qkv())
    attention(*qkv())  # and all is as before


def test_other_errors_are_not_swallowed(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*tensors: Tensor, **options: Any) -> Tensor:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(faops, "attention", fail)
    with sdpa.enabled(), pytest.raises(RuntimeError, match="out of memory"):
        attention(*qkv())


def test_an_unknown_backend_is_named() -> None:
    with sdpa.enabled(backend="nonsense"), pytest.raises(ArgumentError, match="nonsense"):
        attention(*qkv())


@pytest.fixture
def info(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    sdpa.reset_stats()
    with caplog.at_level(logging.INFO, logger="faops.adapters.sdpa"):
        yield caplog


def test_each_reason_is_logged_once(info: pytest.LogCaptureFixture) -> None:
    q, k, v = qkv()
    with sdpa.enabled() as calls:
        for _ in range(3):
            attention(q, k, v, torch.ones(9, 13).bool(), 0.0, True)
        attention(q, k, v, dropout_p=1.0)
        attention(q, k, v)
    assert [record.message for record in info.records] == [
        "scaled_dot_product_attention stays with PyTorch: attn_mask beside is_causal",
        "scaled_dot_product_attention stays with PyTorch: dropout_p outside [0, 1)",
    ]
    assert all(record.levelno == logging.INFO for record in info.records)
    assert str(calls).splitlines() == [
        "routed to faops: 1",
        "kept by PyTorch: 3 (attn_mask beside is_causal)",
        "kept by PyTorch: 1 (dropout_p outside [0, 1))",
    ]
    sdpa.reset_stats()
    assert sdpa.stats() == sdpa.Calls()
    with sdpa.enabled():
        attention(q, k, v, dropout_p=1.0)
    assert len(info.records) == 3
