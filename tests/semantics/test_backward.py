"""Gradients of faops.attention against autograd through the oracle."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import faops
from tests.support import DTYPES, FEATURES, Case, check, gradients, make_case, make_inputs, run_faops

pytestmark = pytest.mark.usefixtures("poisoned")

DENSE = [name for name in FEATURES if name != "varlen"]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("feature", ["plain", *DENSE])
def test_feature_alone(feature: str, dtype: torch.dtype) -> None:
    features = [] if feature == "plain" else [feature]
    check(make_case(*features, dtype=dtype, seqlen_q=random.choice([33, 63, 65]), seqlen_k=random.choice([33, 63, 65])))


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("feature", ["plain", *DENSE])
def test_feature_alone_over_many_tiles(feature: str) -> None:
    features = [] if feature == "plain" else [feature]
    sizes = {"seqlen_q": random.randint(60, 140), "seqlen_k": random.randint(60, 140)}
    check(make_case(*features, dtype=random.choice(DTYPES), **sizes), backend="torch.blockwise")


@pytest.mark.parametrize("scale", [-0.3, 0.0])
@pytest.mark.parametrize("feature", ["gqa", "bhsd"])
def test_scales_that_are_not_above_zero(feature: str, scale: float) -> None:
    """PyTorch's own kernel hides causal pairs by -inf before it scales them."""
    case = make_case("causal", feature, seqlen_q=33, seqlen_k=33)
    case.options["scale"] = scale
    for backend in (None, "torch.blockwise"):
        check(case, backend=backend)
    inputs = make_inputs(case)
    with torch.no_grad():  # another way into that kernel
        torch.testing.assert_close(run_faops(case, inputs)[0], run_faops(case, inputs, "torch.blockwise")[0])
        options = {"causal": True, "scale": scale, "layout": case.layout}
        out = faops.attention(inputs.q, inputs.k, inputs.v, **options)
        torch.testing.assert_close(out, run_faops(case, inputs, "torch.blockwise")[0])


@pytest.mark.parametrize("backend", [None, "torch.blockwise"])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("seqlen_q", "seqlen_k"), [(1, 1), (1, 129), (129, 1), (127, 127), (65, 257), (257, 63)])
def test_odd_sizes(seqlen_q: int, seqlen_k: int, causal: bool, backend: str | None) -> None:
    features = ("causal",) if causal else ()
    check(make_case(*features, seqlen_q=seqlen_q, seqlen_k=seqlen_k, dtype=random.choice(DTYPES)), backend=backend)


@pytest.mark.parametrize("backend", [None, "torch.blockwise"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_square_causal(dtype: torch.dtype, backend: str | None) -> None:
    check(make_case("causal", "gqa", dtype=dtype, seqlen_q=130, seqlen_k=130), backend=backend)


@pytest.mark.parametrize("head_dim_v", [1, 256, None])
@pytest.mark.parametrize("head_dim", [1, 8, 64, 96, 256])
def test_head_dims(head_dim: int, head_dim_v: int | None) -> None:
    check(make_case("causal", head_dim=head_dim, head_dim_v=head_dim_v or head_dim, dtype=random.choice(DTYPES)))


PATTERNS = [tuple(bool(number >> bit & 1) for bit in range(4)) for number in range(16)]


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize(
    "pattern", PATTERNS, ids=lambda pattern: "".join(c if on else "." for c, on in zip("bhmn", pattern))
)
def test_bias_gradient_of_every_broadcast_pattern(pattern: tuple[bool, ...]) -> None:
    case = make_case("causal", heads_q=4, heads_kv=2, dtype=random.choice(DTYPES))
    full = (case.batch, case.heads_q, case.seqlen_q, case.seqlen_k)
    shape = tuple(size if on else 1 for size, on in zip(full, pattern))
    case.options["bias"] = torch.randn(shape).to(case.dtype)
    check(case, backend=random.choice([None, "torch.blockwise"]))


@pytest.mark.parametrize("shape", [(65,), (33, 65), (4, 33, 1)])
def test_bias_gradient_has_the_shape_of_the_bias(shape: tuple[int, ...]) -> None:
    q, k, v = torch.randn(2, 33, 4, 8), torch.randn(2, 65, 4, 8), torch.randn(2, 65, 4, 8)
    bias = torch.randn(shape).requires_grad_()
    whole = bias.detach()[(None,) * (4 - bias.dim())].clone().requires_grad_()
    weights = torch.randn(2, 33, 4, 8)
    (found,) = torch.autograd.grad((faops.attention(q, k, v, bias=bias) * weights).sum(), [bias])
    (wanted,) = torch.autograd.grad((faops.attention(q, k, v, bias=whole) * weights).sum(), [whole])
    assert found.shape == bias.shape
    assert torch.equal(found, wanted.view(shape))


def test_expanded_bias_gets_the_summed_gradient() -> None:
    q, k, v = (torch.randn(2, 9, 2, 8) for _ in range(3))
    bias = torch.randn(1, 1, 9, 9).requires_grad_()
    (expanded,) = torch.autograd.grad(faops.attention(q, k, v, bias=bias.expand(2, 2, 9, 9)).square().sum(), [bias])
    (direct,) = torch.autograd.grad(faops.attention(q, k, v, bias=bias).square().sum(), [bias])
    torch.testing.assert_close(expanded, direct)


def test_sinks_in_float32_beside_16_bit_inputs() -> None:
    case = Case(features=("float32 sinks",), dtype=torch.bfloat16)
    case.options["sinks"] = torch.randn(4)
    check(case)


@pytest.mark.parametrize("wanted", [("q",), ("k",), ("v",), ("k", "v"), ("bias",), ("sinks",), ("q", "sinks")])
def test_only_wanted_gradients_are_computed_and_equal(wanted: tuple[str, ...]) -> None:
    case = make_case("bias", "sinks", "causal")
    inputs = make_inputs(case)
    out, lse = run_faops(case, inputs)
    dout = torch.randn_like(out)
    everything = gradients(inputs, out, lse, dout, None)
    for name, leaf in inputs.leaves.items():
        leaf.requires_grad_(name in wanted)
    out, _ = run_faops(case, inputs)
    found = torch.autograd.grad(out, [inputs.leaves[name] for name in wanted], dout)
    for name, gradient in zip(wanted, found):
        torch.testing.assert_close(gradient, everything[name])


def test_gradient_through_lse_alone() -> None:
    """d lse / d q = scale · sum of p k, without any gradient through out."""
    q, k, v = (torch.randn(2, 20, 2, 8).double().requires_grad_() for _ in range(3))
    _, lse = faops.attention(q, k, v, return_lse=True, scale=0.5)
    dq, dv = torch.autograd.grad(lse.sum(), [q, v])
    p = torch.softmax(torch.einsum("bihd,bjhd->bhij", q, k) * 0.5, -1)
    torch.testing.assert_close(dq, 0.5 * torch.einsum("bhij,bjhd->bihd", p, k))
    assert torch.equal(dv, torch.zeros_like(v))


def test_gradcheck() -> None:
    """Numerical differentiation, which needs no oracle."""
    q, k, v = (torch.randn(1, n, 2, 3).double().requires_grad_() for n in (5, 6, 6))
    bias, sinks = torch.randn(1, 1, 5, 6).double().requires_grad_(), torch.randn(2).double().requires_grad_()
    slopes = torch.rand(2)

    def call(*leaves: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        q, k, v, bias, sinks = leaves
        return faops.attention(
            q, k, v, bias=bias, sinks=sinks, causal=True, softcap=2.0, alibi_slopes=slopes, return_lse=True
        )

    assert torch.autograd.gradcheck(call, (q, k, v, bias, sinks))


@pytest.mark.parametrize("backend", [None, "torch.blockwise"])
def test_dead_rows_give_zero_gradients(backend: str | None) -> None:
    q, k, v = torch.randn(2, 40, 2, 8), torch.randn(2, 24, 2, 8), torch.randn(2, 24, 2, 8)
    sinks = torch.randn(2).requires_grad_()
    mask = torch.rand(2, 1, 40, 24) < 0.8
    mask[1] = False
    leaves = [tensor.requires_grad_() for tensor in (q, k, v)]
    out, lse = faops.attention(q, k, v, causal=True, mask=mask, sinks=sinks, return_lse=True, backend=backend)
    found = torch.autograd.grad((out, lse), [*leaves, sinks], (torch.randn_like(out), torch.randn_like(lse)))
    dq, dk, dv, dsinks = found
    assert all(gradient.isfinite().all() for gradient in found)
    assert torch.equal(dq[:, :16], torch.zeros_like(dq[:, :16]))
    for gradient in (dq, dk, dv):
        assert torch.equal(gradient[1], torch.zeros_like(gradient[1]))
    assert (dsinks != 0).all()


@pytest.mark.parametrize("backend", [None, "torch.blockwise"])
def test_dead_rows_add_nothing_to_the_gradients_that_rows_share(backend: str | None) -> None:
    """Half of the rows are dead, and a gradient comes in through their lse as well."""
    case = make_case("causal", "sinks", "bias", "gqa", "lse_grad", dtype=torch.float64, seqlen_q=40, seqlen_k=20)
    case.options["bias"] = torch.randn(1, 1, 1, 20).double()
    check(case, backend=backend)


def test_only_dead_rows_leave_sink_and_bias_without_gradient() -> None:
    q, k, v = (torch.randn(2, 9, 2, 8) for _ in range(3))
    sinks, bias = torch.randn(2).requires_grad_(), torch.randn(1, 2, 1, 9).requires_grad_()
    nothing = torch.zeros(1, 1, 1, 9, dtype=torch.bool)
    out, lse = faops.attention(q, k, v, sinks=sinks, bias=bias, mask=nothing, return_lse=True)
    for gradient in torch.autograd.grad((out, lse), (sinks, bias), (torch.randn_like(out), torch.randn_like(lse))):
        assert torch.equal(gradient, torch.zeros_like(gradient))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_deterministic_twice_is_bitwise_the_same(dtype: torch.dtype) -> None:
    case = make_case("gqa", "causal", "bias", "sinks", "dropout", "lse_grad", "deterministic", dtype=dtype)
    inputs = make_inputs(case)
    results = []
    for _ in range(2):
        out, lse = run_faops(case, inputs, seed=3)
        torch.manual_seed(0)
        results.append(gradients(inputs, out, lse, torch.randn_like(out), torch.randn_like(lse)))
    for name, gradient in results[0].items():
        assert torch.equal(gradient, results[1][name]), name


def test_gradient_arrives_with_any_strides() -> None:
    """sum() sends an expanded gradient, a transpose a strided one."""
    case = make_case("gqa", "causal")
    inputs = make_inputs(case)
    leaves = list(inputs.leaves.values())
    out, _ = run_faops(case, inputs)
    ones = torch.autograd.grad(out, leaves, torch.ones_like(out), retain_graph=True)
    for found, wanted in zip(torch.autograd.grad(out.sum(), leaves, retain_graph=True), ones):
        torch.testing.assert_close(found, wanted)
    weights = torch.randn(*reversed(out.shape))
    strided = torch.autograd.grad((out.permute(3, 2, 1, 0) * weights).sum(), leaves, retain_graph=True)
    dense = torch.autograd.grad(out, leaves, weights.permute(3, 2, 1, 0).contiguous())
    for found, wanted in zip(strided, dense):
        torch.testing.assert_close(found, wanted)


def test_views_of_a_packed_tensor_get_their_gradients() -> None:
    qkv = torch.randn(2, 30, 3, 4, 16).requires_grad_()
    copies = [view.detach().contiguous().requires_grad_() for view in qkv.unbind(2)]
    weights = torch.randn(2, 30, 4, 16)
    (found,) = torch.autograd.grad((faops.attention(*qkv.unbind(2), causal=True) * weights).sum(), [qkv])
    wanted = torch.autograd.grad((faops.attention(*copies, causal=True) * weights).sum(), copies)
    torch.testing.assert_close(found, torch.stack(wanted, 2))


def test_any_forward_suits_any_backward() -> None:
    """(out, lse) of SDPA and of the blockwise kernel agree, and so do the gradients whichever made them."""
    q, k, v = (torch.randn(2, 70, 4, 16).requires_grad_() for _ in range(3))
    weights = torch.randn(2, 70, 4, 16)
    results = []
    for backend in ("torch.sdpa", "torch.blockwise"):
        out, lse = faops.attention(q, k, v, causal=True, return_lse=True, backend=backend)
        results.append((out, lse, *torch.autograd.grad((out * weights).sum(), (q, k, v))))
    for one, other in zip(*results):
        torch.testing.assert_close(one, other)


def test_second_derivatives_are_refused_not_wrong() -> None:
    q, k, v = (torch.randn(1, 4, 1, 8).requires_grad_() for _ in range(3))
    (dq,) = torch.autograd.grad(faops.attention(q, k, v).square().sum(), [q], create_graph=True)
    with pytest.raises(RuntimeError):
        torch.autograd.grad(dq.sum(), [q])


def test_no_grad_and_inference_mode() -> None:
    q, k, v = (torch.randn(1, 4, 1, 8).requires_grad_() for _ in range(3))
    with torch.no_grad():
        assert not faops.attention(q, k, v).requires_grad
    with torch.inference_mode():
        inferred = faops.attention(q, k, v)
    torch.testing.assert_close(inferred.clone(), faops.attention(q, k, v).detach())


def test_activation_checkpointing_redraws_the_same_dropout() -> None:
    q, k, v = (torch.randn(1, 20, 2, 8).requires_grad_() for _ in range(3))
    weights = torch.randn(1, 20, 2, 8)

    def loss(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return (faops.attention(q, k, v, dropout_p=0.4) * weights).sum()

    torch.manual_seed(7)
    plain = torch.autograd.grad(loss(q, k, v), (q, k, v))
    torch.manual_seed(7)
    saved = torch.autograd.grad(checkpoint(loss, q, k, v, use_reentrant=False), (q, k, v))
    for one, other in zip(plain, saved):
        assert torch.equal(one, other)


REUSE: dict[str, dict[str, Any]] = {
    "causal": {"causal": True},
    "left": {"window": (5, -1)},
    "right": {"window": (-1, 5)},
    "softcap": {"softcap": 1.0},
    "alibi": {"alibi_slopes": torch.ones(2)},
    "bias": {"bias": torch.ones(1, 1, 20, 24).triu()},
    "mask": {"mask": torch.ones(1, 1, 20, 24, dtype=torch.bool).tril()},
    "sinks": {"sinks": torch.ones(2)},
    "dropout": {"dropout_p": 0.5},
    "lse": {"scale": 0.2},
}


@pytest.mark.parametrize("name", list(REUSE))
def test_a_plan_is_not_reused_for_another_call(name: str) -> None:
    """A call planned right after a plain one of the same shapes is planned for what it asks itself."""
    q, k, v = (torch.randn(1, n, 2, 8).requires_grad_() for n in (20, 24, 24))
    weights, lse_weights = torch.randn(1, 20, 2, 8), torch.randn(1, 2, 20)

    def run(backend: str | None, **options: Any) -> tuple[torch.Tensor, ...]:
        generator = torch.Generator().manual_seed(1)
        out, lse = faops.attention(q, k, v, return_lse=True, backend=backend, generator=generator, **options)
        loss = (out * weights).sum()
        if name == "lse" and options:
            loss = loss + (lse * lse_weights).sum()
        return (out, lse, *torch.autograd.grad(loss, (q, k, v)))

    run(None)
    for found, wanted in zip(run(None, **REUSE[name]), run("torch.blockwise", **REUSE[name])):
        torch.testing.assert_close(found, wanted)
