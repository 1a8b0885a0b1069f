"""faops.attention forward against the oracle: every feature, dtype, size, layout and stride; empty and dead inputs."""

from __future__ import annotations

import math
import random

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import faops
from faops import reference, registry
from faops.inputs import AttentionInputs
from faops.registry import Config
from tests.support import DTYPES, FEATURES, SIZES, Case, check, make_case, make_inputs, random_mask, run_faops

pytestmark = pytest.mark.usefixtures("poisoned")

DENSE = [name for name in FEATURES if name not in ("varlen", "lse_grad")]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("feature", ["plain", *DENSE])
def test_feature_alone(feature: str, dtype: torch.dtype) -> None:
    features = [] if feature == "plain" else [feature]
    sizes = {"seqlen_q": random.choice(SIZES), "seqlen_k": random.choice(SIZES)}
    check(make_case(*features, dtype=dtype, **sizes), backward=False)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("feature", ["plain", *DENSE])
def test_feature_alone_over_many_tiles(feature: str) -> None:
    features = [] if feature == "plain" else [feature]
    case = make_case(
        *features, dtype=random.choice(DTYPES), seqlen_q=random.randint(60, 140), seqlen_k=random.randint(60, 140)
    )
    check(case, backend="torch.blockwise", backward=False)


@pytest.mark.parametrize("seqlen_k", SIZES)
@pytest.mark.parametrize("seqlen_q", SIZES)
def test_odd_sizes(seqlen_q: int, seqlen_k: int) -> None:
    features = random.choice([(), ("causal",), ("window",), ("causal", "alibi"), ("causal", "window_left")])
    case = make_case(
        *features, seqlen_q=seqlen_q, seqlen_k=seqlen_k, batch=1, heads_q=2, heads_kv=1, dtype=random.choice(DTYPES)
    )
    check(case, backend=random.choice([None, "torch.blockwise"]), backward=False)


@pytest.mark.parametrize("head_dim_v", [1, 40, 256, None])
@pytest.mark.parametrize("head_dim", [1, 8, 40, 64, 96, 256])
def test_head_dims(head_dim: int, head_dim_v: int | None) -> None:
    case = make_case("causal", head_dim=head_dim, head_dim_v=head_dim_v or head_dim, dtype=random.choice(DTYPES))
    check(case, backward=False)


@pytest.mark.parametrize(("heads_q", "heads_kv"), [(1, 1), (8, 8), (8, 4), (8, 1), (9, 3), (7, 7)])
def test_head_groups(heads_q: int, heads_kv: int) -> None:
    check(make_case(heads_q=heads_q, heads_kv=heads_kv, seqlen_q=random.choice([1, 17])), backward=False)


def test_query_heads_of_a_group_are_neighbours() -> None:
    """Query head h reads key/value head h // group."""
    q, k, v = torch.randn(1, 3, 6, 8), torch.randn(1, 5, 2, 8), torch.randn(1, 5, 2, 8)
    out = faops.attention(q, k, v)
    for h in range(6):
        alone = faops.attention(q[:, :, h : h + 1], k[:, :, h // 3 : h // 3 + 1], v[:, :, h // 3 : h // 3 + 1])
        torch.testing.assert_close(out[:, :, h : h + 1], alone)


def test_scale_default_is_of_the_true_head_dim() -> None:
    for head_dim in (3, 40, 65):
        q, k, v = (torch.randn(1, 9, 2, head_dim) for _ in range(3))
        torch.testing.assert_close(faops.attention(q, k, v), faops.attention(q, k, v, scale=head_dim**-0.5))


def test_zero_and_negative_scale() -> None:
    q, k, v = (torch.randn(1, 9, 2, 8) for _ in range(3))
    torch.testing.assert_close(faops.attention(q, k, v, scale=0.0), v.mean(1, keepdim=True).expand_as(q))
    torch.testing.assert_close(faops.attention(q, k, v, scale=-0.5), faops.attention(-q, k, v, scale=0.5))


def test_causal_is_bottom_right_aligned() -> None:
    q, k, v = torch.randn(1, 3, 1, 8), torch.randn(1, 5, 1, 8), torch.randn(1, 5, 1, 8)
    out = faops.attention(q, k, v, causal=True)
    for i in range(3):
        torch.testing.assert_close(out[:, i : i + 1], faops.attention(q[:, i : i + 1], k[:, : i + 3], v[:, : i + 3]))


def test_window_sides_are_inclusive() -> None:
    q, k, v = (torch.randn(1, 8, 1, 8) for _ in range(3))
    out = faops.attention(q, k, v, window=(2, 1))
    for i in range(8):
        seen = slice(max(0, i - 2), min(8, i + 2))
        torch.testing.assert_close(out[:, i : i + 1], faops.attention(q[:, i : i + 1], k[:, seen], v[:, seen]))
    assert torch.equal(faops.attention(q, k, v, window=(2, None)), faops.attention(q, k, v, window=(2, -1)))
    assert torch.equal(faops.attention(q, k, v, window=(2, 5), causal=True), faops.attention(q, k, v, window=(2, 0)))


def test_softcap_comes_before_bias() -> None:
    """A bias far above the cap keeps its effect."""
    q, k, v = (torch.randn(1, 4, 1, 8) for _ in range(3))
    bias = torch.zeros(1, 1, 1, 4)
    bias[..., 2] = 60.0
    torch.testing.assert_close(faops.attention(q, k, v, softcap=1.0, bias=bias), v[:, 2:3].expand_as(q))


def test_alibi_in_float32_survives_long_sequences() -> None:
    """A slope × distance that 16 bits cannot hold still tells neighbouring keys apart."""
    n = 3000
    q = torch.zeros(1, 1, 1, 8, dtype=torch.bfloat16)
    k, v = torch.zeros(1, n, 1, 8, dtype=torch.bfloat16), torch.randn(1, n, 1, 8).to(torch.bfloat16)
    _, lse = faops.attention(q, k, v, alibi_slopes=torch.tensor([1.0]), return_lse=True)
    assert float(lse) == pytest.approx(math.log(sum(math.exp(-d) for d in range(100))), abs=1e-5)
    out = faops.attention(
        q, k, v, alibi_slopes=torch.tensor([1.0]), bias=torch.arange(n).float().view(1, 1, 1, n) * -1.0
    )
    weights = torch.softmax(torch.full((n,), -float(n - 1)), 0)
    torch.testing.assert_close(out.float().flatten(), (weights @ v[0, :, 0].float()), atol=2e-3, rtol=0)


PATTERNS = [tuple(bool(number >> bit & 1) for bit in range(4)) for number in range(16)]


@pytest.mark.parametrize(
    "pattern", PATTERNS, ids=lambda pattern: "".join(c if on else "." for c, on in zip("bhmn", pattern))
)
@pytest.mark.parametrize("kind", ["bias", "mask"])
def test_bias_and_mask_broadcast(kind: str, pattern: tuple[bool, ...]) -> None:
    case = Case(features=(kind,), heads_q=4, heads_kv=2, dtype=random.choice(DTYPES))
    full = (case.batch, case.heads_q, case.seqlen_q, case.seqlen_k)
    shape = tuple(size if on else 1 for size, on in zip(full, pattern))
    case.options[kind] = torch.randn(shape).to(case.dtype) if kind == "bias" else random_mask(shape)
    check(case, backward=False)


@pytest.mark.parametrize("shape", [(65,), (33, 65), (33, 1), (4, 33, 65), (4, 1, 65)])
def test_bias_of_fewer_axes(shape: tuple[int, ...]) -> None:
    case = Case()
    q, k, v = (tensor.detach() for tensor in (make_inputs(case).leaves.values()))
    bias = torch.randn(shape)
    whole = bias[(None,) * (4 - bias.dim())]
    assert torch.equal(faops.attention(q, k, v, bias=bias), faops.attention(q, k, v, bias=whole))
    assert torch.equal(faops.attention(q, k, v, mask=bias > 0), faops.attention(q, k, v, mask=whole > 0))


def test_bias_in_float32_beside_16_bit_inputs() -> None:
    for dtype in (torch.float16, torch.bfloat16):
        case = Case(features=("float32 bias",), dtype=dtype)
        case.options["bias"] = torch.randn(1, 4, 33, 65)
        check(case)


def test_bias_with_minus_infinity_hides() -> None:
    q, k, v = (torch.randn(2, 20, 2, 8) for _ in range(3))
    mask = random_mask((2, 1, 20, 20))
    mask[0, 0, 3] = False
    hidden = torch.zeros(2, 1, 20, 20).masked_fill(~mask, -math.inf)
    by_mask, by_bias = (
        faops.attention(q, k, v, return_lse=True, **option) for option in ({"mask": mask}, {"bias": hidden})
    )
    assert torch.equal(by_mask[1] == -math.inf, by_bias[1] == -math.inf)
    torch.testing.assert_close(by_mask[0], by_bias[0])
    torch.testing.assert_close(by_mask[1], by_bias[1])


@pytest.mark.parametrize("return_lse", [False, True])
@pytest.mark.parametrize("backend", [None, "torch.blockwise"])
def test_rows_without_a_key(backend: str | None, return_lse: bool) -> None:
    """Through causal with M > N, a window beside the keys, and masks: out 0 and lse -inf, a sink notwithstanding."""
    q, k, v = torch.randn(2, 40, 2, 8), torch.randn(2, 24, 2, 8), torch.randn(2, 24, 2, 8)
    mask = torch.ones(2, 1, 1, 24, dtype=torch.bool)
    mask[1] = False
    calls = [
        ({"causal": True}, (slice(None), slice(0, 16))),
        ({"causal": True, "sinks": torch.randn(2)}, (slice(None), slice(0, 16))),
        ({"window": (-1, -1), "mask": mask}, (slice(1, 2), slice(None))),
        ({"mask": mask, "sinks": torch.randn(2)}, (slice(1, 2), slice(None))),
        ({"mask": mask, "causal": True, "alibi_slopes": torch.rand(2)}, (slice(1, 2), slice(None))),
        ({"mask": mask, "dropout_p": 0.3}, (slice(1, 2), slice(None))),
    ]
    for options, (batches, rows) in calls:
        result = faops.attention(q, k, v, return_lse=return_lse, backend=backend, **options)
        out, lse = result if return_lse else (result, None)
        assert torch.equal(out[batches, rows], torch.zeros_like(out[batches, rows])), options
        assert not out.isnan().any()
        if lse is not None:
            dead = lse[batches, :, rows]
            assert torch.equal(dead, torch.full_like(dead, -math.inf)), options


@pytest.mark.parametrize(
    "options",
    [{}, {"causal": True}, {"sinks": torch.ones(2)}, {"bias": torch.ones(1, 1, 1, 1)}, {"dropout_p": 0.5}],
    ids=str,
)
@pytest.mark.parametrize(("batch", "M", "N"), [(0, 3, 4), (2, 0, 4), (2, 3, 0), (2, 0, 0), (0, 0, 0)])
def test_empty_sizes(batch: int, M: int, N: int, options: dict[str, object]) -> None:
    q = torch.randn(batch, M, 2, 8).requires_grad_()
    k, v = torch.randn(batch, N, 1, 8).requires_grad_(), torch.randn(batch, N, 1, 6).requires_grad_()
    out, lse = faops.attention(q, k, v, return_lse=True, **options)
    assert out.shape == (batch, M, 2, 6)
    assert lse.shape == (batch, 2, M)
    assert torch.equal(out, torch.zeros_like(out))
    assert torch.equal(lse, torch.full_like(lse, -math.inf))
    for leaf, gradient in zip(
        (q, k, v), torch.autograd.grad((out, lse), (q, k, v), (torch.ones_like(out), torch.ones_like(lse)))
    ):
        assert torch.equal(gradient, torch.zeros_like(leaf))
    assert faops.attention(q.detach(), k.detach(), v.detach(), **options).shape == out.shape


def test_packed_qkv_views_give_the_same() -> None:
    qkv = torch.randn(2, 30, 3, 4, 16)
    views = qkv.unbind(2)
    copies = [view.contiguous() for view in views]
    assert not views[0].is_contiguous()
    for backend in (None, "torch.blockwise"):
        assert torch.equal(
            faops.attention(*views, causal=True, backend=backend),
            faops.attention(*copies, causal=True, backend=backend),
        )


def test_odd_strides_give_the_same() -> None:
    """Every second row, batch rows in between, heads reversed in memory, and a broadcast batch with stride 0."""
    wide = torch.randn(4, 40, 6, 32)
    q, k = wide[::2, ::2, 1:5, 8:24], wide[1::2, 1::2, ::2, 4:20][:, :, :2]
    v = torch.randn(1, 20, 2, 16).expand(2, -1, -1, -1)
    for options in ({}, {"causal": True}, {"softcap": 2.0}):
        expected = faops.attention(q.contiguous(), k.contiguous(), v.contiguous(), return_lse=True, **options)
        for found, wanted in zip(faops.attention(q, k, v, return_lse=True, **options), expected):
            assert torch.equal(found, wanted)


def test_bhsd_is_bshd_transposed() -> None:
    case = make_case("causal", "gqa")
    q, k, v = (tensor.detach() for tensor in make_inputs(case).leaves.values())
    out, lse = faops.attention(q, k, v, causal=True, return_lse=True)
    out_t, lse_t = faops.attention(
        *(x.transpose(1, 2).contiguous() for x in (q, k, v)), causal=True, return_lse=True, layout="bhsd"
    )
    torch.testing.assert_close(out_t, out.transpose(1, 2))
    torch.testing.assert_close(lse_t, lse)


@pytest.mark.parametrize("backend", [None, "torch.blockwise"])
def test_out_is_contiguous_and_inputs_are_untouched(backend: str | None) -> None:
    case = make_case("gqa", "causal", "bias", "mask", "sinks", "alibi", "softcap")
    inputs = make_inputs(case)
    kept = {name: leaf.detach().clone() for name, leaf in inputs.leaves.items()}
    out, lse = run_faops(case, inputs, backend)
    assert out.is_contiguous()
    assert lse.is_contiguous()
    for name, leaf in inputs.leaves.items():
        assert torch.equal(leaf, kept[name])


def test_same_call_twice_is_bitwise_the_same() -> None:
    case = make_case("gqa", "causal", "dropout", dtype=torch.bfloat16)
    inputs = make_inputs(case)
    for backend in (None, "torch.blockwise"):
        first, second = (run_faops(case, inputs, backend, seed=5) for _ in range(2))
        assert torch.equal(first[0], second[0])
        assert torch.equal(first[1], second[1])


def test_dropout_draws_anew_from_the_generator() -> None:
    q, k, v = (torch.randn(1, 16, 2, 8) for _ in range(3))
    generator = torch.Generator().manual_seed(1)
    one, two = (faops.attention(q, k, v, dropout_p=0.5, generator=generator) for _ in range(2))
    assert not torch.equal(one, two)
    assert torch.equal(one, faops.attention(q, k, v, dropout_p=0.5, generator=torch.Generator().manual_seed(1)))
    torch.manual_seed(3)
    three = faops.attention(q, k, v, dropout_p=0.5)
    torch.manual_seed(3)
    assert torch.equal(three, faops.attention(q, k, v, dropout_p=0.5))


def test_dropout_keeps_the_mean() -> None:
    """The average over many masks comes near the result without dropout."""
    q, k, v = (torch.randn(1, 4, 2, 8) for _ in range(3))
    runs = 600
    total = torch.stack([faops.attention(q, k, v, dropout_p=0.3) for _ in range(runs)])
    error = (total.mean(0) - faops.attention(q, k, v)).abs()
    assert (error <= 6 * total.std(0) / math.sqrt(runs) + 1e-6).all()


@pytest.mark.usefixtures("small_tiles")
def test_dropout_mask_does_not_depend_on_the_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    case = make_case("gqa", "dropout", "causal", dtype=torch.float64, seqlen_q=70, seqlen_k=90)
    inputs = make_inputs(case)
    results = []
    for sizes in (
        {"block_q": 16, "block_k": 32, "block_h": 1},
        {"block_q": 7, "block_k": 5, "block_h": 3},
        {"block_q": 128, "block_k": 128, "block_h": 8},
    ):
        kernel = registry.get("torch.blockwise_forward")
        monkeypatch.setattr(
            kernel, "default_config", lambda problem, device, sizes=sizes: Config({**sizes, "threads": 0})
        )
        faops.dispatch.forget()
        results.append(run_faops(case, inputs, "torch.blockwise", seed=9)[0])
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], rtol=1e-12, atol=1e-12)


class LargestTensor(TorchDispatchMode):
    """Records the size of the largest storage that any operation inside returns."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.elements = max(self.elements, leaf.untyped_storage().nbytes() // leaf.element_size())
        return result


@pytest.mark.parametrize("feature", ["plain", "causal", "window", "alibi", "bias", "mask", "softcap"])
def test_memory_is_linear_and_keys_are_not_expanded(feature: str) -> None:
    """No intermediate of the blockwise forward is larger than a tile or an input, whatever the feature."""
    M = N = 512
    heads, kv_heads, D = 8, 1, 8
    q, k, v = torch.randn(1, M, heads, D), torch.randn(1, N, kv_heads, D), torch.randn(1, N, kv_heads, D)
    kernel = registry.get("torch.blockwise_forward")
    assert kernel is not None
    inputs = AttentionInputs(
        q=q, k=k, v=v,
        alibi_slopes=torch.rand(heads) if feature == "alibi" else None,
        bias=torch.randn(1, 1, 1, N) if feature == "bias" else None,
        mask=torch.rand(1, 1, 1, N) < 0.9 if feature == "mask" else None,
        sinks=None, cu_seqlens_q=None, cu_seqlens_k=None, rng=None, max_seqlen_q=M, max_seqlen_k=N,
        window_left=100 if feature == "window" else -1, window_right=0 if feature == "causal" else -1,
        scale=0.3, softcap=2.0 if feature == "softcap" else 0.0, dropout_p=0.0, deterministic=False, need_lse=True,
        backend="",
    )  # fmt: skip
    tile = 64 * 64 * heads
    with LargestTensor() as seen:
        out, _ = kernel.launch(inputs, Config(block_q=64, block_k=64, block_h=1, threads=0))
    assert seen.elements <= max(q.numel(), tile)
    options = {
        "causal": feature == "causal",
        "window": (inputs.window_left, inputs.window_right),
        "softcap": inputs.softcap,
    }
    exact, _ = reference.attention(
        q, k, v, scale=0.3, alibi_slopes=inputs.alibi_slopes, bias=inputs.bias, mask=inputs.mask, **options
    )
    torch.testing.assert_close(out.double(), exact, rtol=1e-4, atol=1e-5)
