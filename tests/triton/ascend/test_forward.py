"""The Ascend kernel in the interpreter against the oracle: features, sizes, grids, values at the edge."""

from __future__ import annotations

import importlib
import random
from typing import Any

import pytest
import torch

import faops
from faops import reference
from faops.backends.triton.ascend.space import make_config
from tests import edges
from tests.support import SIZES, Case, covering_sets, make_case, make_inputs, run_faops
from tests.triton.ascend.support import BACKEND, FEATURES, TALL_TILES, TILES, check_kernel, recorded
from tests.triton.support import DTYPES, rotate

pytestmark = pytest.mark.usefixtures("poisoned")

HALF = torch.float16
TINY: dict[str, Any] = {"batch": 1, "heads_q": 1, "heads_kv": 1, "head_dim": 16, "head_dim_v": 16}
SMALL: dict[str, Any] = {"seqlen_q": 20, "seqlen_k": 40, "head_dim": 24, "head_dim_v": 24}
ONE_HEAD: dict[str, Any] = {"batch": 1, "heads_q": 2, "heads_kv": 2}
OWN_HEADS = ("gqa", "mqa", "varlen", "alibi_batch")  # features that are nothing without


@rotate(FEATURES, "feature")
def test_feature_alone(dtype: torch.dtype, feature: str) -> None:
    check_kernel(make_case(feature, dtype=dtype, **SMALL, **({} if feature in OWN_HEADS else ONE_HEAD)))


@pytest.mark.full
@pytest.mark.parametrize("features", covering_sets(FEATURES), ids="+".join)
def test_features_together(features: tuple[str, ...]) -> None:
    dtype = random.choice(DTYPES)
    for config in (TILES, TALL_TILES):
        check_kernel(make_case(*features, dtype=dtype), config)


def odd_sizes(seqlen_q: int, seqlens_k: tuple[int, ...]) -> None:
    """More rows than keys under causal leave dead rows, on every side of a tile's edge."""
    for seqlen_k in seqlens_k:
        check_kernel(make_case("causal", dtype=HALF, seqlen_q=seqlen_q, seqlen_k=seqlen_k, **TINY))


def test_odd_sizes() -> None:
    odd_sizes(random.choice(SIZES[:-1]), (random.choice(SIZES[:3]), random.choice(SIZES[3:])))


@pytest.mark.full
@pytest.mark.parametrize("seqlen_q", SIZES)
def test_all_odd_sizes(seqlen_q: int) -> None:
    odd_sizes(seqlen_q, SIZES)


BANDS = [(0, 0), (3, 0), (0, 5), (31, 0), (16, 16), (17, 40), (40, 3), (64, None), (5, None), (None, 20), (None, 0)]


def bands(chosen: list[tuple[int | None, int | None]], config: Any) -> None:
    for band in chosen:
        M, N = random.choice([(50, 90), (90, 50), (70, 70), (33, 100)])
        check_kernel(
            Case(features=("band",), dtype=HALF, seqlen_q=M, seqlen_k=N, options={"window": band}, **TINY), config
        )


def test_bands() -> None:
    bands(random.sample(BANDS, 3), random.choice([TILES, TALL_TILES]))


@pytest.mark.full
@pytest.mark.parametrize("config", [TILES, TALL_TILES], ids=str)
def test_all_bands(config: Any) -> None:
    """Narrower and wider than a tile, with more keys than rows and with fewer."""
    bands(BANDS, config)


HEAD_DIMS = [(8, 33), (96, 128), (256, 192), (1, 17), (127, 129)]


@pytest.mark.parametrize(
    "dims", [pytest.param(d, marks=[pytest.mark.full] if i else []) for i, d in enumerate(HEAD_DIMS)]
)
def test_head_dims(dims: tuple[int, int]) -> None:
    shape = {"batch": 1, "heads_q": 1, "heads_kv": 1, "seqlen_q": 20, "seqlen_k": 40}
    check_kernel(Case(features=("head dims",), dtype=HALF, head_dim=dims[0], head_dim_v=dims[1], **shape))


# ---------------------------------------------------------------------------------------------- the grid


def test_any_number_of_programs() -> None:
    """One program does everything, some more than others, or there are more of them than tiles."""
    case = Case(("grid",), HALF, seqlen_q=40, seqlen_k=40, options={"causal": True}, **{**TINY, "heads_q": 3})
    inputs, found = make_inputs(case), []
    for programs in (1, 3, 20):
        with recorded(make_config(16, 32, programs)) as launches:
            found.append(run_faops(case, inputs, BACKEND))
        assert launches[0].grid == (min(programs, 9), 1, 1)
    assert all(torch.equal(found[0][item], other[item]) for other in found[1:] for item in (0, 1))


def test_programs_take_tiles_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two programs only the first runs: the last rows are its first tile, the first ones its second."""
    builder = importlib.import_module("triton.runtime.interpreter").interpreter_builder
    set_grid_dim = builder.set_grid_dim
    monkeypatch.setattr(builder, "set_grid_dim", lambda *sizes: set_grid_dim(2, 1, 1))
    with recorded(make_config(16, 32, 1)):
        out = faops.attention(*(torch.randn(1, 48, 1, 16) for _ in range(3)), backend=BACKEND)
    assert out[:, 16:32].isnan().all() and out[:, :16].isfinite().all() and out[:, 32:].isfinite().all()


@pytest.mark.full
def test_any_number_of_programs_of_a_packed_batch() -> None:
    case = make_case("gqa", "causal", "varlen", dtype=HALF, **SMALL)
    inputs, found = make_inputs(case), []
    for programs in (1, 3, 20, 65535):
        with recorded(make_config(16, 32, programs)):
            found.append(run_faops(case, inputs, BACKEND))
    assert all(torch.equal(found[0][item], other[item]) for other in found[1:] for item in (0, 1))


# ---------------------------------------------------------------------------------------------- values at the edge


@pytest.mark.parametrize("options", [{"causal": True, "sinks": torch.ones(1)}, {"mask": torch.zeros(1, 1, 1, 20) > 0}],
                         ids=["causal", "mask"])  # fmt: skip
def test_rows_without_a_key(options: dict[str, Any]) -> None:
    """Through causal with more rows than keys and through masks: out 0 and lse -inf, a sink notwithstanding."""
    q, k, v = (torch.randn(1, length, 1, 16).half() for length in (40, 20, 20))
    with recorded():
        out, lse = faops.attention(q, k, v, return_lse=True, backend=BACKEND, **options)
    dead = 20 if "causal" in options else 40
    assert torch.equal(out[:, :dead], torch.zeros(1, dead, 1, 16).half()) and not out.isnan().any()
    assert torch.equal(lse[..., :dead], torch.full((1, 1, dead), -torch.inf))
    assert out[:, dead:].all() and lse[..., dead:].isfinite().all()


@pytest.mark.parametrize("options", [one for one in edges.EMPTY_OPTIONS if "dropout_p" not in one], ids=str)
def test_empty_sizes(options: dict[str, Any]) -> None:
    with recorded():
        edges.check_empty_sizes(BACKEND, options)


def test_sequences_alone() -> None:
    with recorded():
        edges.check_sequences_alone(BACKEND, [0, 17, 3], [5, 33, 0], True, (0, 30))


def test_rows_behind_the_last_sequence() -> None:
    with recorded():
        edges.check_rows_behind_the_last_sequence(BACKEND, 18, 19)


@pytest.mark.filterwarnings("ignore:invalid value encountered in matmul")
def test_infinite_neighbours() -> None:
    with recorded():
        edges.check_neighbours(BACKEND, 20)


@pytest.mark.parametrize("softcap", [0.0, 30.0])
def test_large_logits(softcap: float) -> None:
    """Logits of ± 10 000: nothing overflows, and the largest ones decide as in the oracle."""
    q, k, v = (torch.randn(1, 16, 1, 64) for _ in range(3))
    q, k = q * 36, k * 36
    with recorded():
        _, lse = faops.attention(q, k, v, scale=1.0, softcap=softcap, return_lse=True, backend=BACKEND)
    _, exact = reference.attention(q, k, v, scale=1.0, softcap=softcap)
    torch.testing.assert_close(lse.double(), exact, rtol=1e-6, atol=1e-5 if softcap else 0)


@pytest.mark.filterwarnings("ignore:invalid value encountered in matmul")
def test_hidden_keys_may_hold_anything() -> None:
    """Not a number times 0 is not a number, but a key that a mask hides is not looked at."""
    q, k, v = (torch.randn(1, 20, 1, 16) for _ in range(3))
    mask = (torch.arange(20) < 15)[None, None, None]
    with recorded():
        expected = faops.attention(q, k[:, :15], v[:, :15], backend=BACKEND)
        k[:, 15:] = float("inf")
        torch.testing.assert_close(faops.attention(q, k, v, mask=mask, backend=BACKEND), expected)


@pytest.mark.parametrize("option", ["bias", "mask"])
def test_matrices_of_any_stride(option: str) -> None:
    """A transposed one is copied, one that is expanded over rows or keys is not."""
    full = (1, 1, 20, 40)
    q, k, v = torch.randn(1, 20, 1, 16), torch.randn(1, 40, 1, 16), torch.randn(1, 40, 1, 16)
    wide = torch.randn(1, 1, 90, 90)
    wide = wide > -1 if option == "mask" else wide
    for matrix, rows, keys in (
        (wide[..., :40, :20].mT, True, True),
        (wide[..., :20, 1:41], True, True),
        (wide[:, :, :1, :40].expand(full), False, True),
        (wide[..., :20, :1].expand(full), True, False),
        (wide[:, :, :1, :1].expand(full), False, False),
    ):
        with recorded() as launches:
            out = faops.attention(q, k, v, backend=BACKEND, **{option: matrix})
        exact, _ = reference.attention(q, k, v, **{option: matrix})
        torch.testing.assert_close(out.double(), exact, atol=1e-5, rtol=1e-5)
        assert launches[0].numbers[f"{option}_key"] == (1 if keys else 0)
        constants = launches[0].constants
        assert (constants[f"{option.upper()}_ROWS"], constants[f"{option.upper()}_KEYS"]) == (rows, keys)
