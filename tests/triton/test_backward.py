"""The Triton backward kernels in the interpreter against the oracle: features, head dims, biases, order, layouts."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
import torch
from torch import Tensor

import faops
from faops import reference
from tests.support import (
    FEATURES,
    Case,
    check,
    cumulative,
    gradients,
    make_case,
    make_inputs,
    random_mask,
    run_faops,
)
from tests.triton.support import (
    ATOMIC_TILES,
    BACKEND,
    BACKWARD_TILES,
    TALL_TILES,
    TILES,
    check_kernels,
    recorded,
    rotate,
)

pytestmark = pytest.mark.usefixtures("poisoned")

HALF = torch.float16
TINY: dict[str, Any] = {"batch": 1, "heads_q": 1, "heads_kv": 1, "head_dim": 16, "head_dim_v": 16}


def some_tiles() -> dict[str, Any]:
    """Rows and keys for several tiles, the last ones not full."""
    return {"seqlen_q": random.randint(17, 40), "seqlen_k": random.randint(65, 80)}


@rotate(["plain", *FEATURES], "feature")
def test_feature_alone(dtype: torch.dtype, feature: str) -> None:
    features = [] if feature == "plain" else [feature]
    shape = {**some_tiles(), "batch": 2 if feature == "alibi_batch" else 1}
    check_kernels(make_case(*features, dtype=dtype, heads_q=1, heads_kv=1, **shape))


@pytest.mark.parametrize("band", [(0, 0), (31, 0), (17, 40), (3, None), (None, 20), (None, 0)], ids=str)
def test_bands(band: tuple[int | None, int | None]) -> None:
    """Narrower and wider than a tile, with more keys than rows and with fewer, in both shapes of tiles."""
    for M, N in ((40, 70), (70, 40)):
        case = Case(features=("band",), dtype=HALF, seqlen_q=M, seqlen_k=N, options={"window": band}, **TINY)
        check_kernels(case, TALL_TILES, random.choice([BACKWARD_TILES, ATOMIC_TILES]))


HEAD_DIMS = [(8, 33), (33, 8), (64, 80), (80, 64), (96, 128), (128, 96), (192, 256), (256, 192)]


@rotate(HEAD_DIMS, "dims")
def test_head_dims(dtype: torch.dtype, dims: tuple[int, int]) -> None:
    shape = {"batch": 1, "heads_q": 2, "heads_kv": 1, "seqlen_q": 20, "seqlen_k": 40}
    check_kernels(Case(features=("head dims",), dtype=dtype, head_dim=dims[0], head_dim_v=dims[1], **shape))


# ---------------------------------------------------------------------------------------------- bias and sinks

PATTERNS = [tuple(bool(number >> bit & 1) for bit in range(4)) for number in range(16)]
# In the short run: each axis on and off, and rows and keys in every combination, some dense and some packed.
SHORT = {(0, False), (6, False), (9, False), (5, True), (10, True), (15, True)}


@pytest.mark.parametrize(("pattern", "varlen"), [
    pytest.param(pattern, varlen, marks=[] if (number, varlen) in SHORT else [pytest.mark.full])
    for number, pattern in enumerate(PATTERNS) for varlen in (False, True)
])  # fmt: skip
def test_gradient_of_a_bias_of_every_pattern(pattern: tuple[bool, ...], varlen: bool) -> None:
    """Several tiles of rows and keys, so that sums over broadcast axes go over all of them."""
    shape = {**TINY, "batch": 3 if varlen else 2, "heads_q": 2, "seqlen_q": 20, "seqlen_k": 40}
    case = Case(features=("bias", str(pattern)), dtype=HALF, varlen=varlen, **shape)
    full = (case.batch, case.heads_q, case.seqlen_q, case.seqlen_k)
    bias = torch.randn([size if on else 1 for size, on in zip(full, pattern)])
    case.options["bias"] = bias.to(random.choice([HALF, torch.float32]))
    check_kernels(case)


def test_gradient_of_a_bias_under_a_band() -> None:
    """Tiles outside the band, which are skipped, get 0."""
    for options in ({"causal": True}, {"window": (5, None)}, {"window": (4, 3)}):
        case = Case(features=("bias",), dtype=HALF, seqlen_q=50, seqlen_k=40, options=dict(options), **TINY)
        case.options["bias"] = torch.randn(1, 1, 50, 40).half()
        check_kernels(case)


def test_only_asked_for_gradients_are_computed() -> None:
    """Of bias and sinks; the same call with and without them in turn."""
    case = make_case("sinks", "bias", dtype=HALF, seqlen_q=20, seqlen_k=40, **TINY)
    inputs = make_inputs(case)
    bias, sinks = inputs.options["bias"], inputs.options["sinks"]
    for wanted in ((), ("sinks",), ("bias",), ("bias", "sinks"), ()):
        inputs.options["bias"] = bias.detach().requires_grad_("bias" in wanted)
        inputs.options["sinks"] = sinks.detach().requires_grad_("sinks" in wanted)
        leaves = [inputs.q, *(inputs.options[name] for name in wanted)]
        with recorded() as launches:
            out, _ = run_faops(case, inputs, BACKEND)
            found = torch.autograd.grad(out.float().square().sum(), leaves)
        assert ("bias_gradient.attention_dbias" in [made.kernel for made in launches]) == ("bias" in wanted)
        exact = [leaf.detach().double().requires_grad_() for leaf in (inputs.q, bias, sinks)]
        out, _ = reference.attention(exact[0], inputs.k, inputs.v, bias=exact[1], sinks=exact[2])
        expected = dict(zip(("q", "bias", "sinks"), torch.autograd.grad(out.square().sum(), exact)))
        for name, gradient in zip(("q", *wanted), found):
            torch.testing.assert_close(gradient.double(), expected[name], atol=2e-2, rtol=2e-2)


# ---------------------------------------------------------------------------------------------- values at the edge


@pytest.mark.parametrize("atomic", [False, True])
def test_rows_without_a_key_have_gradient_0(atomic: bool) -> None:
    """Also where dout is huge there, and with a sink."""
    q, k, v = (torch.randn(2, length, 1, 16).half().requires_grad_() for length in (40, 20, 20))
    sinks = torch.randn(1, requires_grad=True)
    mask = random_mask((2, 1, 40, 20))
    mask[1] = False
    weight = torch.ones(2, 40, 1, 16).half()
    weight[:, :20] = 6e4
    with recorded(TILES, ATOMIC_TILES if atomic else BACKWARD_TILES):
        out, lse = faops.attention(q, k, v, causal=True, mask=mask, sinks=sinks, return_lse=True, backend=BACKEND)
        found = torch.autograd.grad(out, (q, k, v, sinks), weight)
    assert torch.equal(lse[:, :, :20], torch.full((2, 1, 20), -math.inf))
    assert all(gradient.isfinite().all() for gradient in found)
    assert torch.equal(found[0][:, :20], torch.zeros_like(q[:, :20]))
    assert found[0][0, 20:].any()
    assert all(not gradient[1].any() for gradient in found[:3])


def test_a_gradient_of_lse_that_is_nan_in_rows_without_a_key_stays_there() -> None:
    q, k, v = (torch.randn(1, length, 1, 16).half().requires_grad_() for length in (40, 20, 20))
    dlse = torch.ones(1, 1, 40)
    dlse[:, :, :20] = math.nan
    with recorded():
        out, lse = faops.attention(q, k, v, causal=True, return_lse=True, backend=BACKEND)
        found = torch.autograd.grad((out, lse), (q, k, v), (torch.ones_like(out), dlse))
    assert all(gradient.isfinite().all() for gradient in found)


def test_very_negative_logits_do_not_let_absent_keys_in() -> None:
    """Behind the last key scores are 0, and exp(0 - lse) is infinite here."""
    case = Case(features=("low",), dtype=HALF, seqlen_q=20, seqlen_k=20, **TINY)
    case.options["bias"] = torch.full((1, 1, 1, 1), -1000.0)
    check_kernels(case, TALL_TILES, ATOMIC_TILES)


@pytest.mark.parametrize("options", [{}, {"causal": True, "sinks": torch.ones(2)}, {"dropout_p": 0.5}], ids=str)
def test_empty_sizes(options: dict[str, Any]) -> None:
    for batch, M, N in ((0, 3, 4), (2, 0, 4), (2, 3, 0), (2, 0, 0), (0, 0, 0)):
        leaves = [torch.randn(batch, M, 2, 16).half(), torch.randn(batch, N, 1, 16).half(),
                  torch.randn(batch, N, 1, 6).half()]  # fmt: skip
        leaves += [tensor.clone() for tensor in options.values() if isinstance(tensor, Tensor)]
        for leaf in leaves:
            leaf.requires_grad_()
        given = {**options, **({"sinks": leaves[3]} if len(leaves) > 3 else {})}
        with recorded():
            out = faops.attention(*leaves[:3], backend=BACKEND, **given)
            found = torch.autograd.grad(out.sum(), leaves)
        for leaf, gradient in zip(leaves, found):
            assert torch.equal(gradient, torch.zeros_like(leaf))


# ---------------------------------------------------------------------------------------------- order and layout


@pytest.mark.parametrize("features", [("mqa", "dropout"), ("varlen", "bias", "sinks", "window")], ids="+".join)
def test_results_repeat_bitwise(features: tuple[str, ...]) -> None:
    """In memory that held something else before, and under any config of the forward kernel that gives the same out."""
    case = make_case(*features, dtype=HALF, **{**TINY, "seqlen_q": 33, "seqlen_k": 50})
    inputs = make_inputs(case)
    results = []
    for _ in range(2):
        with recorded():
            out, lse = run_faops(case, inputs, BACKEND, seed=3)
            results.append({"out": out, "lse": lse, **gradients(inputs, out, lse, torch.ones_like(out), None)})
    for name, value in results[0].items():
        assert torch.equal(value, results[1][name]), name


def test_atomic_sums_meet_the_oracle() -> None:
    for features in (("mqa", "causal"), ("varlen", "window", "dropout", "softcap", "mask")):
        case = make_case(*features, dtype=HALF, **{**TINY, "head_dim_v": 24, **some_tiles()})
        with recorded(TALL_TILES, ATOMIC_TILES) as launches:
            check(case, BACKEND)
        assert [made.kernel for made in launches[1:]] == ["backward.prepare", "backward.attention_dkv"]


def test_gradients_of_any_stride() -> None:
    """dout, out and lse of another kernel and the inputs may lie in memory as they like."""
    wide = torch.randn(4, 40, 4, 32).half()
    q, k = wide[::2, ::2, 1:3, 8:24].detach(), wide[1::2, 1::2, ::2, 8:24][:, :, :1].detach()
    v = torch.randn(1, 20, 1, 16).half().expand(2, -1, -1, -1)
    douts = [torch.randn(2, 2, 20, 16).half().transpose(1, 2), torch.randn(1, 1, 1, 16).half().expand(2, 20, 2, 16),
             torch.randn(2, 20, 2, 40).half()[..., 5:21]]  # fmt: skip
    with recorded():
        results = []
        for tensors in ((q, k, v), (q.contiguous(), k.contiguous(), v.contiguous())):
            leaves = [tensor.detach().requires_grad_() for tensor in tensors]
            out = faops.attention(*leaves, causal=True, backend=BACKEND)
            weights = douts if tensors[0] is q else [dout.contiguous() for dout in douts]
            results.append([torch.autograd.grad(out, leaves, dout, retain_graph=True) for dout in weights])
    for found, exact in zip(*results):
        for mine, expected in zip(found, exact):
            assert torch.equal(mine, expected)


def test_rows_and_keys_behind_the_last_sequence_get_gradient_0() -> None:
    """Whatever is there: NaN in q, k, v and in dout stays there."""
    cu_q, cu_k = cumulative([5, 30]), cumulative([6, 40])
    tensors = [torch.randn(length, 2, 16).half() for length in (35 + 25, 46 + 50, 46 + 50)]
    dout = torch.randn(35 + 25, 2, 16).half()
    results = []
    for more in (True, False):
        leaves = []
        for tensor, used in zip(tensors, (35, 46, 46)):
            tensor[used:] = math.nan
            leaves.append((tensor if more else tensor[:used]).clone().requires_grad_())
        dout[35:] = math.nan
        with recorded():
            out = faops.attention_varlen(*leaves, cu_q, cu_k, 30, 40, causal=True, backend=BACKEND)
            results.append(torch.autograd.grad(out, leaves, dout[: len(out)]))
    for mine, expected in zip(*results):
        assert torch.equal(mine[: len(expected)], expected)
        assert torch.equal(mine[len(expected) :], torch.zeros_like(mine[len(expected) :]))


def test_empty_sequences_get_no_gradient() -> None:
    lengths_q, lengths_k = [0, 20, 7, 0], [9, 0, 20, 0]
    cu_q, cu_k = cumulative(lengths_q), cumulative(lengths_k)
    leaves = [torch.randn(sum(lengths), 2, 16).half().requires_grad_() for lengths in (lengths_q, lengths_k, lengths_k)]
    with recorded():
        out = faops.attention_varlen(*leaves, cu_q, cu_k, 20, 20, backend=BACKEND)
        found = torch.autograd.grad(out, leaves, torch.randn_like(out))
    assert torch.equal(found[0][:20], torch.zeros_like(found[0][:20]))
    assert found[0][20:].any()
    for gradient in found[1:]:
        assert torch.equal(gradient[:9], torch.zeros_like(gradient[:9]))
        assert gradient[9:].any()
