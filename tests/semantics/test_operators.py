"""The torch.library operators: opcheck, torch.compile, functorch, meta and fake tensors, autocast, export."""

from __future__ import annotations

import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import faops
from faops import ops
from faops.api import _dense_arguments
from tests.support import FEATURES, cumulative, make_case, make_inputs, run_faops

DENSE = [name for name in FEATURES if name != "varlen"]
# Tracing is slow, so the usual run traces one feature of each kind.
TRACED = ("gqa", "bhsd", "causal", "alibi", "bias", "mask", "sinks")
ALL_TRACED = [
    name if name in TRACED else pytest.param(name, marks=pytest.mark.full)
    for name in DENSE
    if name not in ("dropout", "lse_grad")
]


def operator_arguments(*features: str, gradient: bool) -> tuple[Any, ...]:
    """Arguments of torch.ops.faops.attention for a random case."""
    case = make_case(*features, seqlen_q=9, seqlen_k=12, head_dim=8, head_dim_v=8)
    inputs = make_inputs(case)
    for leaf in inputs.leaves.values():
        leaf.requires_grad_(gradient)
    return _dense_arguments(inputs.q, inputs.k, inputs.v, layout=case.layout, return_lse=True, **inputs.options)


@pytest.mark.parametrize(
    ("features", "gradient"),
    [
        ((), False),
        ((), True),
        (("gqa", "causal", "bhsd"), True),
        (("bias", "sinks"), True),
        (("dropout", "mask"), True),
        (("alibi", "softcap"), False),
    ],
)
def test_opcheck_attention(features: tuple[str, ...], gradient: bool) -> None:
    torch.library.opcheck(ops.attention_op, operator_arguments(*features, gradient=gradient))


@pytest.mark.parametrize("features", [("gqa", "causal"), ("bias", "sinks", "softcap")])
def test_opcheck_backward(features: tuple[str, ...]) -> None:
    arguments = operator_arguments(*features, gradient=False)
    out, lse = ops.attention_op(*arguments)
    wants = "bias" in features, "sinks" in features
    torch.library.opcheck(ops.backward_op, (torch.randn_like(out), torch.randn_like(lse), out, lse, *wants, *arguments))


@pytest.mark.parametrize("append", [False, True])
def test_opcheck_kvcache(append: bool) -> None:
    q, k_cache, v_cache = torch.randn(2, 1, 4, 8), torch.randn(2, 9, 2, 8), torch.randn(2, 9, 2, 8)
    new = (torch.randn(2, 1, 2, 8), torch.randn(2, 1, 2, 8)) if append else (None, None)
    seqlens = torch.tensor([3, 5], dtype=torch.int32)
    arguments = (
        q, k_cache, v_cache, *new, seqlens, *(None,) * 9, -1, -1, 0.35, 0.0, True, 0, True, "", None, None, None,
    )  # fmt: skip
    torch.library.opcheck(ops.kvcache_op, arguments)


@pytest.mark.parametrize("feature", ["plain", *DENSE])
def test_meta_tensors_have_the_shapes_and_strides_of_real_ones(feature: str) -> None:
    case = make_case(*([] if feature == "plain" else [feature]), head_dim_v=24)
    inputs = make_inputs(case)
    if feature == "dropout":  # meta tensors have no generator of their own
        case.options["dropout_p"] = inputs.options["dropout_p"] = 0.0
    options = {"return_lse": True, "layout": case.layout}
    real = faops.attention(inputs.q, inputs.k, inputs.v, **inputs.options, **options)

    def to_meta(value: Any) -> Any:
        return value.to("meta") if isinstance(value, Tensor) else value

    moved = {name: to_meta(value) for name, value in inputs.options.items()}
    meta = faops.attention(to_meta(inputs.q), to_meta(inputs.k), to_meta(inputs.v), **moved, **options)
    for found, wanted in zip(meta, real):
        assert found.is_meta
        assert (found.shape, found.stride(), found.dtype) == (wanted.shape, wanted.stride(), wanted.dtype)


def test_meta_tensors_backward() -> None:
    q, k, v = (torch.randn(2, n, 4, 8, device="meta").requires_grad_() for n in (5, 7, 7))
    bias = torch.randn(1, 4, 1, 7, device="meta").requires_grad_()
    for leaf, gradient in zip(
        (q, k, v, bias), torch.autograd.grad(faops.attention(q, k, v, bias=bias).sum(), (q, k, v, bias))
    ):
        assert gradient.is_meta
        assert gradient.shape == leaf.shape


def test_fake_tensors_of_varlen_and_kvcache() -> None:
    with FakeTensorMode():
        cu = torch.empty(4, dtype=torch.int32)
        out, lse = faops.attention_varlen(
            torch.empty(20, 4, 8), torch.empty(30, 2, 8), torch.empty(30, 2, 6), cu, cu, 10, 15, return_lse=True
        )
        assert out.shape == (20, 4, 6)
        assert lse.shape == (4, 20)
        out = faops.attention_with_kvcache(
            torch.empty(2, 1, 4, 8), torch.empty(2, 9, 2, 8), torch.empty(2, 9, 2, 6),
            cache_seqlens=torch.empty(2, dtype=torch.int32),
        )  # fmt: skip
        assert out.shape == (2, 1, 4, 6)


@pytest.mark.parametrize("feature", ["plain", *(name for name in DENSE if name != "dropout")])
def test_functorch_gradient_is_the_eager_one(feature: str) -> None:
    case = make_case(*([] if feature == "plain" else [feature]))
    inputs = make_inputs(case)
    weights = torch.randn_like(run_faops(case, inputs)[0])

    def loss(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        options = {
            name: value.detach() if isinstance(value, Tensor) else value for name, value in inputs.options.items()
        }
        return (faops.attention(q, k, v, layout=case.layout, **options) * weights).sum()

    leaves = (inputs.q, inputs.k, inputs.v)
    found = torch.func.grad(loss, argnums=(0, 1, 2))(*(leaf.detach() for leaf in leaves))
    for one, other in zip(found, torch.autograd.grad(loss(*leaves), leaves)):
        torch.testing.assert_close(one, other)


def test_functorch_value_and_vjp() -> None:
    q, k, v = (torch.randn(1, 6, 2, 8) for _ in range(3))
    value, pull_back = torch.func.vjp(lambda q: faops.attention(q, k, v, causal=True), q)
    torch.testing.assert_close(value, faops.attention(q, k, v, causal=True))
    leaf = q.clone().requires_grad_()
    weights = torch.randn_like(value)
    (wanted,) = torch.autograd.grad(faops.attention(leaf, k, v, causal=True), [leaf], weights)
    torch.testing.assert_close(pull_back(weights)[0], wanted)


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    torch._dynamo.reset()
    return torch.compile(function, fullgraph=True, backend="aot_eager")


@pytest.mark.parametrize("feature", ["plain", *ALL_TRACED])
def test_compile_in_one_graph(feature: str) -> None:
    """Forward and backward of the traced call equal the eager ones."""
    case = make_case(*([] if feature == "plain" else [feature]), seqlen_q=9, seqlen_k=12, head_dim=8, head_dim_v=8)
    inputs = make_inputs(case)

    def call(*leaves: Tensor) -> Tensor:
        q, k, v, *more = leaves
        options = dict(inputs.options)
        options.update(zip([name for name in inputs.leaves if name not in "qkv"], more))
        return faops.attention(q * 1.0, k, v, layout=case.layout, **options) * 2.0

    leaves = list(inputs.leaves.values())
    found, wanted = compiled(call)(*leaves), call(*leaves)
    torch.testing.assert_close(found, wanted)
    weights = torch.randn_like(wanted)
    for one, other in zip(torch.autograd.grad(found, leaves, weights), torch.autograd.grad(wanted, leaves, weights)):
        torch.testing.assert_close(one, other)


def test_compile_draws_dropout_from_the_default_generator() -> None:
    q, k, v = (torch.randn(1, 9, 2, 8) for _ in range(3))

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return faops.attention(q, k, v, dropout_p=0.5)

    run = compiled(call)
    one, two = run(q, k, v), run(q, k, v)
    assert not torch.equal(one, two)
    assert one.isfinite().all()


def test_compile_with_sizes_that_change() -> None:
    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return faops.attention(q, k, v, causal=True, window=(5, 0))

    torch._dynamo.reset()
    run = torch.compile(call, fullgraph=True, backend="aot_eager", dynamic=True)
    for _ in range(4):
        M, N = random.randint(2, 20), random.randint(2, 20)
        q, k, v = torch.randn(2, M, 2, 8), torch.randn(2, N, 2, 8), torch.randn(2, N, 2, 8)
        torch.testing.assert_close(run(q, k, v), call(q, k, v))


def test_compile_varlen() -> None:
    q, k, v = (torch.randn(12, 2, 8).requires_grad_() for _ in range(3))
    cu = cumulative([5, 0, 7])

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return faops.attention_varlen(q, k, v, cu, cu, 7, 7, causal=True)

    found, wanted = compiled(call)(q, k, v), call(q, k, v)
    torch.testing.assert_close(found, wanted)
    for one, other in zip(torch.autograd.grad(found.sum(), (q, k, v)), torch.autograd.grad(wanted.sum(), (q, k, v))):
        torch.testing.assert_close(one, other)


def test_compile_kvcache_writes_in_place() -> None:
    caches = [torch.randn(2, 9, 2, 8) for _ in range(2)]
    eager = [cache.clone() for cache in caches]
    q, k, v = torch.randn(2, 1, 4, 8), torch.randn(2, 1, 2, 8), torch.randn(2, 1, 2, 8)
    seqlens = torch.tensor([3, 5], dtype=torch.int32)

    def call(k_cache: Tensor, v_cache: Tensor) -> Tensor:
        return faops.attention_with_kvcache(q, k_cache, v_cache, k, v, cache_seqlens=seqlens, causal=True)

    torch.testing.assert_close(compiled(call)(*caches), call(*eager))
    for one, other in zip(caches, eager):
        assert torch.equal(one, other)


@pytest.mark.compile
@pytest.mark.full
def test_compile_with_inductor() -> None:
    q, k, v = (torch.randn(1, 9, 2, 8).requires_grad_() for _ in range(3))

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return faops.attention(q.sin(), k, v, causal=True).cos()

    torch._dynamo.reset()
    found, wanted = torch.compile(call, fullgraph=True)(q, k, v), call(q, k, v)
    torch.testing.assert_close(found, wanted)
    for one, other in zip(torch.autograd.grad(found.sum(), (q, k, v)), torch.autograd.grad(wanted.sum(), (q, k, v))):
        torch.testing.assert_close(one, other)


def test_export_holds_the_operator() -> None:
    class Layer(torch.nn.Module):
        def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return faops.attention(q, k, v, causal=True)

    arguments = tuple(torch.randn(1, 9, 2, 8) for _ in range(3))
    program = torch.export.export(Layer(), arguments)
    assert any(node.target is ops.attention_op for node in program.graph.nodes)
    torch.testing.assert_close(program.module()(*arguments), faops.attention(*arguments, causal=True))


def test_autocast_casts_like_torch_does() -> None:
    q, k, v = (torch.randn(1, 9, 2, 8).requires_grad_() for _ in range(3))
    with torch.autocast("cpu", torch.bfloat16):
        out = faops.attention(q, k.bfloat16(), v, causal=True)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, faops.attention(q.bfloat16(), k.bfloat16(), v.bfloat16(), causal=True))
    gradients = torch.autograd.grad(out.sum(), (q, k, v))
    assert all(gradient.dtype == torch.float32 for gradient in gradients)
    with torch.autocast("cpu", torch.bfloat16):
        assert faops.attention(q.double(), k.double(), v.double()).dtype == torch.float64


def test_a_dispatch_mode_sees_the_operator() -> None:
    """A mode that watches sees one faops operator forward and one backward, not their inside."""
    seen: list[Any] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            seen.append(function)
            return function(*args, **(kwargs or {}))

    q, k, v = (torch.randn(1, 9, 2, 8).requires_grad_() for _ in range(3))
    with Watch():
        out = faops.attention(q, k, v)
        torch.autograd.grad(out, (q, k, v), torch.ones_like(out))
    assert ops.attention_op in seen
    assert ops.backward_op in seen
    assert torch.ops.aten.bmm.default not in seen


def test_calls_from_several_threads() -> None:
    """Each thread gets its own right result."""
    cases = [make_case("causal", "gqa", seqlen_q=20 + i, seqlen_k=30 - i) for i in range(8)]
    inputs = [make_inputs(case) for case in cases]
    alone = [run_faops(case, given)[0] for case, given in zip(cases, inputs)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda pair: run_faops(*pair)[0], zip(cases, inputs)))
    for one, other in zip(alone, together):
        assert torch.equal(one, other)
