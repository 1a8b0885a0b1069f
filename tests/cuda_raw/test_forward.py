"""The raw CUDA forward kernels in the emulator against the oracle: features, sizes, head dims, strides, dead rows."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
import torch
from torch import Tensor

import faops
from faops import reference
from faops.api import _draw_rng
from faops.errors import NoKernelError
from tests import edges
from tests.cuda_raw.support import (
    BACKEND,
    BFLOAT,
    HALF,
    KERNELS,
    TYPED_CARDS,
    check_on,
    emulated,
    rotate,
)
from tests.support import FORWARD, SIZES, Case, make_case, make_inputs, random_mask, run_faops, run_reference

pytestmark = pytest.mark.usefixtures("poisoned", "emulator_here")

typed_cards = pytest.mark.parametrize(("card", "dtype"), TYPED_CARDS, ids=str)
each_card = pytest.mark.parametrize("card", KERNELS)
one_card = pytest.mark.parametrize("card", [pytest.param("t4", marks=pytest.mark.full), "a100"])  # in the short run


@rotate(["plain", *(name for name in FORWARD if name != "varlen")], "feature")
def test_feature_alone(card: str, dtype: torch.dtype, feature: str) -> None:
    sizes = {"seqlen_q": random.choice(SIZES), "seqlen_k": random.choice(SIZES), "head_dim": 64, "head_dim_v": 64}
    features = [] if feature == "plain" else [feature]
    check_on(card, make_case(*features, dtype=dtype, **sizes))


@each_card
@pytest.mark.parametrize("seqlen_q", SIZES)
def test_odd_sizes(card: str, seqlen_q: int) -> None:
    """More rows than keys under causal leave dead rows, on every side of a tile's edge."""
    for seqlen_k in SIZES:
        shape = {"batch": 1, "heads_q": 1, "heads_kv": 1, "head_dim": 16, "head_dim_v": 16}
        check_on(card, make_case("causal", dtype=HALF, seqlen_q=seqlen_q, seqlen_k=seqlen_k, **shape))


HEAD_DIMS = [(1, 8), (8, 1), (16, 33), (33, 16), (40, 63), (63, 40), (64, 65), (65, 64), (80, 96), (96, 80),
             (127, 128), (128, 127), (129, 192), (192, 256), (256, 129)]  # fmt: skip


@rotate(HEAD_DIMS, "dims")
def test_head_dims(card: str, dtype: torch.dtype, dims: tuple[int, int]) -> None:
    shape = {"batch": 1, "heads_q": 2, "heads_kv": 1, "seqlen_q": 70, "seqlen_k": 100}
    check_on(card, make_case("gqa", dtype=dtype, head_dim=dims[0], head_dim_v=dims[1], **shape))


@pytest.mark.full
@typed_cards
@pytest.mark.parametrize("dim", sorted({dim for dims in HEAD_DIMS for dim in dims}))
def test_equal_head_dims(card: str, dtype: torch.dtype, dim: int) -> None:
    check_on(card, make_case("causal", dtype=dtype, head_dim=dim, head_dim_v=dim, seqlen_q=130, seqlen_k=200))


# ---------------------------------------------------------------------------------------------- bias and mask

PATTERNS = [tuple(bool(number >> bit & 1) for bit in range(4)) for number in range(16)]


def patterned(pattern: tuple[bool, ...], keys: int, dtype: torch.dtype) -> tuple[Case, tuple[int, ...]]:
    """A small case with ``keys`` keys, and (batch, heads, rows, keys) with 1 for what is broadcast."""
    case = Case(features=("pattern", str(pattern)), dtype=dtype, heads_kv=2, seqlen_k=keys, head_dim=16, head_dim_v=16)
    full = (case.batch, case.heads_q, case.seqlen_q, case.seqlen_k)
    return case, tuple(size if on else 1 for size, on in zip(full, pattern))


@rotate(["same", "float32", "other"], "kind", TYPED_CARDS[:2])
@pytest.mark.parametrize("keys", [66, 65])
def test_bias_of_every_pattern_and_dtype(card: str, dtype: torch.dtype, kind: str, keys: int) -> None:
    """An odd number of keys keeps the rows from being read in pairs."""
    bias_dtype = {"same": dtype, "float32": torch.float32, "other": BFLOAT if dtype == HALF else HALF}[kind]
    for pattern in PATTERNS:
        case, shape = patterned(pattern, keys, dtype)
        case.options["bias"] = torch.randn(shape).to(bias_dtype)
        check_on(card, case)


@one_card
def test_bias_of_any_stride(card: str) -> None:
    """Keys far apart, rows reversed in role, a view that starts at an odd place, an expanded one."""
    case = Case(features=("strided bias",), dtype=HALF, head_dim=16, head_dim_v=16, seqlen_k=66)
    full = (case.batch, case.heads_q, case.seqlen_q, case.seqlen_k)
    wide = torch.randn(*full[:-1], 140).half()
    for bias in (
        wide.mT[:, :, 5 : 5 + case.seqlen_k, : case.seqlen_q].mT,
        torch.randn(*full[:2], case.seqlen_k, case.seqlen_q).half().mT,
        wide[..., 1 : 1 + case.seqlen_k],
        wide[..., ::2][..., : case.seqlen_k],
        wide[:1, :, :1, : case.seqlen_k].expand(full),
    ):
        case.options["bias"] = bias
        with emulated(card):
            check_without_leaves(case)


def check_without_leaves(case: Case) -> None:
    """Like :func:`tests.support.check`, with the options' tensors as they are: copies would lose their strides."""
    inputs = make_inputs(case)
    inputs.options.update(case.options)
    out, lse = run_faops(case, inputs, BACKEND)
    exact, exact_lse = run_reference(case, inputs, torch.float64)
    torch.testing.assert_close(out.double(), exact, atol=2e-3, rtol=2e-3)
    torch.testing.assert_close(lse.double(), exact_lse, atol=1e-5, rtol=1e-5)


@one_card
def test_mask_of_every_pattern(card: str) -> None:
    for pattern in PATTERNS:
        case, shape = patterned(pattern, 65, HALF)
        case.options["mask"] = random_mask(shape)
        check_on(card, case)


@each_card
def test_bias_with_minus_infinity_hides(card: str) -> None:
    q, k, v = (torch.randn(2, 70, 2, 16).half() for _ in range(3))
    mask = random_mask((2, 1, 70, 70))
    mask[0, 0, 3] = False
    hidden = torch.zeros(2, 1, 70, 70).masked_fill(~mask, -math.inf)
    with emulated(card):
        by_mask, by_bias = (
            faops.attention(q, k, v, return_lse=True, backend=BACKEND, **option)
            for option in ({"mask": mask}, {"bias": hidden})
        )
    assert torch.equal(by_mask[1] == -math.inf, by_bias[1] == -math.inf)
    assert (by_mask[1] == -math.inf).any()
    torch.testing.assert_close(by_mask[0], by_bias[0], atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(by_mask[1], by_bias[1])


# ---------------------------------------------------------------------------------------------- values at the edge


@pytest.mark.parametrize(("card", "return_lse"), [
    ("t4", False), ("a100", True),
    pytest.param("t4", True, marks=pytest.mark.full), pytest.param("a100", False, marks=pytest.mark.full),
])  # fmt: skip
def test_rows_without_a_key(card: str, return_lse: bool) -> None:
    with emulated(card):
        edges.check_rows_without_a_key(BACKEND, 70, return_lse)


@one_card
@pytest.mark.parametrize("options", edges.EMPTY_OPTIONS, ids=str)
def test_empty_sizes(card: str, options: dict[str, Any]) -> None:
    with emulated(card):
        edges.check_empty_sizes(BACKEND, options)


@typed_cards
def test_large_logits(card: str, dtype: torch.dtype) -> None:
    """Logits of ± 10 000: nothing overflows, and the largest ones decide as in the oracle."""
    q, k, v = (torch.randn(1, 70, 2, 64).to(dtype) for _ in range(3))
    q, k = q * 36, k * 36
    with emulated(card):
        out, lse = faops.attention(q, k, v, scale=1.0, return_lse=True, backend=BACKEND)
    exact, exact_lse = reference.attention(q, k, v, scale=1.0)
    assert 1e4 < float(exact_lse.abs().max()) < 1e5
    torch.testing.assert_close(lse.double(), exact_lse, rtol=1e-6, atol=0)
    torch.testing.assert_close(out.double(), exact, rtol=0, atol=0.05)


@one_card
def test_maxima_that_rise_from_block_to_block(card: str) -> None:
    """Kernels walk from the last key to the first. One head's logits rise hardly on the way, another's by 300 a block,
    and others' by about as much as may pass before the sums are rescaled; one falls.
    """
    slopes = torch.tensor([0.01, 0.05, 0.08, 0.09, 0.1, 0.2, 1.0, 5.0, -0.09])
    heads = len(slopes)
    shape = {"batch": 1, "heads_q": heads, "heads_kv": heads, "seqlen_q": 20, "seqlen_k": 400}
    case = Case(features=("rising bias",), dtype=HALF, head_dim=16, head_dim_v=16, **shape)
    case.options["bias"] = (-slopes[:, None] * torch.arange(400))[None, :, None]
    check_on(card, case)


@each_card
@pytest.mark.parametrize("scale", [0.0, -0.5])
def test_scale_that_is_not_positive(card: str, scale: float) -> None:
    case = make_case("causal", dtype=HALF, head_dim=16, head_dim_v=16, seqlen_q=70, seqlen_k=140)
    case.options["scale"] = scale
    check_on(card, case)


@one_card
def test_without_lse_the_result_is_the_same(card: str) -> None:
    case = make_case("sinks", dtype=HALF, head_dim=16, head_dim_v=16)
    inputs = make_inputs(case)
    q, k, v = (tensor.detach() for tensor in (inputs.q, inputs.k, inputs.v))
    options = {name: value.detach() if isinstance(value, Tensor) else value for name, value in inputs.options.items()}
    with emulated(card) as launches:
        alone = faops.attention(q, k, v, backend=BACKEND, **options)
        both, _ = faops.attention(q, k, v, backend=BACKEND, return_lse=True, **options)
    assert [launch.constant("LSE") for launch in launches] == ["false", "true"]
    assert torch.equal(alone, both)


@each_card
def test_dropout_drops_what_the_oracle_drops(card: str) -> None:
    """Values that are the identity show the probabilities themselves."""
    q, k = torch.randn(2, 70, 2, 16).half(), torch.randn(2, 64, 2, 16).half()
    v = torch.eye(64).half()[None, :, None].expand(2, -1, 2, -1)
    for probability in (0.02, 0.5, 0.95):
        with emulated(card):
            out = faops.attention(
                q, k, v, scale=0.01, dropout_p=probability, backend=BACKEND, generator=torch.Generator().manual_seed(1)
            )
        rng = _draw_rng(torch.Generator().manual_seed(1), q.device)
        exact, _ = reference.attention(q, k, v, scale=0.01, dropout_p=probability, rng=rng)
        assert torch.equal(out == 0, exact == 0)
        assert float((out == 0).float().mean()) == pytest.approx(probability, abs=0.02)


# ---------------------------------------------------------------------------------------------- strides


@pytest.mark.parametrize(
    ("card", "bytes_"),
    [("t4", 8), ("t4", 2), ("a100", 16), ("a100", 4)]
    + [pytest.param(*one, marks=pytest.mark.full) for one in (("t4", 16), ("t4", 4), ("a100", 8), ("a100", 2))],
)
def test_views_of_packed_tensors(card: str, bytes_: int) -> None:
    """q, k and v inside one tensor, ``bytes_`` being all that their addresses have in common."""
    packed = torch.randn(2, 70, 3, 2, 24 + bytes_ // 2).half()
    q, k, v = packed[..., bytes_ // 2 if bytes_ < 16 else 0 :][..., :24].unbind(2)
    assert not q.is_contiguous()
    with emulated(card) as launches:
        out, lse = faops.attention(q, k, v, causal=True, return_lse=True, backend=BACKEND)
    assert launches[0].constant("COPY_BYTES") == str(bytes_)
    exact, exact_lse = reference.attention(q, k, v, causal=True)
    torch.testing.assert_close(out.double(), exact, atol=2e-3, rtol=2e-3)
    torch.testing.assert_close(lse.double(), exact_lse, atol=1e-5, rtol=1e-5)


@each_card
def test_odd_strides_give_the_same(card: str) -> None:
    """Every second row, batch rows in between, heads apart in memory, and a broadcast batch with stride 0."""
    wide = torch.randn(4, 40, 6, 32).half()
    q, k = wide[::2, ::2, 1:5, 8:24], wide[1::2, 1::2, ::2, 8:24][:, :, :2]
    v = torch.randn(1, 20, 2, 16).half().expand(2, -1, -1, -1)
    with emulated(card):
        for options in ({}, {"causal": True}):
            results = [
                faops.attention(*tensors, return_lse=True, backend=BACKEND, **options)
                for tensors in ((q, k, v), (q.contiguous(), k.contiguous(), v.contiguous()))
            ]
            assert torch.equal(results[0][0], results[1][0])
            assert torch.equal(results[0][1], results[1][1])


# ---------------------------------------------------------------------------------------------- other backends


@typed_cards
@pytest.mark.parametrize("features", [("gqa", "causal"), ("bias", "sinks", "dropout", "lse_grad")], ids="+".join)
def test_gradients_through_another_backend(card: str, dtype: torch.dtype, features: tuple[str, ...]) -> None:
    """Backward comes from a kernel that can, and starts from the emulated forward's out and lse."""
    check_on(card, make_case(*features, dtype=dtype, head_dim=16, head_dim_v=16), backward=True)


def tensors(dtype: torch.dtype, head_dim: int = 16) -> list[Tensor]:
    return [torch.randn(1, 8, 1, head_dim).to(dtype) for _ in range(3)]


@pytest.mark.parametrize(
    ("card", "dtype", "reason"),
    [
        ("a100", torch.float32, "tf32"),
        ("t4", torch.float32, "tf32"),
        ("a100", torch.float64, "not in float64"),
        ("t4", BFLOAT, "Turing multiplies no bfloat16"),
        ("t4", HALF, ""),
        ("a100", BFLOAT, ""),
    ],
    ids=str,
)
def test_dtypes_it_refuses_fall_back(card: str, dtype: torch.dtype, reason: str) -> None:
    q, k, v = tensors(dtype)
    with emulated(card) as launches:
        if reason:
            with pytest.raises(NoKernelError) as caught:
                faops.attention(q, k, v, backend=BACKEND)
            assert reason in "; ".join(caught.value.rejections[KERNELS[card]])
            out = faops.attention(q, k, v)
            assert not launches
        else:
            out = faops.attention(q, k, v, backend=BACKEND)
            assert len(launches) == 1
    torch.testing.assert_close(out.double(), reference.attention(q, k, v)[0], atol=2e-2, rtol=2e-2)


@each_card
def test_fp8_is_refused(card: str) -> None:
    q, k, v = (tensor.to(torch.float8_e4m3fn) for tensor in tensors(torch.float32))
    with emulated(card), pytest.raises(NoKernelError) as caught:
        faops.attention(q, k, v, backend=BACKEND)
    assert "not in float8_e4m3fn" in "; ".join(caught.value.rejections[KERNELS[card]])


@each_card
def test_the_other_family_s_devices_are_refused(card: str) -> None:
    (other,) = set(KERNELS) - {card}
    q, k, v = tensors(HALF)
    with emulated(other) as launches:
        faops.attention(q, k, v, backend=KERNELS[other])
        with pytest.raises(NoKernelError) as caught:
            faops.attention(q, k, v, backend=KERNELS[card])
    assert len(launches) == 1
    assert ("sm_80" if card == "t4" else "sm_75") in "; ".join(caught.value.rejections[KERNELS[card]])


@each_card
def test_a_cache_call_is_not_its_own(card: str) -> None:
    """It goes to the family's kernel for a KV cache."""
    q, k, v = tensors(HALF)
    with emulated(card) as launches:
        out = faops.attention_with_kvcache(q, k, v, cache_seqlens=8, backend=BACKEND)
        assert {launch.kernel.source.entry for launch in launches} == {"attention_decode"}
        with pytest.raises(NoKernelError):
            faops.attention_with_kvcache(q, k, v, cache_seqlens=8, backend=KERNELS[card])
    torch.testing.assert_close(out.double(), reference.attention(q, k, v)[0], atol=2e-3, rtol=2e-3)


def test_without_emulation_a_cpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FAOPS_EMULATE", raising=False)
    q, k, v = tensors(HALF)
    with pytest.raises(NoKernelError, match="FAOPS_EMULATE=1 runs it on a CPU"):
        faops.attention(q, k, v, backend=BACKEND)
