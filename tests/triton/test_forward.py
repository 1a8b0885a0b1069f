"""The Triton forward kernel in the interpreter against the oracle: sizes, head dims, biases, values at the edge."""

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
from faops.backends.triton.space import make_config
from faops.errors import NoKernelError
from tests import edges
from tests.support import SIZES, Case, make_case, make_inputs, random_mask, run_faops, run_reference
from tests.triton.support import BACKEND, DTYPES, TALL_TILES, TILES, check_kernels, recorded, rotate

pytestmark = pytest.mark.usefixtures("poisoned")

each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
HALF, BFLOAT = torch.float16, torch.bfloat16
TINY: dict[str, Any] = {"batch": 1, "heads_q": 1, "heads_kv": 1, "head_dim": 16, "head_dim_v": 16}


def odd_sizes(seqlen_q: int, seqlens_k: tuple[int, ...]) -> None:
    """More rows than keys under causal leave dead rows, on every side of a tile's edge."""
    for seqlen_k in seqlens_k:
        check_kernels(make_case("causal", dtype=HALF, seqlen_q=seqlen_q, seqlen_k=seqlen_k, **TINY), backward=False)


@pytest.mark.parametrize("seqlen_q", SIZES[:-1])
def test_odd_sizes(seqlen_q: int) -> None:
    odd_sizes(seqlen_q, (random.choice(SIZES[:3]), random.choice(SIZES[3:])))


@pytest.mark.full
@pytest.mark.parametrize("seqlen_q", SIZES)
def test_all_odd_sizes(seqlen_q: int) -> None:
    odd_sizes(seqlen_q, SIZES)


BANDS = [(0, 0), (3, 0), (0, 5), (31, 0), (16, 16), (17, 40), (40, 3), (64, None), (5, None), (None, 20), (None, 0)]


@pytest.mark.parametrize("config", [TILES, TALL_TILES], ids=str)
def test_bands(config: Any) -> None:
    """Narrower and wider than a tile, with more keys than rows and with fewer."""
    for band in BANDS:
        M, N = random.choice([(50, 90), (90, 50), (70, 70), (33, 100)])
        case = Case(features=("band",), dtype=HALF, seqlen_q=M, seqlen_k=N, options={"window": band}, **TINY)
        check_kernels(case, config, backward=False)


HEAD_DIMS = [(8, 33), (33, 8), (64, 80), (80, 64), (96, 128), (128, 96), (192, 256), (256, 192), (1, 17), (127, 129)]


@rotate(HEAD_DIMS, "dims")
def test_head_dims(dtype: torch.dtype, dims: tuple[int, int]) -> None:
    shape = {"batch": 1, "heads_q": 2, "heads_kv": 1, "seqlen_q": 20, "seqlen_k": 40}
    case = Case(features=("head dims",), dtype=dtype, head_dim=dims[0], head_dim_v=dims[1], **shape)
    check_kernels(case, backward=False)


# ---------------------------------------------------------------------------------------------- bias and mask


def patterned(dtype: torch.dtype) -> tuple[Case, tuple[int, ...]]:
    """A small case, and a random pattern of (batch, heads, rows, keys) with 1 for what is broadcast."""
    shape = {**TINY, "batch": 2, "heads_q": 2, "seqlen_q": 20, "seqlen_k": 40}
    case = Case(features=("pattern",), dtype=dtype, **shape)
    return case, case.pairs_shape()


@pytest.mark.parametrize("kind", ["same", "float32", "other"])
@each_dtype
def test_bias_of_every_dtype(dtype: torch.dtype, kind: str) -> None:
    case, shape = patterned(dtype)
    bias_dtype = {"same": dtype, "float32": torch.float32, "other": BFLOAT if dtype == HALF else HALF}[kind]
    case.options["bias"] = torch.randn(shape).to(bias_dtype)
    check_kernels(case, backward=False)


MASKS = [tuple(bool(number >> bit & 1) for bit in range(4)) for number in range(16)]


@pytest.mark.parametrize("pattern", [pytest.param(p, marks=[] if i % 5 == 0 else [pytest.mark.full])
                                     for i, p in enumerate(MASKS)])  # fmt: skip
def test_mask_of_every_pattern(pattern: tuple[bool, ...]) -> None:
    case, _ = patterned(HALF)
    full = (case.batch, case.heads_q, case.seqlen_q, case.seqlen_k)
    case.options["mask"] = random_mask(tuple(size if on else 1 for size, on in zip(full, pattern)))
    check_kernels(case, backward=False)


def test_bias_of_any_stride() -> None:
    """Keys far apart, rows reversed in role, a view that starts at an odd place, an expanded one."""
    case, _ = patterned(HALF)
    full = (case.batch, case.heads_q, case.seqlen_q, case.seqlen_k)
    wide = torch.randn(*full[:-1], 90).half()
    M, N = full[2:]
    for bias in (
        torch.randn(*full[:2], N, M).half().mT,
        wide[..., 1 : 1 + N],
        wide[..., ::2][..., :N],
        wide[:1, :, :1, :N].expand(full),
    ):
        case.options["bias"] = bias
        inputs = make_inputs(case)
        inputs.options.update(case.options)  # leaves made of them would lose their strides
        with recorded():
            out, lse = run_faops(case, inputs, BACKEND)
        close_to(out, lse, run_reference(case, inputs, torch.float64))


def close_to(out: Tensor, lse: Tensor, exact: tuple[Tensor, Tensor]) -> None:
    torch.testing.assert_close(out.double(), exact[0], atol=2e-3, rtol=2e-3)
    torch.testing.assert_close(lse.double(), exact[1], atol=1e-5, rtol=1e-5)


def test_bias_with_minus_infinity_hides() -> None:
    q, k, v = (torch.randn(2, 40, 1, 16).half() for _ in range(3))
    mask = random_mask((2, 1, 40, 40))
    mask[0, 0, 3] = False
    hidden = torch.zeros(2, 1, 40, 40).masked_fill(~mask, -math.inf)
    with recorded():
        by_mask, by_bias = (
            faops.attention(q, k, v, return_lse=True, backend=BACKEND, **option)
            for option in ({"mask": mask}, {"bias": hidden})
        )
    assert torch.equal(by_mask[1] == -math.inf, by_bias[1] == -math.inf)
    assert (by_mask[1] == -math.inf).any()
    torch.testing.assert_close(by_mask[0], by_bias[0], atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(by_mask[1], by_bias[1])


# ---------------------------------------------------------------------------------------------- values at the edge


@pytest.mark.parametrize("return_lse", [False, True])
def test_rows_without_a_key(return_lse: bool) -> None:
    with recorded():
        edges.check_rows_without_a_key(BACKEND, 20, return_lse)


@pytest.mark.parametrize("options", edges.EMPTY_OPTIONS, ids=str)
def test_empty_sizes(options: dict[str, Any]) -> None:
    with recorded():
        edges.check_empty_sizes(BACKEND, options)


@each_dtype
@pytest.mark.parametrize("softcap", [0.0, 30.0])
def test_large_logits(dtype: torch.dtype, softcap: float) -> None:
    """Logits of ± 10 000: nothing overflows, and the largest ones decide as in the oracle; nor does softcap's tanh."""
    q, k, v = (torch.randn(1, 40, 2, 64).to(dtype) for _ in range(3))
    q, k = q * 36, k * 36
    with recorded():
        out, lse = faops.attention(q, k, v, scale=1.0, softcap=softcap, return_lse=True, backend=BACKEND)
    exact, exact_lse = reference.attention(q, k, v, scale=1.0, softcap=softcap)
    assert softcap or 1e4 < float(exact_lse.abs().max()) < 1e5
    torch.testing.assert_close(lse.double(), exact_lse, rtol=1e-6, atol=1e-5 if softcap else 0)
    torch.testing.assert_close(out.double(), exact, rtol=0, atol=0.05)


def test_small_logits_under_a_softcap() -> None:
    """Near 0 softcap is the identity, which 1 - exp would not compute."""
    q, k, v = (torch.randn(1, 40, 1, 16) for _ in range(3))
    for scale in (1e-6, 1e-4, 1e-2):
        bias = torch.full((1, 1, 1, 1), 1.0) * -reference.attention(q, k, v, scale=scale)[1].mean().float()
        with recorded():
            _, lse = faops.attention(q, k, v, scale=scale, softcap=0.5, bias=bias, return_lse=True, backend=BACKEND)
        _, exact = reference.attention(q, k, v, scale=scale, softcap=0.5, bias=bias)
        torch.testing.assert_close(lse.double(), exact, rtol=0, atol=2e-6)


def test_maxima_that_rise_from_block_to_block() -> None:
    """Or fall, or stay: the sums are rescaled right."""
    slopes = torch.tensor([0.01, 0.1, 5.0, -0.1, 0.0])
    shape = {**TINY, "heads_q": len(slopes), "heads_kv": len(slopes), "seqlen_q": 16, "seqlen_k": 150}
    case = Case(features=("rising bias",), dtype=HALF, **shape)
    case.options["bias"] = (slopes[:, None] * torch.arange(150))[None, :, None]
    check_kernels(case, backward=False)


@pytest.mark.parametrize("scale", [0.0, -0.5])
def test_scale_that_is_not_positive(scale: float) -> None:
    case = make_case("causal", dtype=HALF, seqlen_q=40, seqlen_k=70, **TINY)
    case.options["scale"] = scale
    check_kernels(case)


def test_without_lse_the_result_is_the_same() -> None:
    case = make_case("sinks", dtype=HALF, **TINY)
    inputs = make_inputs(case)
    q, k, v = (tensor.detach() for tensor in (inputs.q, inputs.k, inputs.v))
    sinks = inputs.options["sinks"].detach()
    with recorded():
        alone = faops.attention(q, k, v, backend=BACKEND, sinks=sinks)
        both, _ = faops.attention(q, k, v, backend=BACKEND, return_lse=True, sinks=sinks)
    assert torch.equal(alone, both)


def test_dropout_drops_what_the_oracle_drops() -> None:
    """Values that are the identity show the probabilities themselves; whatever the tiles."""
    q, k = torch.randn(2, 40, 1, 16).half(), torch.randn(2, 64, 1, 16).half()
    v = torch.eye(64).half()[None, :, None].expand(2, -1, -1, -1)
    configs = (TILES, TALL_TILES, make_config(64, 64, 4, 1))
    for probability in (0.03, 0.5, 0.95):
        rng = _draw_rng(torch.Generator().manual_seed(1), q.device)
        exact, _ = reference.attention(q, k, v, scale=0.01, dropout_p=probability, rng=rng)
        assert float((exact == 0).float().mean()) == pytest.approx(probability, abs=0.03)
        for config in configs if probability == 0.5 else [random.choice(configs)]:
            with recorded(config):
                out = faops.attention(
                    q, k, v, scale=0.01, dropout_p=probability, backend=BACKEND,
                    generator=torch.Generator().manual_seed(1),
                )  # fmt: skip
            assert torch.equal(out == 0, exact == 0)


@pytest.mark.parametrize("precision", ["highest", "high"])
def test_products_of_float32_are_exact_unless_torch_allows_tf32(precision: str, monkeypatch: Any) -> None:
    q, k, v = (torch.randn(1, 20, 1, 16) for _ in range(3))
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        with recorded() as launches:
            faops.attention(q, k, v, backend=BACKEND)
            faops.attention(q.half(), k.half(), v.half(), backend=BACKEND)
    finally:
        torch.set_float32_matmul_precision(before)
    assert [made.constants["PRECISION"] for made in launches] == ["ieee" if precision == "highest" else "tf32", "ieee"]


# ---------------------------------------------------------------------------------------------- what it refuses


def test_float64_and_fp8_are_refused() -> None:
    for dtype in (torch.float64, torch.float8_e4m3fn):
        q, k, v = (torch.randn(1, 8, 1, 16).to(dtype) for _ in range(3))
        with pytest.raises(NoKernelError) as caught:
            faops.attention(q, k, v, backend=BACKEND)
        name = str(dtype).removeprefix("torch.")
        assert f"not in {name}" in "; ".join(caught.value.rejections["triton.forward"])


def test_without_interpretation_a_cpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET")
    q, k, v = (torch.randn(1, 8, 1, 16) for _ in range(3))
    with pytest.raises(NoKernelError, match="TRITON_INTERPRET=1 runs it on a CPU"):
        faops.attention(q, k, v, backend=BACKEND)
